"""What lands on disk: exact bytes, files that come along, and what is never touched."""

from __future__ import annotations

import errno
import json
import re
import shutil
import socket
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

import tiny
from meldkit import merge
from meldkit.errors import OutputError, RunError
from meldkit.options import MergeOptions
from meldkit.output import PARTIAL
from meldkit.output.names import carried

PASSTHROUGH = {"merge_method": "passthrough", "models": [{"model": "a"}]}
LINEAR = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"weight": 1}}


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models a and b in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b")):
        tiny.decoder(tmp_path / name, seed)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def data_part(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


# bytes


def test_golden_bytes() -> None:
    for name, factor in (("a", 1), ("b", 3)):
        weights = {"z": torch.arange(3.0) * factor, "ids": torch.tensor([7, 8]), "é": torch.tensor([[0.5]])}
        tiny.stored(Path(name), weights)
    merge(LINEAR, "out")
    header = (
        '{"__metadata__":{"format":"pt"},"ids":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},'
        '"z":{"dtype":"F32","shape":[3],"data_offsets":[16,28]},'
        '"é":{"dtype":"F32","shape":[1,1],"data_offsets":[28,32]}}'
    ).encode()
    header += b" " * (4096 - 8 - len(header))
    expected = struct.pack("<Q", len(header)) + header + struct.pack("<2q4f", 7, 8, 0, 2, 4, 0.5)
    assert Path("out/model.safetensors").read_bytes() == expected


def test_data_is_laid_out_as_by_the_safetensors_library() -> None:
    generator = torch.Generator().manual_seed(1)
    dtypes = (
        torch.bfloat16,
        torch.float32,
        torch.float16,
        torch.float64,
        torch.uint8,
        torch.int64,
        torch.bool,
    )
    weights = {
        f"t{i}": (torch.rand(5, generator=generator) * 9).to(dtype)
        for i, dtype in enumerate((*dtypes, *dtypes))
    }
    tiny.stored(Path("a"), {**weights, "empty": torch.zeros(0, 3), "scalar": torch.tensor(1.5)})
    merge(PASSTHROUGH, "out")
    assert data_part(Path("out/model.safetensors")) == data_part(Path("a/model.safetensors"))
    with safe_open("out/model.safetensors", framework="pt") as f:
        assert f.metadata() == {"format": "pt"}
    for name, tensor in tiny.tensors(Path("a")).items():
        assert torch.equal(tiny.tensors(Path("out"))[name], tensor)


def test_casting_rounds_as_torch_does() -> None:
    merge({**PASSTHROUGH, "dtype": "bfloat16"}, "out")
    save_file({n: t.to(torch.bfloat16) for n, t in tiny.tensors(Path("a")).items()}, "cast.safetensors")
    assert data_part(Path("out/model.safetensors")) == data_part(Path("cast.safetensors"))


def test_shards_and_index() -> None:
    tiny.decoder(Path("a"), 1, layers=3)
    result = merge(PASSTHROUGH, "out", MergeOptions(out_shard_size="300"))
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    files = [
        f"model-{i + 1:05d}-of-{len(result.plan.files):05d}.safetensors"
        for i in range(len(result.plan.files))
    ]
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tiny.tensors(Path("a")).values())
    assert not Path("out/model.safetensors").exists()
    merged = tiny.tensors(Path("out"))
    assert all(torch.equal(merged[n], t) for n, t in tiny.tensors(Path("a")).items())
    for file in files:
        with safe_open(f"out/{file}", framework="pt") as f:
            assert all(index["weight_map"][name] == file for name in f.keys())  # noqa: SIM118 - not a mapping
            assert sum(f.get_tensor(n).nbytes for n in f.keys()) <= 300  # noqa: SIM118
    # The same weights in one file are the same weights.
    merge({"merge_method": "passthrough", "models": [{"model": "out"}]}, "one")
    assert all(torch.equal(t, merged[n]) for n, t in tiny.tensors(Path("one")).items())


# loading


def load(kind: str, folder: str) -> Any:
    """The model, after checking that every weight was found and none was left over."""
    import transformers

    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("make", "kind"),
    [(tiny.llama, "AutoModelForCausalLM"), (tiny.gpt2, "AutoModelForCausalLM"), (tiny.bert, "AutoModel")],
)
def test_transformers_loads_merges_and_frankenmerges(make: Any, kind: str) -> None:
    for seed, name in enumerate(("x", "y")):
        make(Path(name), seed)
    merge({**LINEAR, "models": [{"model": "x"}, {"model": "y"}]}, "out", MergeOptions(out_shard_size="40K"))
    assert Path("out/model.safetensors.index.json").exists()
    x, y, merged = load(kind, "x").state_dict(), load(kind, "y").state_dict(), load(kind, "out")
    for name, tensor in merged.state_dict().items():
        expected = (x[name] + y[name]) / 2 if tensor.is_floating_point() else x[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-7)
    slices = [{"sources": [{"model": m, "layer_range": r}]} for m, r in (("x", [0, 3]), ("y", [1, 3]))]
    merge({"merge_method": "passthrough", "slices": slices}, "stacked")
    stacked = load(kind, "stacked")
    assert stacked.config.num_hidden_layers == 5
    with torch.no_grad():
        output = stacked(torch.arange(6)[None])
    assert all(torch.isfinite(t).all() for t in output.values() if isinstance(t, torch.Tensor))


# files beside the weights


def test_recipe_and_record() -> None:
    result = merge(LINEAR, "out", MergeOptions(random_seed=5))
    record = json.loads(Path("out/meldkit.json").read_text())
    assert record["plan"] == result.plan.digest()
    assert record["seed"] == 5
    assert [model["model"] for model in record["models"]] == ["a", "b"]
    again = merge("out/meldkit.yml", "again", MergeOptions(random_seed=5))
    assert again.plan.digest() == result.plan.digest()
    assert content(Path("again"))["model.safetensors"] == content(Path("out"))["model.safetensors"]


DONATED = {
    "tokenizer.json": "{}",
    "tokenizer.model": "x",
    "tokenizer_config.json": "{}",
    "special_tokens_map.json": "{}",
    "added_tokens.json": "{}",
    "vocab.txt": "x",
    "merges.txt": "x",
    "chat_template.jinja": "{{ x }}",
    "additional_chat_templates/tool.jinja": "x",
    "generation_config.json": '{"top_k": 1}',
    "preprocessor_config.json": "{}",
    "modeling_custom.py": "x = 1",
    "LICENSE": "free",
    "Notice.txt": "x",
    "modules.json": '[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "3_More"}, 3]',
    "1_Pooling/config.json": "{}",
    "2_Dense/config.json": "{}",
    "3_More/weights.pt": "something of its own",
}
NOT_CARRIED = {
    "README.md": "old",
    "meldkit.yml": "old",
    "meldkit.json": "{}",
    "model.safetensors.index.json.bak": "x",
    "pytorch_model.bin": "x",
    "pytorch_model.bin.index.json": "{}",
    "training_args.bin": "x",
    "trainer_state.json": "{}",
    "all_results.json": "{}",
    "adapter_config.json": "{}",
    "adapter_model.safetensors": "x",
    ".git/config.json": "{}",
    ".hidden.json": "{}",
    "onnx/config.json": "{}",
    "onnx/model.onnx": "x",
    "original/params.json": "{}",
    "original/consolidated.00.pth": "x",
    "checkpoint-500/config.json": "{}",
    "checkpoint-500/trainer_state.json": "{}",
    "photo.png": "x",
}


def donate() -> None:
    for name, text in {**DONATED, **NOT_CARRIED}.items():
        path = Path("a") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


DENSE = json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}])


def sentence_transformers() -> None:
    """Make models a and b encoders with a layer of their own on top."""
    for value, name in ((1.0, "a"), (2.0, "b")):
        weights = {"linear.weight": torch.full((2, 3), value), "linear.bias": torch.full((2,), value)}
        tiny.stored(Path(name, "2_Dense"), weights, {"in_features": 3, "of": name})
        Path(name, "modules.json").write_text(DENSE)
        Path(name, "2_Dense", "pytorch_model.bin").write_text("the same in another format")


def test_parts_are_merged_too() -> None:
    sentence_transformers()
    plan = merge(LINEAR, "out").plan
    assert [file.name for file in plan.files] == ["model.safetensors", "2_Dense/model.safetensors"]
    dense = tiny.tensors(Path("out/2_Dense"))
    assert dense.keys() == {"linear.weight", "linear.bias"}
    assert all((tensor == 1.5).all() for tensor in dense.values())
    assert tiny.tensors(Path("out")).keys() == tiny.tensors(Path("a")).keys()
    assert {p.name for p in Path("out/2_Dense").iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads(Path("out/2_Dense/config.json").read_text())["of"] == "a"
    merge({"merge_method": "passthrough", "models": [{"model": "out"}]}, "again")
    assert (
        content(Path("again"))["2_Dense/model.safetensors"]
        == content(Path("out"))["2_Dense/model.safetensors"]
    )


def test_parts_in_several_files() -> None:
    sentence_transformers()
    merge(LINEAR, "out", MergeOptions(out_shard_size="24"))
    index = json.loads(Path("out/2_Dense/model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 32}
    assert (
        "2_Dense/linear.bias"
        not in json.loads(Path("out/model.safetensors.index.json").read_text())["weight_map"]
    )
    merge({"merge_method": "passthrough", "models": [{"model": "out"}]}, "one")
    assert all((tensor == 1.5).all() for tensor in tiny.tensors(Path("one/2_Dense")).values())


def test_parts_that_only_one_model_has() -> None:
    sentence_transformers()
    Path("b/modules.json").unlink()
    assert merge({**LINEAR, "base_model": "a"}, "out").plan.notes == (
        "2_Dense/linear.bias: copied from 'a'; missing in 'b'",
        "2_Dense/linear.weight: copied from 'a'; missing in 'b'",
    )
    assert all((tensor == 1).all() for tensor in tiny.tensors(Path("out/2_Dense")).values())


def test_interrupted_merges_of_parts_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    import meldkit.api as api

    sentence_transformers()
    real = api.run_jobs

    def stop(jobs: Any, *args: Any, **options: Any) -> None:
        real(jobs[-1:], *args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "run_jobs", stop)
    with pytest.raises(KeyboardInterrupt):
        merge(LINEAR, "out")
    monkeypatch.setattr(api, "run_jobs", real)
    assert merge(LINEAR, "out").num_resumed == 1
    assert all((tensor == 1.5).all() for tensor in tiny.tensors(Path("out/2_Dense")).values())


def test_donors_files_come_along_and_others_do_not() -> None:
    donate()
    merge(PASSTHROUGH, "out")
    written = content(Path("out"))
    own = {"model.safetensors", "config.json", "README.md", "meldkit.yml", "meldkit.json"}
    assert set(written) == own | set(DONATED)
    assert all(written[name].decode() == text for name, text in DONATED.items())


def test_no_copy_tokenizer_leaves_the_rest() -> None:
    donate()
    merge(PASSTHROUGH, "out", MergeOptions(copy_tokenizer=False, write_model_card=False))
    left = {"tokenizer", "special", "added", "vocab", "merges", "chat", "additional", "README"}
    assert not [name for name in content(Path("out")) if name.startswith(tuple(left))]
    assert Path("out/generation_config.json").exists()
    assert Path("out/modeling_custom.py").exists()


def test_a_lone_weight_file_brings_nothing_of_its_folder_along(models: Path) -> None:
    shutil.move("a/model.safetensors", "weights.safetensors")
    Path("secrets.json").write_text("{}")
    assert list(carried(models, copy_tokenizer=True)) == []
    result = merge({"merge_method": "passthrough", "models": [{"model": "weights.safetensors"}]}, "out")
    assert result.plan.config is None
    assert set(content(Path("out"))) == {"model.safetensors", "README.md", "meldkit.yml", "meldkit.json"}


# the card


def card(folder: str) -> tuple[dict[str, Any], str]:
    _, front, body = Path(folder, "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_card_does_not_call_a_hash_of_headers_one_of_weights() -> None:
    """Models of one architecture have the same, however they were trained."""
    merge(LINEAR, "out")
    body = Path("out/README.md").read_text()
    rows = [line.split("|") for line in body.splitlines() if line.startswith("| ")]
    assert rows[0][3].strip() == "hash of names, shapes and types, not of values"
    assert rows[1][3] == rows[2][3]


def test_card_says_what_was_merged_from_what(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        pytest.fail("the card asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    result = merge(LINEAR, "out")
    front, body = card("out")
    assert front == {"library_name": "transformers", "tags": ["merge", "meldkit"]}
    assert body.lstrip().startswith("# out\n")
    for checkpoint in result.plan.checkpoints:
        assert f"| `{checkpoint.label}` | 9 | `{checkpoint.fingerprint[:16]}` |" in body
    assert "https://arxiv.org/abs/2203.05482" in body
    assert yaml.safe_load(re.findall(r"```yaml\n(.*?)\n```", body, re.DOTALL)[0])["merge_method"] == "linear"


def test_card_names_hub_models(monkeypatch: pytest.MonkeyPatch) -> None:
    import meldkit.checkpoint.models as hub

    monkeypatch.setattr(hub._Search, "_from_hub", lambda _, repo, *__: Path(repo.split("/")[1]).absolute())
    merge({**LINEAR, "models": [{"model": "org/a@main"}, {"model": "org/b"}, {"model": "org/a"}]}, "out")
    assert card("out")[0]["base_model"] == ["org/a", "org/b"]


def test_hostile_names_stay_text() -> None:
    hostile = "a`|b\n---\n# x"
    shutil.copytree("a", hostile)
    recipe = {**PASSTHROUGH, "models": [{"model": {"model": {"path": hostile}}}], "name": "```\n</script>"}
    merge(recipe, "<b>out*")
    front, body = card("<b>out*")
    assert front["tags"] == ["merge", "meldkit"]
    assert body.lstrip().startswith("# \\<b\\>out\\*\n")
    assert "| `a'\\|b --- # x` | 9 |" in body
    fence = re.findall(r"^(`+)yaml$", body, re.MULTILINE)
    assert fence == ["````"]
    assert body.rstrip().endswith("\n````")


# folders that hold something


def test_folder_with_something_else_is_refused_and_left_alone() -> None:
    Path("out").mkdir()
    for name in "abcd":
        Path("out", name).write_text(name)
    with pytest.raises(OutputError) as caught:
        merge(PASSTHROUGH, "out")
    assert str(caught.value) == (
        "out is not empty: it has a, b, c …\n  name a new folder, or add --overwrite to replace what is there"
    )
    assert content(Path("out")) == {name: name.encode() for name in "abcd"}


def test_empty_folder_is_used() -> None:
    Path("out").mkdir()
    merge(PASSTHROUGH, "out")
    assert Path("out/model.safetensors").exists()


def test_overwrite_leaves_nothing_of_the_old_model() -> None:
    donate()
    merge(PASSTHROUGH, "out", MergeOptions(out_shard_size="300"))
    Path("out/pytorch_model.bin").write_text("old")
    Path("out/adapter_config.json").write_text("{}")
    Path("out/notes.md").write_text("mine")
    assert Path("out/additional_chat_templates").is_dir()
    merge({**PASSTHROUGH, "models": [{"model": "b"}]}, "out", MergeOptions(overwrite=True))
    left = set(content(Path("out")))
    assert {
        "model.safetensors",
        "config.json",
        "README.md",
        "meldkit.yml",
        "meldkit.json",
        "notes.md",
    } <= left
    assert not [
        n for n in left if n.startswith(("tokenizer", "vocab", "chat_template.", "model-", "pytorch"))
    ]
    assert not left & {"model.safetensors.index.json", "generation_config.json", "modules.json"}
    # transformers would take these for the new model's.
    assert not left & {"additional_chat_templates/tool.jinja", "adapter_config.json"}
    assert tiny.tensors(Path("out"))["model.norm.weight"].equal(tiny.tensors(Path("b"))["model.norm.weight"])


def test_overwrite_replaces_a_link_and_not_what_it_points_to() -> None:
    Path("out").mkdir()
    for name in ("config.json", "model.safetensors"):
        Path("out", name).symlink_to(Path("b", name).absolute())
    before = content(Path("b"))
    merge(PASSTHROUGH, "out", MergeOptions(overwrite=True))
    assert content(Path("b")) == before
    assert not Path("out/model.safetensors").is_symlink()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("out", "relation"),
    [("a", "is"), ("a/merged", "is inside"), (".", "contains"), ("link/../a/./", "is"), ("lora", "is")],
)
def test_inputs_are_never_written_to(out: str, relation: str, overwrite: bool) -> None:
    Path("link").symlink_to("b")
    tiny.adapter(Path("lora"), {"model.layers.0.self_attn.q_proj": (4, 4)})
    before = content(Path())
    with pytest.raises(OutputError, match=f"{relation} the folder of the input|is not empty"):
        merge({**PASSTHROUGH, "models": [{"model": "a+lora"}]}, out, MergeOptions(overwrite=overwrite))
    assert content(Path()) == before
    assert not list(Path().rglob(PARTIAL))


def test_folder_that_holds_the_files_an_input_links_to_is_refused() -> None:
    shutil.move("a/model.safetensors", "b/a.safetensors")
    Path("a/model.safetensors").symlink_to(Path("b/a.safetensors").absolute())
    with pytest.raises(OutputError, match="b is the folder of the input 'a'"):
        merge(PASSTHROUGH, "b", MergeOptions(overwrite=True))


# disks


def test_too_small_a_disk_is_noticed_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree("a")
    tiny.stored(Path("a"), {"w": torch.zeros(81, 250_000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, free=80_000_000))
    with pytest.raises(RunError) as caught:
        merge(PASSTHROUGH, "new/out")
    assert str(caught.value) == (
        "the output needs 81 MB, the disk of new/out has 80 MB free\n"
        "  free some space, or name a folder on another disk"
    )
    assert not Path("new").exists()


def test_files_that_are_copied_need_space_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("a/tokenizer.json").open("wb") as file:
        file.truncate(81_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, free=80_000_000))
    with pytest.raises(RunError, match=r"the output needs 81 MB, the disk of out has 80 MB free"):
        merge(PASSTHROUGH, "out")
    assert not Path("out").exists()


@pytest.mark.parametrize("out", ["file", "file/out", "x" * 300])
def test_folder_that_cannot_be_made(out: str) -> None:
    Path("file").touch()
    with pytest.raises(OutputError) as caught:
        merge(PASSTHROUGH, out)
    assert out in str(caught.value)


def test_folder_without_permission() -> None:
    """Where not even root may make one; such a file system has no space, either."""
    with pytest.raises(OutputError, match="cannot write to /proc/merged"):
        merge(PASSTHROUGH, "/proc/merged")


def test_side_file_that_cannot_be_read_is_an_error_and_not_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object, target: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(target))

    monkeypatch.setattr(shutil, "copyfile", fails)
    Path("a/special_tokens_map.json").write_text("{}")
    with pytest.raises(RunError, match="cannot copy or write"):
        merge(PASSTHROUGH, "out")
    assert [p.name for p in Path("out").iterdir()] == [PARTIAL]


def test_never_publishes_what_was_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    import meldkit.api as api

    monkeypatch.setattr(api, "run_jobs", lambda *_args, **_options: None)
    with pytest.raises(RunError, match=r"9 tensors were not written, the first is 'lm_head\.weight'"):
        merge(PASSTHROUGH, "out")
    assert [p.name for p in Path("out").iterdir()] == [PARTIAL]


def test_values_that_the_dtype_cannot_hold_are_an_error() -> None:
    tiny.decoder(
        Path("a"), 1, without=("model.norm.weight",), extra={"model.norm.weight": torch.full((4,), 1e6)}
    )
    with pytest.raises(RunError, match=r"tensor 'model\.norm\.weight' .* which float16 cannot hold"):
        merge({**PASSTHROUGH, "dtype": "float16"}, "out")
    assert [p.name for p in Path("out").iterdir()] == [PARTIAL]
