"""The same merge gives the same bytes, whatever is not part of the recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import command
import killed
import same_bytes
import tiny
from meldkit import kernels, merge, plan
from meldkit.kernels import library
from meldkit.methods import METHODS, source_of
from meldkit.options import MergeOptions
from meldkit.output import Sum, sample_of, sum_of
from meldkit.output.sums import intact
from meldkit.report import verify_output
from meldkit.tools.reproduce import reproduce

#: Surroundings that must not matter.
SURROUNDINGS: dict[str, dict[str, str]] = {
    "hash seed 0, C locale": {"PYTHONHASHSEED": "0", "LC_ALL": "C", "OMP_NUM_THREADS": "1"},
    "hash seed 1": {"PYTHONHASHSEED": "1", "LC_ALL": "C.UTF-8", "TZ": "Asia/Kathmandu"},
    "hash seed random": {"PYTHONHASHSEED": "random", "OMP_NUM_THREADS": "2"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    same_bytes.write_models(folder)
    return folder


def child(folder: Path, models: Path, names: list[str], **variables: str) -> dict[str, dict[str, str]]:
    """The sums of merges in a process of its own, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    script = Path(same_bytes.__file__)
    done = subprocess.run(
        [sys.executable, script, models, *names],
        cwd=folder,
        env={**os.environ, **variables},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)["sums"]


@pytest.mark.parametrize("name", METHODS)
def test_no_way_changes_a_byte(name: str, models: Path, tmp_path: Path) -> None:
    case = same_bytes.usual(name)
    want = same_bytes.streamed(case, models / "whole", tmp_path / "out")
    assert len(set(want.values())) == len(same_bytes.SHAPES)
    got = {way: run(case, models, tmp_path / "out") for way, run in same_bytes.WAYS.items()}
    assert {way: sums == want for way, sums in got.items()} == dict.fromkeys(got, True)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    killed.make_models(folder)
    return folder


@pytest.mark.parametrize("name", killed.RECIPES)
def test_no_way_changes_a_byte_of_any_kind_of_merge(name: str, kinds: Path, tmp_path: Path) -> None:
    case = same_bytes.Kind(name)
    want = same_bytes.streamed(case, kinds, tmp_path / "out")
    assert len(want) > 5
    got = {way: run(case, kinds, tmp_path / "out") for way, run in same_bytes.RUNS.items()}
    assert {way: sums == want for way, sums in got.items()} == dict.fromkeys(got, True)


@pytest.mark.parametrize(
    "surroundings",
    [pytest.param(name, marks=pytest.mark.slow) if "1" in name else name for name in SURROUNDINGS],
)
def test_no_process_changes_a_byte(surroundings: str, models: Path, tmp_path: Path) -> None:
    got = child(tmp_path / "elsewhere", models, list(METHODS), **SURROUNDINGS[surroundings])
    want = {
        name: same_bytes.streamed(same_bytes.usual(name), models / "whole", tmp_path / "out")
        for name in METHODS
    }
    assert got == want


# verify and reproduce


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A merge of `a` and `b` in the current folder, in three weight files."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        tiny.decoder(tmp_path / name, seed)
    merge(RECIPE, "out", MergeOptions(out_shard_size="400"))
    return Path("out")


RECIPE = {
    "merge_method": "dare_ties",
    "base_model": "base",
    "models": [{"model": "a"}, {"model": "b"}],
    "parameters": {"weight": 1, "density": 0.5},
}


def test_verify_says_that_all_is_well(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = command.run(capsys, "verify", out)
    assert (done.status, done.out) == (
        0,
        "out is what its merge has written: 9 tensors in 5 files, 10 kB, every byte\n",
    )


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_every_flipped_bit_of_a_weight_file_is_found(out: Path) -> None:
    path = sorted(out.glob("*.safetensors"))[0]
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    for position in (0, 9, header - 1, *range(header, path.stat().st_size)):
        flip(path, position)
        (damage,) = verify_output(out).damage
        assert (damage.kind, damage.file) == ("bytes" if position >= header else "header", path.name)
        flip(path, position)
    assert verify_output(out).damage == ()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f: (f / "config.json").write_text("{}"), "config.json was changed after the merge"),
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (
            lambda f: (f / "pytorch_model.bin").touch(),
            "pytorch_model.bin is not of this merge, and readers may take it",
        ),
        (
            lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
            "config.json is a folder, not a file",
        ),
        (
            lambda f: ((f / "config.json").unlink(), os.mkfifo(f / "config.json")),
            "config.json is not a file",
        ),
        (
            lambda f: ((f / "config.json").unlink(), (f / "config.json").symlink_to("gone")),
            "config.json is a link that leads nowhere",
        ),
        (
            lambda f: flip(next(f.glob("*-00001-*")), -1),
            "model-00001-of-00002.safetensors: tensor\n    'model.layers.0.self_attn.q_proj.weight' "
            "(F32 [4, 4]) has other bytes than\n    were written",
        ),
    ],
)
def test_verify_names_what_is_wrong(
    out: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], text: str
) -> None:
    damage(out)
    done = command.run(capsys, "verify", out)
    assert (done.status, done.out) == (3, f"out is not what was written:\n  {text}\n")
    data = json.loads(command.run(capsys, "verify", out, "--json").out)
    assert not data["ok"]
    assert len(data["damage"]) == 1


def test_verify_of_a_file_that_was_cut_off(out: Path) -> None:
    path = next(out.glob("*-00001-*"))
    os.truncate(path, path.stat().st_size - 5)
    assert [(d.kind, d.tensor) for d in verify_output(out).damage] == [
        ("size", ""),
        ("bytes", "model.layers.0.self_attn.q_proj.weight"),
    ]


def test_verify_lets_the_card_and_hidden_files_be(out: Path) -> None:
    (out / "README.md").write_text("edited")
    (out / ".gitattributes").touch()
    names = ("eval/eval_results.json", "notes.txt", "plot.png")
    (out / "eval").mkdir()
    for name in names:
        (out / name).touch()
    check = verify_output(out)
    assert (check.damage, check.extra) == ((), names)


@pytest.mark.parametrize(
    "name",
    [
        *("adapter_config.json", "tf_model.h5", "flax_model.msgpack", "consolidated.00.pth"),
        *("onnx/model.onnx", "additional_chat_templates/tool.jinja", "custom_generate/generate.py"),
        *("custom_generate/requirements.txt", "modeling_x.py", "params.json", "chat_template.jinja"),
        *("vocab.txt", "tokenizer.model", "video_preprocessor_config.json", "hf_quant_config.json"),
        *("1_Pooling/config.json", "normalizer.json"),
    ],
)
def test_verify_names_what_readers_take_because_it_is_there(out: Path, name: str) -> None:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).touch()
    (damage,) = verify_output(out).damage
    assert (damage.kind, damage.file) == ("extra", name)
    # Nor must it be a file: who opens it would wait for ever.
    (out / name).unlink()
    os.mkfifo(out / name)
    assert verify_output(out).damage == (damage,)


def test_verify_of_a_copy_without_the_record(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "meldkit.json").unlink()
    done = command.run(capsys, "verify", out)
    assert (done.status, done.out.splitlines()[:3]) == (
        3,
        [
            "out is damaged:",
            "  meldkit.json is missing, which the merge has written beside meldkit.yml: the",
            "    copy is incomplete",
        ],
    )
    data = json.loads(command.run(capsys, "verify", out, "--json").out)
    assert (data["ok"], data["recorded"]) == (False, False)


@pytest.mark.parametrize("name", ["verify", "reproduce"])
def test_record_that_is_no_file(out: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "meldkit.json").unlink()
    os.mkfifo(out / "meldkit.json")
    done = command.run(capsys, name, out)
    assert (done.status, done.err) == (
        3,
        "error: out/meldkit.json is not a file\n  get it again from where the model came from\n",
    )


@pytest.mark.parametrize("name", ["verify", "reproduce"])
def test_names_that_are_no_merged_models(out: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = command.run(capsys, name, "nosuch")
    assert (done.status, done.err) == (
        3,
        "error: cannot look into nosuch: No such file or directory\n"
        "  name a folder that 'meldkit merge' has written\n",
    )
    done = command.run(capsys, name, out / "meldkit.yml")
    assert (done.status, done.err.splitlines()[0]) == (
        2,
        "error: 'out/meldkit.yml' is a recipe, not a merged model",
    )
    assert done.err.splitlines()[1].endswith(" OUT")


def test_verify_without_a_record(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del out
    done = command.run(capsys, "verify", "a")
    assert done.status == 0
    assert done.out.startswith("a has sound headers: 9 tensors in 1 file, 1 kB\n")
    config = json.loads(Path("a/config.json").read_text())
    Path("a/config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert command.run(capsys, "verify", "a").status == 3


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"format": 1, "weights": {"x": 3}}', '{"format": 1, "weights": {}}']
)
def test_a_record_that_is_none(out: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (out / "meldkit.json").write_text(text)
    for name in ("verify", "reproduce"):
        assert command.run(capsys, name, out).status == 3


def test_record_holds_no_path_of_this_machine(out: Path, tmp_path: Path) -> None:
    assert str(tmp_path) not in (out / "meldkit.json").read_text()


def test_reproduce(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(p.name for p in Path().iterdir())
    done = command.run(capsys, "reproduce", out)
    assert (done.status, done.out) == (0, "out comes out the same: 9 tensors, every byte\n")
    assert sorted(p.name for p in Path().iterdir()) == before


def test_reproduce_with_models_elsewhere(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("models").mkdir()
    for name in ("a", "base"):
        Path(name).rename(Path("models", name))
    Path("b").rename("c")
    done = command.run(capsys, "reproduce", out, "--models", "models")
    assert done.status == 3
    assert done.err.startswith("error: model 'b' does not exist")
    assert "--models and --model say where models are now" in done.err
    assert command.run(capsys, "reproduce", out, "--models", "models", "--model", "b=c").status == 0


def test_reproduce_with_other_values(out: Path) -> None:
    tiny.decoder(Path("b"), 7)
    result = reproduce(out)
    assert result.inputs == ("'b' has other bytes in model.safetensors than it had",)
    assert result.num_tensors == 0


def test_reproduce_with_a_value_between_the_samples(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del out
    tiny.decoder(Path("large"), 0, hidden=300)
    merge({"merge_method": "linear", "models": [{"model": "large"}], "parameters": {"weight": 1}}, "whole")
    path = Path("large/model.safetensors")
    before = sample_of(path)
    # Pieces of 512 bytes, spread over more than twice as many: somewhere in between is room.
    assert path.stat().st_size > 2 * 1024 * 512
    flip(path, path.stat().st_size // 2 + 4 * 512)
    assert sample_of(path) == before
    done = command.run(capsys, "reproduce", "whole")
    assert done.status == 3
    assert done.out.splitlines()[-2:] == [
        "headers and samples of all weights are as they were; values between the samples",
        "    may not be",
    ]


@given(size=st.integers(1, 3 * 1024 * 512), place=st.floats(0, 1, exclude_max=True))
def test_samples_cover_what_they_say(size: int, place: float) -> None:
    """Every byte of a small file, and of a large one the first and the last piece and one in so many."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(bytes(size))
        before = sample_of(path)
        position = int(place * size)
        flip(path, position)
        noticed = sample_of(path) != before
        assert noticed or 512 <= position < size - 512
        assert noticed or size > 1024 * 512
        path.write_bytes(b"\1" * size)
        assert sample_of(path) != before


def test_records_without_samples_are_read(out: Path) -> None:
    record = json.loads((out / "meldkit.json").read_text())
    for model in record["models"]:
        for file in model["files"]:
            del file["sample"]
    (out / "meldkit.json").write_text(json.dumps(record))
    assert reproduce(out).same
    tiny.decoder(Path("b"), 7)
    assert [d.kind for d in reproduce(out).differences] == ["bytes"] * 9


def test_reproduce_with_another_model(out: Path) -> None:
    tiny.decoder(Path("b"), 2, extra={"more": torch.zeros(2)})
    size = Path("b/model.safetensors").stat().st_size
    result = reproduce(out)
    assert result.inputs == (f"'b' has model.safetensors of {size:,} bytes, it had 1,448",)
    assert result.num_tensors == 0


def test_reproduce_says_what_else_is_other(out: Path) -> None:
    record = json.loads((out / "meldkit.json").read_text())
    record["made_with"]["torch"] = "1.0"
    record["meldkit"] = "0.0.1"
    record["seed"] = 5
    (out / "meldkit.json").write_text(json.dumps(record))
    result = reproduce(out)
    assert [line.partition(", it was ")[2] for line in result.surroundings] == ["0.0.1", "1.0"]
    assert {d.kind for d in result.differences} == {"bytes"}


PLUGIN = '''
from meldkit.methods.base import Elementwise


def first(x):
    """The first model."""
    return x[0].clone()


METHOD = Elementwise(name="first", function=first)
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "plugin.py"
    path.write_text(PLUGIN)
    with mock.patch.dict(METHODS):
        yield path


def test_reproduce_with_a_plugin(
    out: Path, plugin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del out
    recipe = {"merge_method": "first", "models": [{"model": "a"}, {"model": "b"}]}
    merge(recipe, "own", MergeOptions(plugin=(str(plugin),)))
    assert str(tmp_path) not in Path("own/meldkit.json").read_text()
    done = command.run(capsys, "reproduce", "own")
    text = "error: the merge used 1 plugin, 0 are given\n  name it: --plugin plugin.py\n"
    assert (done.status, done.err) == (2, text)
    assert command.run(capsys, "reproduce", "own", "--plugin", plugin).status == 0
    assert source_of(METHODS["first"]) == sha256(plugin.read_bytes()).hexdigest()
    plugin.write_text(PLUGIN + "\n")
    result = reproduce("own", plugin=[str(plugin)])
    assert result.surroundings == (f"plugin {plugin} is not the plugin.py that it was",)
    assert result.same


# sums of tensors


def by_definition(data: bytes) -> Sum:
    words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").tolist()
    return Sum(sum(words) % 2**64, sum(i * word for i, word in enumerate(words)) % 2**64)


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=4), compiled=st.booleans())
def test_sum_of_pieces(data: bytes, cuts: list[int], compiled: bool) -> None:
    functions = library.FUNCTIONS if compiled else None
    total = Sum()
    with mock.patch.object(library, "FUNCTIONS", functions):
        for start, stop in pairwise(sorted({0, len(data), *(min(c, len(data)) for c in cuts)})):
            total += sum_of(data[start:stop], start)
    assert total == by_definition(data)


def test_sums_of_what_was_finished_and_is_whole(out: Path) -> None:
    chosen = plan(RECIPE, MergeOptions(out_shard_size="400"))
    record = json.loads((out / "meldkit.json").read_text())
    done = {name: (text,) for file in record["weights"].values() for name, text in file["sums"].items()}
    sums = {name: tuple(map(str, each)) for name, each in intact(out, chosen, done).items()}
    assert sums == done
    job = chosen.jobs[-1]
    with (out / chosen.files[job.file].name).open("rb+") as file:
        file.truncate(job.offset + job.nbytes - 1)
    assert intact(out, chosen, done).keys() == done.keys() - {job.name}
    (out / chosen.files[job.file].name).unlink()
    gone = {other.name for other in chosen.jobs if other.file == job.file}
    assert intact(out, chosen, done).keys() == done.keys() - gone


def test_sums_of_many_words() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, 2**20 + 77, dtype=np.uint32)
    want = by_definition(words.tobytes())
    for functions in (library.FUNCTIONS, None):
        with mock.patch.object(library, "FUNCTIONS", functions):
            assert kernels.word_sums(words) == (want.words, want.weighted)
