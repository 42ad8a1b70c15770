"""Recipes that shuffle, drop and repeat layers, and those of old programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

import tiny
from command import run
from meldkit import plan
from meldkit.recipe import recipe_from_data
from meldkit.tools.surgery import deepened, from_legacy, parse_layers, shortened, shuffled

LIBRARY: Any = transformers
IDS = [[3, 14, 15, 9, 2, 6]]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        tiny.llama(Path(name), seed)


def layers_of(recipe: dict[str, Any]) -> list[tuple[str, int]]:
    """(model, layer) of each layer of the output."""
    sources = [part["sources"][0] for part in recipe["slices"]]
    return [(source["model"], n) for source in sources for n in range(*source["layer_range"])]


def logits(folder: str) -> torch.Tensor:
    model = LIBRARY.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor(IDS)).logits


@pytest.mark.usefixtures("models")
def test_shuffled() -> None:
    drawn = [layers_of(shuffled(["a", "b"], [], seed=seed)) for seed in range(40)]
    assert all([layer for _, layer in layers] == [0, 1, 2, 3] for layers in drawn)
    assert drawn[3] == layers_of(shuffled(["a", "b"], [], seed=3))
    share = sum(model == "a" for layers in drawn for model, _ in layers) / 160
    assert 0.35 < share < 0.65
    rarely = [layers_of(shuffled(["a", "b"], [1, 9], seed=seed)) for seed in range(40)]
    assert sum(model == "a" for layers in rarely for model, _ in layers) / 160 < 0.25
    assert layers_of(shuffled(["a", "b"], [0, 1])) == [("b", layer) for layer in range(4)]


@pytest.mark.usefixtures("models")
def test_shuffled_from_anywhere() -> None:
    layers = layers_of(shuffled(["a", "b"], [1, 0.5], seed=1, any_layer=True))
    assert [model for model, _ in layers].count("a") == 4
    assert [model for model, _ in layers].count("b") == 2
    every = {
        layer for seed in range(20) for _, layer in layers_of(shuffled(["a"], [1], seed=seed, any_layer=True))
    }
    assert every == {0, 1, 2, 3}


@pytest.mark.usefixtures("models")
def test_layershuffle(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("-m", "a", "-m", "b", "--random-seed", "5")
    done = run(capsys, "layershuffle", "out", *options, "--write-yaml", "recipe.yml", "--dtype", "bfloat16")
    assert done.status == 0, done.err
    merged = tiny.tensors(Path("out"))
    recipe = yaml.safe_load(Path("recipe.yml").read_text())
    assert layers_of(recipe) == layers_of(shuffled(["a", "b"], [], seed=5))
    for number, (model, layer) in enumerate(layers_of(recipe)):
        own = merged[f"model.layers.{number}.mlp.up_proj.weight"]
        assert torch.equal(
            own, tiny.tensors(Path(model))[f"model.layers.{layer}.mlp.up_proj.weight"].bfloat16()
        )
    shown = run(capsys, "layershuffle", "none", *options, "--dry-run")
    assert yaml.safe_load(shown.out) | {"dtype": "bfloat16"} == recipe
    assert not Path("none").exists()


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("dropped", "kept"), [(["1"], [0, 2, 3]), (["0-1"], [2, 3]), (["1:3"], [0, 3]), (["0", "3"], [1, 2])]
)
def test_shortened(dropped: list[str], kept: list[int]) -> None:
    numbers = [n for first, last in parse_layers(dropped) for n in range(first, last)]
    recipe = shortened("a", numbers)
    assert layers_of(recipe) == [("a", layer) for layer in kept]
    assert plan(recipe_from_data(recipe)).num_layers == len(kept)


@pytest.mark.usefixtures("models")
def test_pruned(capsys: pytest.CaptureFixture[str]) -> None:
    one = run(capsys, "prune", "a", "one", "--drop", "2")
    assert one.status == 0, one.err
    assert "leaves out" not in one.err
    done = run(capsys, "prune", "a", "out", "--drop", "1,2")
    assert done.status == 0, done.err
    model = LIBRARY.AutoModelForCausalLM.from_pretrained("a", dtype=torch.float32).eval()
    model.model.layers = torch.nn.ModuleList([model.model.layers[0], model.model.layers[3]])
    layers: Any = model.model.layers
    for index, layer in enumerate(layers):
        layer.self_attn.layer_idx = index
    with torch.inference_mode():
        torch.testing.assert_close(logits("out"), model(torch.tensor(IDS), use_cache=False).logits)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("options", [("--every", "2"), ("--layers", "0:3", "--layers", "1:4", "--idle")])
def test_idle_layers_change_nothing(options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "expand", "a", "out", *options)
    assert done.status == 0, done.err
    assert "warning" not in done.err
    assert LIBRARY.AutoConfig.from_pretrained("out").num_hidden_layers == 6
    torch.testing.assert_close(logits("out"), logits("a"), rtol=1e-5, atol=1e-6)


def test_deepened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.llama(Path("a"), 0, layers=5)
    assert [n for _, n in layers_of(deepened("a", every=2))] == [0, 1, 1, 2, 3, 3, 4]
    overlapping = deepened("a", ranges=[(0, 4), (1, 5)], idle=False)
    assert [n for _, n in layers_of(overlapping)] == [0, 1, 2, 3, 1, 2, 3, 4]
    assert all("parameters" not in part["sources"][0] for part in overlapping["slices"])
    repeated = [part["sources"][0] for part in deepened("a", ranges=[(0, 4), (1, 5)])["slices"]]
    assert [(s["layer_range"], "parameters" in s) for s in repeated] == [
        ([0, 4], False),
        ([1, 4], True),
        ([4, 5], False),
    ]


BAKLLAMA = """
layer_slices:
  - {model: a, start: 0, end: 3}
  - {model: b, start: 2, end: 4, scale: 0.5}
embedding_source: a
lm_head_source: a
"""


@pytest.mark.usefixtures("models")
def test_bakllama(capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.yml").write_text(BAKLLAMA)
    done = run(capsys, "convert-config", "old.yml", "-o", "recipe.yml")
    assert done.status == 0, done.err
    assert "lm_head_source is 'a', but what comes before and after the layers is that of 'b'" in done.err
    merged = run(capsys, "merge", "recipe.yml", "out", "--quiet")
    assert merged.status == 0, merged.err
    out, b = tiny.tensors(Path("out")), tiny.tensors(Path("b"))
    assert torch.equal(
        out["model.layers.3.mlp.down_proj.weight"], 0.5 * b["model.layers.2.mlp.down_proj.weight"]
    )
    assert torch.equal(out["model.layers.3.mlp.up_proj.weight"], b["model.layers.2.mlp.up_proj.weight"])


def test_legacy(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = from_legacy(["a", "b"], base="c", weights=[0.5], densities=[0.3, 0.7], dtype="bfloat16")
    assert recipe == {
        "merge_method": "ties",
        "base_model": "c",
        "models": [
            {"model": "a", "parameters": {"weight": 0.5, "density": 0.3}},
            {"model": "b", "parameters": {"weight": 0.5, "density": 0.7}},
        ],
        "parameters": {"normalize": True},
        "dtype": "bfloat16",
    }
    shown = run(
        capsys, "convert-config", "--merge", "a", "--merge", "b", "--method", "slerp", "--weight", "0.3"
    )
    assert yaml.safe_load(shown.out) == {
        "merge_method": "slerp",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"t": 0.3},
    }


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("layershuffle", "out"), 2, "there are no models to draw layers from"),
        (("layershuffle", "out", "-m", "a", "-w", "1", "-w", "2"), 2, "1 models have 2 weights"),
        (("layershuffle", "out", "-m", "a", "-w", "-1"), 2, "weights must be numbers from 0 on"),
        (("layershuffle", "out", "-m", "a", "-w", "nan"), 2, "weights must be numbers from 0 on"),
        (("layershuffle", "out", "-m", "a", "-w", "inf", "--full-random"), 2, "weights must be numbers"),
        (("layershuffle", "out", "-m", "a", "-w", "1e9", "--full-random"), 2, "100 is the most"),
        (
            ("layershuffle", "out", "-m", "a", "--fp16", "--dtype", "bfloat16"),
            2,
            "--fp16 and --dtype bfloat16",
        ),
        (("convert-config", "--merge", "a", "--method", "tiez"), 2, "did you mean 'ties'?"),
        (("layershuffle", "out", "-m", "a", "-m", "short"), 3, "different depths: 'a' 4, 'short' 2"),
        (("layershuffle", "out", "-m", "nowhere"), 3, "'nowhere' does not exist"),
        (("prune", "a", "out", "--drop", "4"), 2, "'a' has no layer 4"),
        (("prune", "a", "out", "--drop", "0:4"), 2, "all 4 layers of 'a' are dropped"),
        (("prune", "a", "out", "--drop", "x"), 2, "'x' names no layers"),
        (("prune", "a", "out"), 2, "--drop"),
        (("expand", "a", "out"), 2, "nothing says what to repeat"),
        (("expand", "odd", "out", "--every", "2"), 3, "nothing is known of 'odd' by which repeated layers"),
        (
            ("convert-config", "scale.yml"),
            2,
            "entry 0 of 'layer_slices' needs a 'model', and 'start' and 'end'",
        ),
        (("expand", "a", "out", "--layers", "0:9"), 2, "layers 0:9 are not layers of 'a'"),
        (("convert-config",), 2, "there is nothing to convert"),
        (("convert-config", "recipe.yml"), 2, "recipe.yml is no bakllama file"),
        (("convert-config", "--merge", "a", "--merge", "b", "-o", "recipe.yml"), 2, "recipe.yml exists"),
        (("convert-config", "--merge", "a", "--method", "slerp"), 2, "slerp takes one weight, 0 are given"),
    ],
)
def test_refused(
    arguments: tuple[str, ...], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.llama(Path("short"), 2, layers=2)
    Path("recipe.yml").write_text("merge_method: linear\nmodels: [{model: a}]\n")
    Path("scale.yml").write_text("layer_slices: [{model: a, start: 0, end: 2, scale: [1]}]\n")
    tiny.stored(
        Path("odd"), {f"blocks.{i}.mixer.weight": torch.ones(4, 4) for i in range(4)}, {"model_type": "odd"}
    )
    done = run(capsys, *arguments)
    assert message in done.err
    assert done.status == status
    assert not Path("out").exists()
