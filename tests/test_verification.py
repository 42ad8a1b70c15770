"""What is looked at before an output is published, each by really spoiling it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import command
import tiny
from meldkit import merge
from meldkit.errors import MismatchError, RunError
from meldkit.options import MergeOptions
from meldkit.output import PARTIAL, folder
from meldkit.output.fit import facts

RECIPE = {
    "merge_method": "linear",
    "models": [{"model": "a"}, {"model": "b"}],
    "parameters": {"weight": 1},
}
INDEX = "model.safetensors.index.json"
SHARDS = MergeOptions(out_shard_size="20k")


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models a and b in the current folder: what transformers writes, with a tokenizer."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b")):
        tiny.llama(tmp_path / name, seed, layers=2, vocab=60)
        vocabulary = {f"t{i}": i for i in range(60)}
        content = {"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}, "added_tokens": []}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
    return tmp_path


def spoil(monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object]) -> None:
    """Damage the files of the next outputs after they were written, before they are looked at."""
    real = folder.check_weights

    def check_weights(path: Path, *more: Any) -> Any:
        damage(path)
        return real(path, *more)

    monkeypatch.setattr(folder, "check_weights", check_weights)


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Changes a JSON file."""

    def damage(path: Path) -> None:
        data = json.loads((path / name).read_text())
        change(data)
        (path / name).write_text(json.dumps(data))

    return damage


def header(change: Callable[[dict[str, Any]], object], *, file: str = "") -> Callable[[Path], None]:
    """Changes the header of the first weight file, of as many bytes as before."""

    def damage(path: Path) -> None:
        weights = path / file if file else sorted(path.glob("*.safetensors"))[0]
        raw = weights.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        data = json.loads(raw[8 : 8 + length])
        change(data)
        new = json.dumps(data, separators=(",", ":")).encode()
        assert len(new) <= length
        weights.write_bytes(raw[:8] + new.ljust(length) + raw[8 + length :])

    return damage


def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Changes the first weight file."""

    def damage(path: Path) -> None:
        weights = sorted(path.glob("*.safetensors"))[0]
        weights.write_bytes(change(weights.read_bytes()))

    return damage


def swap_places(data: dict[str, Any]) -> None:
    one, other = (f"model.layers.{i}.input_layernorm.weight" for i in (0, 1))
    data[one], data[other] = data[other], data[one]


Q = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"

DAMAGE: dict[str, tuple[Callable[[Path], Any], str, MergeOptions]] = {
    "no header": (bytes_of(lambda raw: b"\0" * len(raw)), "unnamed bytes|is not valid JSON", MergeOptions()),
    "truncated": (bytes_of(lambda raw: raw[:-100]), "is truncated: tensor '.*' ends at byte", MergeOptions()),
    "longer": (bytes_of(lambda raw: raw + b"\0"), "has 1 bytes after its last tensor", MergeOptions()),
    "empty": (bytes_of(lambda _: b""), "has 0 bytes, too few for a safetensors file", MergeOptions()),
    "another name": (
        header(lambda d: d.update({"model.norm.weighs": d.pop("model.norm.weight")})),
        r"lacks tensor 'model\.norm\.weight'",
        MergeOptions(),
    ),
    "another shape": (
        header(lambda d: d[NORM].update(shape=[4, 8])),
        rf"has tensor '{NORM}' as F32 \[4, 8\], it should be F32 \[32\]",
        MergeOptions(),
    ),
    "another dtype": (
        header(lambda d: d[NORM].update(dtype="I32")),
        rf"has tensor '{NORM}' as I32 \[32\], it should be F32 \[32\]",
        MergeOptions(),
    ),
    "another place": (header(swap_places), r"has tensor 'model\.layers\.\d\.\S+' at byte", MergeOptions()),
    "no file": (
        lambda path: sorted(path.glob("*.safetensors"))[0].unlink(),
        r"cannot read .*: No such file or directory",
        MergeOptions(),
    ),
    "index without a tensor": (
        edit(INDEX, lambda d: d["weight_map"].popitem()),
        "does not list the tensors that the files hold",
        SHARDS,
    ),
    "index with another file": (
        edit(INDEX, lambda d: d["weight_map"].update({NORM: "model-00009-of-00009.safetensors"})),
        "does not list the tensors that the files hold",
        SHARDS,
    ),
    "index with another size": (
        edit(INDEX, lambda d: d["metadata"].update(total_size=1)),
        r"does not give the tensors [\d,]+ bytes",
        SHARDS,
    ),
    "no index": (lambda path: (path / INDEX).unlink(), "index.json", SHARDS),
    "index of one file": (
        lambda path: (path / INDEX).write_text("{}"),
        "is there beside the one file of all tensors",
        MergeOptions(),
    ),
    "config": (
        edit("config.json", lambda d: d.update(vocab_size=61)),
        "config.json is not what",
        MergeOptions(),
    ),
    "config that is none": (
        lambda path: (path / "config.json").write_text("{"),
        "config.json is not valid JSON",
        MergeOptions(),
    ),
    "tokenizer": (
        edit("tokenizer.json", lambda d: d["model"]["vocab"].update(t9=99)),
        "tokenizer.json is not the tokenizer of 'a'",
        MergeOptions(),
    ),
    "generation config": (
        edit("generation_config.json", lambda d: d.update(eos_token_id=[2, 60])),
        r"generation_config.json has eos_token_id 60, but the embedding has 60 rows",
        MergeOptions(),
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_spoiled_outputs_are_not_published(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    damage, message, options = DAMAGE[case]
    with monkeypatch.context() as patch:
        spoil(patch, damage)
        with pytest.raises(RunError, match=message) as caught:
            merge(RECIPE, "out", options)
    assert str(caught.value).startswith("the merge is not published: ")
    weights_too = caught.value.hint.endswith("it starts over")
    if not weights_too:
        assert caught.value.hint == "run the same command again; the weights are done and are kept"
    assert [p.name for p in Path("out").iterdir()] == [PARTIAL]
    # As the message says.
    assert merge(RECIPE, "out", options).num_resumed == (0 if weights_too else 21)
    merge(RECIPE, "undisturbed", options)
    files = sorted(p.name for p in Path("undisturbed").iterdir())
    assert sorted(p.name for p in Path("out").iterdir()) == files
    for name in files:
        if name != "README.md":  # it has the name of the folder
            assert (Path("out") / name).read_bytes() == (Path("undisturbed") / name).read_bytes(), name


def test_tokenizer_of_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, edit("tokenizer.json", lambda d: d["model"]["vocab"].update(more=60)))
    with pytest.raises(RunError) as caught:
        merge({**RECIPE, "tokenizer": {"source": "union"}}, "out")
    assert caught.value.message.endswith(
        "tokenizer.json has token 'more' with number 60, the embedding has 60 rows"
    )


def test_what_was_checked() -> None:
    found = merge({**RECIPE, "tokenizer": {"source": "union"}}, "out", SHARDS).verification
    # Depth, vocabulary, width; 9 tensors of layers are alike, 3 projections have the heads they should.
    assert (found.num_tensors, found.num_facts, found.num_tokens, found.nonfinite) == (21, 15, 60, ())
    assert found.num_files > 1
    assert found.num_ids >= 2


# configuration and weights


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"vocab_size": 61}, "vocab_size is 61, the embedding has 60 rows"),
        ({"hidden_size": 64}, "hidden_size is 64, the embedding has 32 columns"),
        ({"num_hidden_layers": 3}, "it speaks of 3 layers, the weights have 2 (model.layers.*)"),
        ({"num_attention_heads": 8}, f"8 heads of 8 are 64 rows, '{Q}' has 32"),
        ({"num_key_value_heads": 1}, f"1 heads of 8 are 8 rows, '{Q.replace('q_', 'k_')}' has 16"),
    ],
)
def test_configuration_that_does_not_fit(change: dict[str, int], text: str) -> None:
    """The input's own is believed, whatever it means in its architecture; that of another is not."""
    config = json.loads(Path("a/config.json").read_text())
    shapes = {name: tuple(t.shape) for name, t in tiny.tensors(Path("a")).items()}
    assert all(fact.agrees for fact in facts(config, shapes).values())
    assert text in [fact.text for fact in facts(config | change, shapes).values() if not fact.agrees]
    Path("a/config.json").write_text(json.dumps(config | change))
    merge(RECIPE, "out")


def test_layers_of_models_of_different_width_do_not_make_one() -> None:
    tiny.llama(Path("wide"), 3, layers=2, vocab=60, hidden=64)
    recipe = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 1]}]},
            {"sources": [{"model": "wide", "layer_range": [1, 2]}]},
        ],
    }
    with pytest.raises(MismatchError) as caught:
        merge(recipe, "out")
    assert "model.layers.1" in str(caught.value)
    assert not Path("out").exists()


# values


def nan_in(name: str, tensor: str, value: float = float("nan")) -> None:
    weights = tiny.tensors(Path(name))
    weights[tensor].view(-1)[5] = value
    tiny.stored(Path(name), weights)


def test_values_let_through_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    nan_in("b", Q)
    Path("recipe.yml").write_text(json.dumps(RECIPE))
    done = command.run(capsys, "merge", "recipe.yml", "out")
    assert (done.status, done.out) == (4, "")
    assert done.err == (
        f"error: tensor '{Q}' of 'b' has the value nan at element 5\n"
        "  repair the model, or let it through with --allow-nonfinite\n"
    )
    done = command.run(capsys, "merge", "recipe.yml", "out", "--allow-nonfinite")
    assert done.status == 0
    assert done.err == f"warning: NaN or Inf in 1 of 21 tensors: {Q}\n"
    assert "all finite" not in done.out


def test_values_let_through_are_remembered_over_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    nan_in("b", Q)
    with monkeypatch.context() as patch:
        spoil(patch, edit("config.json", dict.clear))
        with pytest.raises(RunError):
            merge(RECIPE, "out", MergeOptions(allow_nonfinite=True))
    with pytest.raises(RunError, match="has the value nan"):
        merge(RECIPE, "out")
    result = merge(RECIPE, "out", MergeOptions(allow_nonfinite=True))
    assert (result.num_resumed, result.verification.nonfinite) == (21, (Q,))
    assert not torch.isfinite(tiny.tensors(Path("out"))[Q]).all()


def test_infinities_that_are_copied_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        nan_in(name, NORM, float("inf"))
    recipe = {"merge_method": "passthrough", "models": [{"model": "a"}]}
    Path("recipe.yml").write_text(json.dumps(recipe))
    done = command.run(capsys, "merge", "recipe.yml", "out")
    assert (done.status, done.err) == (0, f"warning: NaN or Inf in 1 of 21 tensors: {NORM}\n")
