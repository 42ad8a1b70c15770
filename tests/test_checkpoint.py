"""Model folders as transformers writes them and as they arrive damaged, and reading tensors from them."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tiny
from meldkit.checkpoint import (
    DTYPES,
    Scratch,
    StoredTensor,
    TileSource,
    open_checkpoint,
    open_files,
    read_all,
    read_header,
    read_json,
)
from meldkit.errors import CheckpointError

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in several shards, written by transformers."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("sharded")
    whole = tiny.llama(folder / "whole", 0)
    model = LlamaForCausalLM.from_pretrained(whole)
    model.save_pretrained(folder / "shards", max_shard_size="40KB")
    return folder / "shards"


@pytest.fixture
def m(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to damage, as the relative path "m"."""
    shutil.copytree(sharded, tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    return Path("m")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def edit_index(folder: Path, name: str, file: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][name] = file
    (folder / INDEX).write_text(json.dumps(index))


def refusal(folder: Path, label: str = "m") -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(label, folder)
    return str(caught.value)


def values_of(source: TileSource, numel: int) -> Tensor:
    out = torch.full((numel,), torch.nan)
    source.read(0, numel, out, Scratch())
    return out


# ---- folders


def test_sharded_folder(m: Path) -> None:
    assert len(shards(m)) > 2
    checkpoint = open_checkpoint("m", m)
    expected = tiny.tensors(m)
    assert checkpoint.keys() == expected.keys()
    assert checkpoint.config["num_hidden_layers"] == 4
    assert checkpoint.folder == m
    assert checkpoint.files() == shards(m)
    by_place = sorted(checkpoint.values(), key=lambda info: (info.file, info.offset))
    assert list(checkpoint.values()) == by_place
    with open_files() as files:
        for name, tensor in expected.items():
            assert checkpoint.plain(name)
            value = values_of(checkpoint.source(files, name), tensor.numel())
            assert torch.equal(value, tensor.flatten())


def test_single_file_and_its_folder_are_the_same_model(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "m", 1, dtype="bfloat16")
    whole, file = open_checkpoint("m", folder), open_checkpoint("m", folder / "model.safetensors")
    assert dict(whole) == dict(file)
    assert whole.config == file.config
    assert whole.folder == file.folder
    assert whole.fingerprint == file.fingerprint
    assert list(whole) == list(read_header(folder / "model.safetensors").tensors)


def test_opening_reads_no_weights(m: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", None)
    open_checkpoint("m", m)


def test_links_lead_outside_as_in_the_cache_of_the_hub(m: Path) -> None:
    snapshot, blobs = Path("repo/snapshots/0123"), Path("repo/blobs")
    blobs.mkdir(parents=True)
    snapshot.parent.mkdir()
    m.rename(snapshot)
    for i, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(i))
        path.symlink_to(f"../../blobs/{i}")
    assert open_checkpoint("m", snapshot).keys() == tiny.tensors(snapshot).keys()
    Path("m").symlink_to(snapshot)
    assert open_checkpoint("m", Path("m")).keys() == tiny.tensors(snapshot).keys()


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret.txt", "../elsewhere"])
@pytest.mark.parametrize("name", ["vocab.txt", "config.json", "tokenizer", "part/modeling.py"])
def test_links_lead_nowhere_else(name: str, target: str, m: Path) -> None:
    Path("secret.txt").write_text("secret")
    Path("elsewhere").mkdir()
    (m / name).parent.mkdir(exist_ok=True)
    (m / name).unlink(missing_ok=True)
    (m / name).symlink_to("../" * (name.count("/") if target[0] == "." else 0) + target)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("m", m)
    assert caught.value.message == (
        f"model 'm': m/{name} is a link that leads out of the model's folder, "
        f"to {str((m / name).resolve())!r}"
    )
    assert caught.value.hint == "put the file itself there if it belongs to the model"


def test_weights_may_be_linked_from_another_disk(m: Path) -> None:
    Path("disk").mkdir()
    for path in shards(m):
        path.rename(Path("disk", path.name))
        path.symlink_to(Path("disk", path.name).absolute())
    (m / ".git").mkdir()
    (m / ".git/link").symlink_to("/etc/passwd")
    (m / "again.json").symlink_to("config.json")
    assert len(open_checkpoint("m", m))


def test_shards_in_a_folder_below(m: Path) -> None:
    (m / "part").mkdir()
    index = json.loads((m / INDEX).read_text())
    index["weight_map"] = {name: f"part/{file}" for name, file in index["weight_map"].items()}
    (m / INDEX).write_text(json.dumps(index))
    for shard in shards(m):
        shard.rename(m / "part" / shard.name)
    assert len(open_checkpoint("m", m)) == len(index["weight_map"])


def test_one_file_comes_before_an_index_as_in_transformers(m: Path) -> None:
    from transformers import LlamaForCausalLM

    content = {name: torch.zeros_like(tensor) for name, tensor in tiny.tensors(m).items()}
    save_file(content, m / "model.safetensors", {"format": "pt"})
    assert not any(p.any() for p in LlamaForCausalLM.from_pretrained(m).parameters())
    assert open_checkpoint("m", m).files() == [m / "model.safetensors"]


@pytest.mark.parametrize(
    "file",
    [
        *("../m.safetensors", "a/../../x", "/etc/passwd", "..\\x", "a\\b", "C:\\x", "c:x", "a\0b"),
        *("", ".", "..", "//x/y", None, 1, ["a"], {}),
    ],
)
def test_index_does_not_lead_out_of_the_folder(m: Path, file: object) -> None:
    edit_index(m, "lm_head.weight", file)
    # The message shows the value as Python writes it: nothing in it reaches the terminal raw.
    assert refusal(m) == (
        f"m/{INDEX} places tensor 'lm_head.weight' in {file!r}\n"
        "  only files of the model's own folder are read"
    )


@pytest.mark.parametrize("file", ["absent.safetensors", "\ud800.safetensors", "a/b/c.safetensors"])
def test_missing_shard(m: Path, file: str) -> None:
    edit_index(m, "lm_head.weight", file)
    assert refusal(m) == (
        f"model 'm': {INDEX} names {file!r}, which is not in m\n  download the missing shard"
    )


def test_shard_name_too_long_for_the_system(m: Path) -> None:
    edit_index(m, "lm_head.weight", "x" * 5000)
    assert refusal(m) == "model 'm': cannot look into m: File name too long"


def test_tensor_that_its_shard_lacks(m: Path) -> None:
    edit_index(m, "lm_head.bias", shards(m)[0].name)
    assert refusal(m) == (
        f"model 'm': {INDEX} places tensor 'lm_head.bias' in {shards(m)[0].name}, which lacks it\n"
        "  index and shards are of different downloads; download the model into an empty folder"
    )


def test_tensor_in_two_shards(m: Path) -> None:
    first, second = shards(m)[:2]
    name = next(iter(read_header(first).tensors))
    content = {name: torch.zeros(1), **{n: torch.zeros(1) for n in read_header(second).tensors}}
    save_file(content, second)
    assert refusal(m) == (
        f"model 'm': tensor '{name}' is in {first.name} and in {second.name}\n"
        "  shards of different downloads are mixed; download the model into an empty folder"
    )


def test_truncated_shard(m: Path) -> None:
    shard = shards(m)[1]
    os.truncate(shard, shard.stat().st_size - 1)
    assert refusal(m).startswith(f"{shard} is truncated: tensor '")


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": {}}', '{"weight_map": [1]}', '{"weight_map": null}']
)
def test_index_without_a_map(m: Path, content: str) -> None:
    (m / INDEX).write_text(content)
    assert refusal(m) == f"m/{INDEX} has no weight_map\n  download the index again"


BROKEN_JSON = {
    "": "is not valid JSON (line 1, column 1)",
    "[]": "is not a mapping",
    '{\n "a": }': "is not valid JSON (line 2, column 7)",
    '{"a": "\xff"}': "is not text in UTF-8 (byte 7)",
    "[" * 100_000: "is nested too deeply",
    "[" + "1" * 10_000 + "]": "is not ",
}


@pytest.mark.parametrize("content", BROKEN_JSON, ids=lambda text: text[:10])
@pytest.mark.parametrize("file", [INDEX, "config.json"])
def test_broken_json(m: Path, file: str, content: str) -> None:
    (m / file).write_bytes(content.encode("latin-1"))
    message = refusal(m)
    assert message.startswith(f"m/{file} {BROKEN_JSON[content]}")
    assert message.endswith("\n  repair the file or download it again")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_hidden_layers": "abc"}, "num_hidden_layers is 'abc'; a whole number is expected"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; a whole number is expected"),
        ({"num_hidden_layers": 4.0}, "num_hidden_layers is 4.0; a whole number is expected"),
        ({"architectures": 5}, "architectures is 5; a list is expected"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM'; a list is expected"),
        ({"text_config": []}, "text_config is []; a mapping is expected"),
        ({"text_config": {"vocab_size": ""}}, "text_config.vocab_size is ''; a whole number is expected"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; true or false is expected"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; true or false is expected"),
        ({"n_layer": "12"}, "n_layer is '12'; a whole number is expected"),
        ({"model_type": {}}, "model_type is {}; text is expected"),
        ({"quantization_config": "fp8"}, "quantization_config is 'fp8'; a mapping is expected"),
    ],
    ids=str,
)
def test_config_of_the_wrong_kinds(
    changes: dict[str, object], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.decoder(Path("m"), **changes)
    message = refusal(Path("m"))
    assert message == f"m/config.json: {expected}\n  correct it, or download the file again"
    assert len(open_checkpoint("m", Path("m/model.safetensors"), alone=True)) == 9


def test_config_may_say_nothing(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("architectures", "model_type", "num_hidden_layers", "text_config"))
    tiny.decoder(tmp_path / "m", tie_word_embeddings=None, anything={"num_hidden_layers": "x"}, **nothing)
    assert len(open_checkpoint("m", tmp_path / "m")) == 9


def test_config_of_a_model_of_several_parts(tmp_path: Path) -> None:
    tiny.decoder(tmp_path / "m", num_hidden_layers={"vision": 2, "language": 3}, num_layers=[2, 2])
    assert len(open_checkpoint("m", tmp_path / "m")) == 9


def test_json_keeps_the_last_of_two_keys(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1, "a": 2}')
    assert read_json(path) == {"a": 2} == json.loads(path.read_text())


def test_config_that_cannot_be_read(m: Path) -> None:
    (m / "config.json").unlink()
    assert open_checkpoint("m", m).config == {}
    (m / "config.json").mkdir()
    assert refusal(m) == "cannot read m/config.json: Is a directory"


def make(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


WRONG_FOLDERS: dict[tuple[str, ...], str] = {
    (): "model 'm': m has neither model.safetensors nor model.safetensors.index.json\n"
    "  check the path in the recipe, and whether the download is complete",
    ("config.json", "README.md"): "model 'm': m has neither model.safetensors nor "
    "model.safetensors.index.json\n  check the path in the recipe, and whether the download is complete",
    ("pytorch_model.bin",): "m/pytorch_model.bin is empty\n"
    "  download the file again, or check how it was written",
    ("a.gguf", "b.gguf", "c.gguf", "d.gguf"): "model 'm': m has 4 GGUF files: a.gguf, b.gguf, c.gguf\n"
    "  each of them is a model; name one, such as m/a.gguf",
    ("adapter_config.json", "adapter_model.safetensors"): "model 'm': m is a LoRA adapter, not a model\n"
    "  write it as BASE_MODEL+m",
    ("adapter_config.json", "adapter_model.bin", "training_args.bin"): "model 'm': m is a LoRA adapter, "
    "not a model\n  write it as BASE_MODEL+m",
    ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"): "model 'm': m has neither "
    "model.safetensors nor model.safetensors.index.json, but model-00001-of-00002.safetensors, "
    "model-00002-of-00002.safetensors\n"
    "  download the index of a sharded model, or name the one file that is meant",
}


@pytest.mark.parametrize("names", WRONG_FOLDERS, ids=",".join)
def test_wrong_folders(names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(make(Path("m"), *names)) == WRONG_FOLDERS[names]


def test_wrong_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(Path("m")) == "model 'm': m does not exist\n  check the path in the recipe"
    Path("w.bin").write_bytes(b"")
    assert refusal(Path("w.bin"), "w.bin") == (
        "w.bin is empty\n  download the file again, or check how it was written"
    )
    Path("w.onnx").write_bytes(b"")
    assert refusal(Path("w.onnx"), "w.onnx") == (
        "w.onnx is no weight file that is known by its ending '.onnx'\n  name a model folder, or a file "
        "that ends in .safetensors, .gguf, .bin, .pt, .pth, .tar, .ckpt"
    )
    (make(Path("m")) / "model.safetensors").mkdir()
    assert refusal(Path("m")) == (
        "m/model.safetensors is not a file\n  a folder or a special file cannot hold tensors"
    )
    save_file({}, "none.safetensors")
    assert refusal(Path("none.safetensors"), "none") == (
        "model 'none' has no tensors\n  check how none.safetensors was written"
    )
    assert refusal(Path("x" * 5000), "x").endswith("File name too long")


def test_fingerprint_changes_with_what_headers_say(tmp_path: Path) -> None:
    folders = [
        tiny.llama(tmp_path / f"{i}", 0, layers=1, vocab=vocab) for i, vocab in enumerate((64, 64, 65))
    ]
    first, second, third = (open_checkpoint("m", folder).fingerprint for folder in folders)
    assert first == second != third


MODULES = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "3_Dense"}, {"path": "../a"}, 3]


def test_parts_below(tmp_path: Path) -> None:
    folder = tiny.decoder(tmp_path / "m")
    alone = open_checkpoint("m", folder)
    assert alone.parts == ()
    for content in ("no json", "[" * 100_000, "{}", json.dumps(MODULES[:2])):
        (folder / "modules.json").write_text(content)
        assert open_checkpoint("m", folder).fingerprint == alone.fingerprint
    (folder / "modules.json").write_text(json.dumps(MODULES))
    tiny.stored(tmp_path / "a", {"w": torch.ones(1)})
    tiny.stored(folder / "2_Dense", {"linear.weight": torch.ones(2, 2)})
    (folder / "3_Dense").mkdir()
    torch.save({"bias": torch.ones(3)}, folder / "3_Dense" / "pytorch_model.bin")
    checkpoint = open_checkpoint("m", folder)
    assert checkpoint.parts == ("2_Dense", "3_Dense")
    assert checkpoint.keys() - alone.keys() == {"2_Dense/linear.weight", "3_Dense/bias"}
    assert checkpoint["3_Dense/bias"].name == "3_Dense/bias"
    assert checkpoint.fingerprint != alone.fingerprint
    assert open_checkpoint("m", folder / "model.safetensors").keys() == alone.keys()
    (folder / "3_Dense" / "pytorch_model.bin").write_bytes(b"")
    assert refusal(folder).startswith(f"{folder}/3_Dense/pytorch_model.bin is empty")


# ---- reading


def values(dtype: torch.dtype, numel: int) -> Tensor:
    torch.manual_seed(0)
    if dtype is torch.bool:
        return torch.rand(numel) < 0.5
    if dtype.is_floating_point:
        return (100 * torch.randn(numel)).to(dtype)
    return torch.randint(0, 120, (numel,)).to(dtype)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "C64"])
def test_tiles_are_the_stored_values(dtype: str, tmp_path: Path) -> None:
    tensor = values(getattr(torch, DTYPES[dtype].torch), 997)
    path = tmp_path / "x.safetensors"
    save_file({"before": torch.zeros(3, dtype=torch.uint8), "x": tensor}, path)
    info = read_header(path).tensors["x"]
    expected = tensor.to(torch.float32)
    scratch = Scratch()
    with open_files() as files:
        stored = StoredTensor(files, info)
        assert torch.equal(read_all(files, info), expected)
        for start, stop in [(0, 997), (0, 1), (996, 997), (1, 2), (3, 700), (333, 334), (5, 5), (997, 997)]:
            out = torch.full((stop - start,), torch.nan)
            stored.read(start, stop, out, scratch)
            assert torch.equal(out, expected[start:stop])


def test_tiles_of_scalars_and_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"scalar": torch.tensor(2.5).half(), "none": torch.zeros(3, 0)}, path)
    header = read_header(path)
    with open_files() as files:
        assert read_all(files, header.tensors["scalar"]).item() == 2.5
        assert read_all(files, header.tensors["none"]).shape == (3, 0)


def test_special_values_survive(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensor = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0, 2.0**-133]).bfloat16()
    save_file({"x": tensor}, path)
    with open_files() as files:
        read = read_all(files, read_header(path).tensors["x"])
    assert torch.equal(read.view(torch.int32), tensor.float().view(torch.int32))


def test_bytes_read_counts_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"half": torch.zeros(100).half(), "full": torch.zeros(100)}, path)
    header = read_header(path)
    with open_files() as files:
        assert files.bytes_read == 0
        out = torch.empty(7)
        StoredTensor(files, header.tensors["half"]).read(1, 8, out, Scratch())
        assert files.bytes_read == 14
        StoredTensor(files, header.tensors["full"]).read(93, 100, out, Scratch())
        assert files.bytes_read == 14 + 28


def test_file_that_shrinks_after_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("x.safetensors")
    save_file({"x": torch.zeros(1000)}, path)
    info = read_header(path).tensors["x"]
    with open_files() as files:
        stored = StoredTensor(files, info)
        read_all(files, info)
        os.truncate(path, info.offset + 400)
        out = torch.empty(50)
        stored.read(0, 50, out, Scratch())
        with pytest.raises(CheckpointError) as caught:
            stored.read(80, 130, out, Scratch())
    assert str(caught.value) == (
        f"x.safetensors ends at byte {info.offset + 400:,}; "
        f"its data was wanted up to byte {info.offset + 520:,}\n"
        "  the file changed after it was opened; make it whole and run the command again"
    )


def test_file_that_vanishes_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("x.safetensors")
    save_file({"x": torch.zeros(10)}, path)
    info = read_header(path).tensors["x"]
    path.unlink()
    with (
        open_files() as files,
        pytest.raises(CheckpointError, match=r"^cannot read x.safetensors at byte \d+: No such file"),
    ):
        read_all(files, info)


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    tensor = torch.randn(100)
    save_file({"x": tensor}, path)
    info = read_header(path).tensors["x"]
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:33]], offset))
    with open_files() as files:
        assert torch.equal(read_all(files, info), tensor)
        assert files.bytes_read == 400


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    content = {f"t{i}": torch.randn(5000).to(torch.bfloat16) for i in range(8)}
    for name, tensor in content.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    infos = [read_header(tmp_path / f"{name}.safetensors").tensors[name] for name in content]
    descriptors = num_descriptors()
    with open_files() as files, ThreadPoolExecutor(8) as pool:

        def job(i: int) -> bool:
            info = infos[i % 8]
            start = (i * 37) % 4000
            out = torch.empty(1000)
            StoredTensor(files, info).read(start, start + 1000, out, Scratch())
            return torch.equal(out, content[info.name][start : start + 1000].float())

        assert all(pool.map(job, range(400)))
        assert files.bytes_read == 400 * 2000
        assert num_descriptors() <= descriptors + 8
    assert num_descriptors() == descriptors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int16, torch.bool, torch.float8_e5m2])
def test_scratch_of_nothing_is_of_every_type(dtype: torch.dtype) -> None:
    assert Scratch().take(0).view(dtype).numel() == 0


def test_scratch_is_reused_and_grows() -> None:
    scratch = Scratch()
    big = scratch.take(1000)
    assert scratch.take(10).data_ptr() == big.data_ptr()
    assert scratch.take(1000).data_ptr() == big.data_ptr()
    assert scratch.take(1001).numel() == 1001


def test_links_that_lead_nowhere_and_pointers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("m"))
    Path("m/model.safetensors").symlink_to("../blobs/gone")
    assert refusal(Path("m")).startswith("model 'm': m/model.safetensors is a link that leads nowhere\n")
    make(Path("n"))
    Path("n/model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert refusal(Path("n"), "n") == (
        "n/model.safetensors is a pointer of Git LFS, not the file itself\n  run 'git lfs pull' in its folder"
    )
    make(Path("o"))
    save_file({"x": torch.zeros(1)}, "o/model.safetensors")
    Path("o/config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert refusal(Path("o"), "o") == (
        "o/config.json is a pointer of Git LFS, not the file itself\n  run 'git lfs pull' in its folder"
    )


def test_links_in_a_circle_are_for_whoever_needs_them(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    make(folder)
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    whole = open_checkpoint("m", folder).fingerprint
    (folder / "notes.txt").symlink_to("more.txt")
    (folder / "more.txt").symlink_to("notes.txt")
    assert open_checkpoint("m", folder).fingerprint == whole
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")
    assert "model.safetensors" in refusal(folder)
