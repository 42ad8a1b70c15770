"""Records of merges come with models: whatever they say ends in an answer or a message, and runs nothing."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import command
import tiny
import word_tokenizers
from meldkit.api import MergeOptions, merge
from meldkit.errors import CheckpointError, MeldError, RecipeError
from meldkit.recipe import ModelRef, mentions, recipe_from_data
from meldkit.report import verify_output
from meldkit.tools.located import Located
from meldkit.tools.reproduce import reproduce

RECIPE = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"weight": 1}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a merge of `a` and `b` in `out`, in several weight files."""
    folder = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("a", "b")):
        tiny.decoder(folder / name, seed)
    recipe = {**RECIPE, "models": [{"model": str(folder / name)} for name in ("a", "b")]}
    merge(recipe, folder / "out", MergeOptions(out_shard_size="400"))
    return folder


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in the current folder, by relative names."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b")):
        tiny.decoder(tmp_path / name, seed)
    merge(RECIPE, "out", MergeOptions(out_shard_size="400"))
    return Path("out")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the record of an output."""
    path = folder / "meldkit.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


# damage

_GONE = object()
JUNK = (_GONE, None, True, -1, 1.5, float("inf"), 2**70, "", "x", "../x", "\ud800", [], [0], {}, {"x": None})


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where a record has anything."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def damaged(record: dict[str, Any], path: tuple[str | int, ...], junk: object) -> dict[str, Any]:
    """The record with something else, or nothing, in one place."""
    record = copy.deepcopy(record)
    inner: Any = record
    for key in path[:-1]:
        inner = inner[key]
    if junk is _GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = junk
    return record


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_is_an_answer_or_a_message(
    made: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    record = json.loads((made / "out" / "meldkit.json").read_text())
    where = data.draw(st.sampled_from(sorted(places(record), key=str)))
    junk = data.draw(st.sampled_from(JUNK))
    folder = tmp_path_factory.mktemp("damaged") / "out"
    shutil.copytree(made / "out", folder)
    (folder / "meldkit.json").write_text(json.dumps(damaged(record, where, junk)))
    for answer in (verify_output, reproduce):
        with suppress(MeldError):
            answer(folder)


@pytest.mark.parametrize("kind", ["files", "weights"])
@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "", "a/../../secret"])
def test_nothing_outside_is_looked_at(out: Path, kind: str, name: str) -> None:
    Path("secret").write_text("secret")

    def add(record: dict[str, Any]) -> None:
        record[kind][name] = next(iter(record[kind].values()))

    edit(out, add)
    with pytest.raises(CheckpointError, match="tells of a file"):
        verify_output(out)


def test_tensor_that_the_file_has_not(out: Path) -> None:
    edit(out, lambda r: next(iter(r["weights"].values()))["sums"].update(more="0" * 32))
    (damage,) = verify_output(out).damage
    assert damage.text == "model-00001-of-00002.safetensors has no tensor 'more'"


@pytest.mark.parametrize("left", [0, 1])
def test_a_record_has_the_sum_of_every_tensor(out: Path, left: int) -> None:
    """Nothing would be known of the values of a tensor without one."""

    def take(record: dict[str, Any]) -> None:
        sums = next(iter(record["weights"].values()))["sums"]
        for name in list(sums)[left:]:
            del sums[name]

    edit(out, take)
    with pytest.raises(CheckpointError, match=r"not a whole record: it has no sum of tensor '.+' of model-0"):
        verify_output(out)
    assert {d.kind for d in reproduce(out).differences} == {"extra"}


# trust


def test_record_does_not_say_what_code_is_trusted(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(out, lambda r: r["options"].update(trust_remote_code=True))
    done = command.run(capsys, "reproduce", out)
    assert (done.status, done.out, done.err) == (
        2,
        "",
        "error: the merge let code in the models' folders read their tokenizers\n"
        "  if you trust that code, allow it with --trust-remote-code\n",
    )
    assert command.run(capsys, "reproduce", out, "--trust-remote-code").status == 0
    with pytest.raises(RecipeError):
        reproduce(out)


# where models are, and how the merge is run


def test_models_that_the_recipe_has_not(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, hint in (("nosuch", "known: a, b"), ("aa", "did you mean 'a'?")):
        done = command.run(capsys, "reproduce", out, "--model", f"{name}=b")
        assert (done.status, done.err) == (
            2,
            f"error: --model {name}=b: the recipe has no model '{name}'\n  {hint}\n",
        )
    done = command.run(capsys, "reproduce", out, "--models", "a/config.json")
    assert (done.status, done.err) == (
        2,
        "error: --models a/config.json is no folder\n  name one that holds models\n",
    )


@pytest.mark.parametrize("name", ["a", "./a", "a/", ".//a"])
def test_paths_of_models_however_they_are_written(out: Path, name: str) -> None:
    Path("a").rename("c")
    assert reproduce(out, moved={name: "c"}).same


def test_models_of_tokens_and_adapters_may_have_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = word_tokenizers.content({"u": 0, "v": 1, "w": 2})
    for name in ("one", "two", "three", "four"):
        word_tokenizers.model(Path(name), words)
    tiny.adapter(Path("lora"), {"model.layers.0.self_attn.q_proj": (4, 4)})
    tokens = {
        "v": {"source": "four"},
        "w": {"source": {"kind": "model_token", "model": "four", "token": "u"}},
    }
    recipe = {
        **RECIPE,
        "models": [{"model": "one+lora"}, {"model": "two"}],
        "tokenizer": {"source": "model:three", "tokens": tokens},
    }
    refs = list(mentions(recipe_from_data(recipe)))
    located = Located(refs, {"models": []}, [], dict.fromkeys(MOVED, "x"))
    assert str(located(ModelRef.parse("one+lora"))) == "x+x"


MOVED = ("one", "lora", "two", "three", "four")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"foo": 1}, "it has an option 'foo', which is not known"),
        ({"num_threads": 1}, "it has an option 'num_threads', which is not known"),
        ({"out_shard_size": -1}, "out_shard_size is -1"),
        ({"out_shard_size": True}, "out_shard_size is True"),
        ({"out_shard_size": "5B"}, "out_shard_size is '5B'"),
        ({"allow_crop": 1}, "allow_crop is 1"),
    ],
)
def test_options_of_no_merge(
    out: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], problem: str
) -> None:
    edit(out, lambda r: r["options"].update(options))
    done = command.run(capsys, "reproduce", out)
    assert (done.status, done.err.splitlines()[0]) == (
        3,
        f"error: out/meldkit.json is not a whole record: {problem}",
    )


def test_options_of_this_run_are_not_the_records(out: Path) -> None:
    with pytest.raises(RecipeError, match="num_threads is 0"):
        reproduce(out, threads=0)


def test_single_files_have_no_record(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del out
    done = command.run(capsys, "verify", "a/model.safetensors")
    assert done.status == 0
    assert "a single file has no record of a merge (meldkit.json)" in " ".join(done.out.split())
    done = command.run(capsys, "reproduce", "a/model.safetensors")
    assert (done.status, done.err.splitlines()[1]) == (
        3,
        "  single files have none; 'meldkit merge' and 'meldkit pytorch' write one into folders",
    )


# what is other than it was


def test_folder_without_a_record(out: Path) -> None:
    del out
    with pytest.raises(CheckpointError, match=r"a has no record of a merge \(meldkit.json\)"):
        reproduce("a")


def test_recipe_that_was_changed(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "meldkit.yml").write_text((out / "meldkit.yml").read_text() + "# mine\n")
    done = command.run(capsys, "reproduce", out)
    assert (done.status, done.err) == (
        3,
        "error: out/meldkit.yml is not the recipe of the merge\n"
        "  'meldkit verify out' says what else was changed\n",
    )


def test_plugins_that_the_merge_had_not(out: Path) -> None:
    with pytest.raises(RecipeError, match="the merge used 0 plugins, 1 are given") as refused:
        reproduce(out, plugin=["mine.py"])
    assert refused.value.hint == "leave them out"


def test_place_without_another(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = command.run(capsys, "reproduce", out, "--model", "a=")
    assert (done.status, done.err) == (
        2,
        "error: --model a= names no two places\n  write it like --model OLD=NEW\n",
    )


def test_inputs_in_other_files(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merge(
        {"merge_method": "passthrough", "models": [{"model": "b"}]}, "c", MergeOptions(out_shard_size="400")
    )
    shutil.rmtree("b")
    Path("c").rename("b")
    done = command.run(capsys, "reproduce", out)
    assert done.status == 3
    first, *lines = done.out.splitlines()
    assert first == "out was made from other inputs; nothing was run:"
    text = " ".join(" ".join(lines).split())
    assert text.startswith("'b' lacks model.safetensors; has a file model-00001-of-")
    data = json.loads(command.run(capsys, "reproduce", out, "--json").out)
    assert (data["same"], data["tensors"], data["differences"]) == (False, 0, [])
    assert [line[:3] for line in data["inputs"]] == ["'b'"]


def test_inputs_of_the_same_size_with_other_tensors(out: Path) -> None:
    for path in (Path("a/model.safetensors"), Path("b/model.safetensors")):
        path.write_bytes(path.read_bytes().replace(b"model.norm.weight", b"model.Norm.weight"))
    result = reproduce(out)
    assert result.inputs == tuple(f"'{name}' has other tensors, shapes or types" for name in "ab")


def test_record_of_other_models(out: Path) -> None:
    edit(out, lambda r: r["models"][0].update(model="x"))
    result = reproduce(out)
    assert result.inputs == ("'a' is no model of the merge", "'x' is not read any more")


def test_files_that_were_not_there(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(record: dict[str, Any]) -> None:
        names = sorted(record["weights"])
        record["weights"]["old.safetensors"] = record["weights"].pop(names[0])
        record["weights"][names[1]]["header_sha256"] = "0"
        record["files"]["old.json"] = record["files"].pop("config.json")
        record["numeric_version"] -= 1

    edit(out, change)
    done = command.run(capsys, "reproduce", out)
    assert done.status == 3
    text = " ".join(done.out.split())
    for part in (
        "out does not come out the same:",
        "old.safetensors is not made any more",
        "model-00001-of-00002.safetensors was not made before",
        "model-00002-of-00002.safetensors gets another header than it had",
        "old.json is not written any more",
        "config.json was not written before",
        "headers and samples of all weights are as they were; values between the samples may not be",
        "not as it was then:",
        "other bytes are to be expected",
    ):
        assert part in text, part


def test_input_of_the_hub_of_another_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the hub's cache folders are called by commits."""
    monkeypatch.chdir(tmp_path)
    old, new = (Path("models--org--name", "snapshots", digit * 40) for digit in "ab")
    tiny.decoder(old, 0)
    tiny.decoder(new, 0, extra={"more": torch.zeros(2)})
    merge({"merge_method": "passthrough", "models": [{"model": str(old)}]}, "out")
    done = command.run(capsys, "reproduce", "out", "--model", f"{old}={new}")
    assert done.status == 3
    assert f"is of commit {'b' * 12} of org/name, it was of {'a' * 12}" in " ".join(done.out.split())


def test_models_and_adapters_of_the_hub_are_taken_at_their_commits() -> None:
    record = {
        "models": [
            {"model": "org/name:x.gguf+org/lora", "commits": {"org/name": "a" * 40, "org/lora": "b" * 40}}
        ]
    }
    ref = ModelRef.parse("org/name:x.gguf+org/lora")
    located = Located([ref], record, [], {})
    assert str(located(ref)) == f"org/name:x.gguf@{'a' * 40}+org/lora@{'b' * 40}"
    assert str(located(ModelRef.parse("org/names"))) == "org/names"


def put(path: str, **values: object) -> None:
    """Give settings in a JSON file."""
    file = Path(path)
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **values}))


def test_settings_of_inputs_that_were_changed_are_named(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put("a/config.json", rope_theta=7)
    put("a/tokenizer_config.json", model_max_length=7)
    done = command.run(capsys, "reproduce", out)
    assert done.status == 3
    text = " ".join(done.out.split())
    assert text.startswith("out does not come out the same: config.json comes out with another content")
    assert text.endswith(
        "not as it was then: settings of 'a': config.json is another, tokenizer_config.json is new"
    )


def test_settings_that_matter_to_no_byte_are_named_too(out: Path) -> None:
    put("b/generation_config.json", top_k=1)
    Path("b/notes.md").write_text("of no model")
    result = reproduce(out)
    assert (result.same, result.surroundings) == (True, ("settings of 'b': generation_config.json is new",))


def test_record_of_a_version_that_kept_no_hashes_of_settings(out: Path) -> None:
    edit(out, lambda r: [model.pop("settings") for model in r["models"]])
    put("b/generation_config.json", top_k=1)
    assert reproduce(out).surroundings == ()


def test_settings_of_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.decoder(Path("a"), 0)
    tiny.adapter(Path("lora"), {"model.layers.0.self_attn.q_proj": (4, 4)})
    put("lora/tokenizer_config.json", model_max_length=7)
    merge({"merge_method": "passthrough", "models": [{"model": "a+lora"}]}, "out")
    settings = json.loads(Path("out/meldkit.json").read_text())["models"][0]["settings"]
    assert [sorted(files) for files in settings] == [
        ["config.json"],
        ["adapter_config.json", "tokenizer_config.json"],
    ]
    put("lora/adapter_config.json", lora_alpha=77)
    assert reproduce("out").inputs == ("'a+lora' has other settings: adapter_config.json is another",)
    Path("lora/tokenizer_config.json").unlink()
    assert reproduce("out").inputs == (
        "'a+lora' has other settings: adapter_config.json is another, tokenizer_config.json is gone",
    )


def test_lone_files_have_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies beside them belongs to nobody, or to somebody else."""
    monkeypatch.chdir(tmp_path)
    tiny.decoder(Path("a"), 0)
    Path("a/config.json").rename("a/private.json")
    merge({"merge_method": "passthrough", "models": [{"model": "a/model.safetensors"}]}, "out")
    assert json.loads(Path("out/meldkit.json").read_text())["models"][0]["settings"] == [{}]
    assert reproduce("out").same


@pytest.mark.parametrize("value", [None, "x", ["x"], [{"config.json": 3}], [[]], {"config.json": None}])
def test_settings_that_are_none(out: Path, value: object) -> None:
    edit(out, lambda r: r["models"][0].update(settings=value))
    for check in (verify_output, reproduce):
        with pytest.raises(CheckpointError, match=r"is not a whole record: .*settings of "):
            check(out)
