"""Recipes that merge what others give: computed when read, it is what it would be if it were stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from weakref import finalize

import pytest
import torch
import yaml

import same_bytes
import tiny
from command import run
from gguf_files import LLAMA_KEYS, llama_tensors, write_gguf
from meldkit import merge, plan
from meldkit.engine import stages
from meldkit.errors import CheckpointError, RecipeError
from meldkit.methods import METHODS
from meldkit.options import MergeOptions
from meldkit.recipe import parse_recipe

CASES = (*METHODS, *same_bytes.VARIANTS)
#: Around the stage: recipes that read it once, twice, as a base and beside another model.
OUTER: dict[str, dict[str, Any]] = {
    "linear": {"models": ["STAGE", "y"], "parameters": {"weight": 0.5}},
    "slerp": {"base_model": "STAGE", "models": ["STAGE", "y"], "parameters": {"t": 0.3}},
    "ties": {"base_model": "base", "models": ["STAGE", "z"], "parameters": {"density": 0.4, "weight": 1.0}},
    "della": {
        "base_model": "STAGE",
        "models": ["x", "z"],
        "parameters": {"density": 0.5, "epsilon": 0.1, "weight": 1.0},
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, weights in same_bytes.state_dicts().items():
        tiny.stored(folder / name, {k: t.bfloat16() for k, t in weights.items()}, same_bytes.CONFIG)
    return folder


def outer(method: str, stage: object, folder: Path) -> dict[str, Any]:
    """A recipe around a stage."""
    recipe = {"merge_method": method, "dtype": "float32", **OUTER[method]}

    def named(name: object) -> object:
        return stage if name == "STAGE" else str(folder / str(name))

    recipe["models"] = [{"model": named(name)} for name in recipe["models"]]
    return recipe | ({"base_model": named(recipe["base_model"])} if "base_model" in recipe else {})


def weights(recipe: object, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    merge(recipe, out, MergeOptions(write_model_card=False, **options))  # pyright: ignore[reportArgumentType]
    return tiny.tensors(out)


def check_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("name", CASES)
def test_computed_is_stored(name: str, models: Path, tmp_path: Path) -> None:
    method = list(OUTER)[CASES.index(name) % len(OUTER)]
    inner = same_bytes.case_of(name).recipe(models) | {"name": "stage", "dtype": "float32"}
    merge(inner, tmp_path / "stage", MergeOptions(write_model_card=False))
    stored = weights(outer(method, str(tmp_path / "stage"), models), tmp_path / "stored")
    check_same(weights(outer(method, inner, models), tmp_path / "computed"), stored)


@pytest.mark.parametrize("method", OUTER)
@pytest.mark.parametrize("threads", [1, 3])
def test_stage_of_stages(method: str, threads: int, models: Path, tmp_path: Path) -> None:
    inner = {
        "name": "inner",
        "merge_method": "ties",
        "base_model": str(models / "base"),
        "models": [{"model": str(models / name)} for name in "xy"],
        "parameters": {"density": 0.5, "weight": 1.0},
        "dtype": "bfloat16",
    }
    middle = {
        "name": "middle",
        "merge_method": "slerp",
        "base_model": "inner",
        "models": [{"model": "inner"}, {"model": str(models / "z")}],
        "parameters": {"t": 0.5},
        "dtype": "bfloat16",
    }
    # Its own dtype says nothing of what others read, which is not rounded.
    merge(inner | {"dtype": "float32"}, tmp_path / "inner", MergeOptions())
    stored_middle = yaml.safe_load(yaml.safe_dump(middle).replace("inner", str(tmp_path / "inner")))
    merge(stored_middle | {"dtype": "float32"}, tmp_path / "middle", MergeOptions())
    stored = weights(outer(method, str(tmp_path / "middle"), models), tmp_path / "stored")
    text = yaml.safe_dump_all([inner, middle, outer(method, "middle", models)])
    (tmp_path / "recipe.yml").write_text(text)
    check_same(weights(tmp_path / "recipe.yml", tmp_path / "computed", num_threads=threads), stored)


def test_stage_used_by_two(models: Path, tmp_path: Path) -> None:
    """It is planned once."""
    opened: list[str] = []
    text = f"""
name: a
merge_method: linear
models: [{{model: {models}/x}}, {{model: {models}/y}}]
parameters: {{weight: 0.5}}
---
name: b
merge_method: linear
models: [{{model: a}}, {{model: {models}/z}}]
parameters: {{weight: 0.5}}
---
merge_method: linear
models: [{{model: a}}, {{model: b}}]
parameters: {{weight: 0.5}}
dtype: float32
"""

    def locate(ref: Any) -> Any:
        opened.append(ref.path)
        return ref

    made = plan(parse_recipe(text), locate=locate)
    assert sorted(opened) == [str(models / name) for name in "xyz"]
    assert [c.label for c in made.checkpoints] == ["a", "b"]
    x, y, z = (tiny.tensors(models / name) for name in "xyz")
    merged = weights(parse_recipe(text), tmp_path / "out")
    for name, value in merged.items():
        both = 0.5 * x[name].float() + 0.5 * y[name].float()
        assert torch.allclose(value, 0.5 * both + 0.5 * (0.5 * both + 0.5 * z[name].float()), atol=1e-6)


def test_stages_of_gguf_files(tmp_path: Path) -> None:
    """The configuration and tokenizer of a stage are its donor's, whatever its first tensor lies in."""
    file = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS, llama_tensors())
    folder = merge({"merge_method": "passthrough", "models": [{"model": str(file)}]}, tmp_path / "hf").path
    for base, gguf in ((folder, None), (file, file)):
        models = [{"model": str(path)} for path in (file, folder)]
        recipe = {"merge_method": "linear", "base_model": str(base), "models": models}
        assert stages.as_stage("stage", plan(recipe | {"parameters": {"weight": 1}})).gguf == gguf


def test_only_what_is_read_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a deep model's tensors, whose inputs are computed, only a few are open, and known, at any time."""
    for seed, name in enumerate(("base", "x", "y")):
        tiny.llama(tmp_path / name, seed, layers=12)
    counts: dict[str, tuple[int, int]] = {}

    def counted(kind: type[Any]) -> type[Any]:
        alive = most = 0

        def gone() -> None:
            nonlocal alive
            alive -= 1

        class Counted(kind):
            def __init__(self, *args: Any) -> None:
                nonlocal alive, most
                super().__init__(*args)
                alive, most = alive + 1, max(most, alive + 1)
                counts[kind.__name__] = (most, counts.get(kind.__name__, (0, 0))[1] + 1)
                finalize(self, gone)

        return Counted

    for kind in (stages.StageTensor, stages._Tensor):  # pyright: ignore[reportPrivateUsage]
        monkeypatch.setattr(stages, kind.__name__, counted(kind))
    inner = {
        "merge_method": "dare_ties",
        "base_model": str(tmp_path / "base"),
        "models": [
            {"model": str(tmp_path / name), "parameters": {"weight": 1, "density": 0.5}} for name in "xy"
        ],
    }
    recipe = {"merge_method": "linear", "models": [{"model": inner}, {"model": str(tmp_path / "y")}]}
    weights(recipe | {"parameters": {"weight": 0.5}}, tmp_path / "out", num_threads=2)
    for most, total in counts.values():
        assert most <= 8
        assert total >= 12 * 9


def test_bytes_are_copied_through_a_stage(models: Path, tmp_path: Path) -> None:
    inner = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": str(models / "x"), "layer_range": [0, 2]}]}],
    }
    recipe = {"merge_method": "passthrough", "models": [{"model": inner}]}
    check_same(weights(recipe, tmp_path / "out"), tiny.tensors(models / "x"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nMODELS: b\n---\nname: b\nMODELS: a\n---\nMODELS: a\n", "in a circle: 'a' → 'b' → 'a'"),
        ("name: a\nMODELS: b\n---\nname: b\nMODELS: a\n", "in a circle: 'a' → 'b' → 'a'"),
        ("name: a\nMODELS: x\n---\nMODELS: y\n", "r.yml:1: no recipe uses 'a'"),
        ("MODELS: x\n---\nMODELS: y\n", "r.yml:4: a second recipe without a name"),
        ("name: a\nMODELS: x\n---\nname: b\nMODELS: x\n", "2 recipes are used by no other: 'a', 'b'"),
        ("name: a\nMODELS: x\n---\nname: a\nMODELS: x\n", "r.yml:5: name 'a' is taken"),
    ],
)
def test_recipes_that_do_not_add_up(text: str, message: str) -> None:
    text = text.replace("MODELS:", "merge_method: linear\nmodels: [{model: ")
    text = "\n".join(line + "}]" if line.startswith("models:") else line for line in text.split("\n"))
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, "r.yml")
    assert message in str(error.value)


def test_stage_that_does_not_exist(models: Path) -> None:
    text = f"""
name: first
merge_method: linear
models: [{{model: {models}/x, parameters: {{weight: 1}}}}]
---
merge_method: linear
models: [{{model: first}}, {{model: frist}}]
parameters: {{weight: 1}}
"""
    with pytest.raises(CheckpointError, match="'frist' does not exist") as error:
        plan(parse_recipe(text))
    assert "did you mean the recipe 'first'?" in error.value.hint


MULTI = """
name: both
merge_method: linear
models: [{{model: {0}/x}}, {{model: {0}/y}}]
parameters: {{weight: 0.5}}
dtype: float32
---
merge_method: slerp
base_model: both
models: [{{model: both}}, {{model: {0}/z}}]
parameters: {{t: 0.5}}
dtype: float32
"""


def test_multi(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is stored on the way gives the same bytes, is used again, and made anew for another recipe."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yml").write_text(MULTI.format(models))
    computed = run(capsys, "multi", "recipe.yml", "computed", "--no-lazy")
    assert computed.status == 0
    assert "--no-lazy has no effect without --intermediate-dir" in computed.err
    first = run(capsys, "multi", "recipe.yml", "--out-path", "stored", "-I", "parts", "--json")
    assert [step["merged"] for step in json.loads(first.out)] == [True, True]
    check_same(tiny.tensors(Path("computed")), tiny.tensors(Path("stored")))
    again = run(capsys, "multi", "recipe.yml", "stored", "-I", "parts", "--json")
    assert [step["merged"] for step in json.loads(again.out)] == [False, False]
    Path("recipe.yml").write_text(MULTI.format(models).replace("weight: 0.5", "weight: 0.25"))
    changed = run(capsys, "multi", "recipe.yml", "other", "-I", "parts", "--json")
    assert [step["merged"] for step in json.loads(changed.out)] == [True, True]
    # What is not whole any more is made again.
    with Path("parts/both/model.safetensors").open("r+b") as file:
        file.truncate(1000)
    mended = run(capsys, "multi", "recipe.yml", "mended", "-I", "parts", "--json")
    assert [step["merged"] for step in json.loads(mended.out)] == [True, True]
    Path("parts/both/meldkit.json").unlink()
    foreign = run(capsys, "multi", "recipe.yml", "third", "-I", "parts")
    assert "parts/both is made by another program, and used as it is" in foreign.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recipe.yml",), "OUT is missing"),
        (("recipe.yml", "-I", "parts"), "OUT is missing: a recipe has no name"),
        (("recipe.yml", "out", "--out-path", "other"), "OUT and --out-path name different folders"),
    ],
)
def test_multi_refuses(
    arguments: tuple[str, ...],
    message: str,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yml").write_text(MULTI.format(models))
    result = run(capsys, "multi", *arguments)
    assert result.status == 2
    assert message in result.err


@pytest.mark.parametrize(
    ("change", "out", "status", "message"),
    [
        (("slerp", "slurp"), "out", 2, "unknown merge_method 'slurp'"),
        (("{t:", "{u:"), "out", 2, "unknown parameter 'u'"),
        (("/z}", "/none}"), "out", 3, "none' does not exist"),
        (("/z}", "/wide}"), "out", 3, "has shape"),
        (("", ""), "parts", 2, "parts and parts/both, the folder of recipe 'both', are not apart"),
        (("", ""), "parts/both/in", 2, "are not apart"),
        (("", ""), "full", 2, "full is not empty"),
    ],
)
def test_nothing_is_made_where_a_later_recipe_will_fail(
    change: tuple[str, str],
    out: str,
    status: int,
    message: str,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    wide = {name: torch.zeros(*(2 * n for n in t.shape)) for name, t in tiny.tensors(models / "z").items()}
    tiny.stored(models / "wide", wide)
    Path("full").mkdir()
    Path("full/file").touch()
    first, last = MULTI.format(models).split("---")
    Path("recipe.yml").write_text(f"{first}---{last.replace(*change)}")
    result = run(capsys, "multi", "recipe.yml", out, "-I", "parts")
    assert result.status == status
    assert message in result.err
    assert not Path("parts").exists()


def test_there_is_room_for_all_recipes_or_none_is_carried_out(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yml").write_text(MULTI.format(models))
    run(capsys, "multi", "recipe.yml", "before", "-I", "first")
    size = sum(path.stat().st_size for path in Path("before").glob("*.safetensors"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(1.5 * size)))
    result = run(capsys, "multi", "recipe.yml", "out", "-I", "parts")
    assert result.status == 4
    assert "the 2 outputs need" in result.err
    assert not Path("parts").exists()


def test_names_are_not_taken_for_folders_silently(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / "z", "both")
    Path("recipe.yml").write_text(MULTI.format(models))
    done = run(capsys, "merge", "recipe.yml", "out")
    assert "recipe.yml:2: 'both' means what this recipe gives, not the folder of that name" in done.err


def test_recipes_that_all_have_a_name(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a folder for what they give, one of them must use all others."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yml").write_text(MULTI.format(models).replace("slerp\n", "slerp\nname: last\n"))
    done = run(capsys, "multi", "recipe.yml", "out", "-I", "parts")
    assert done.status == 0
    assert "nothing goes to out, as every recipe has a name; see parts" in done.err
    assert sorted(path.name for path in Path("parts").iterdir()) == ["both", "last"]
    apart = (
        MULTI.format(models)
        .replace("slerp\n", "slerp\nname: last\n")
        .replace("{model: both}", "{model: MODEL}")
    )
    apart = apart.replace("base_model: both", "base_model: MODEL").replace("MODEL", str(models / "x"))
    Path("recipe.yml").write_text(apart)
    refused = run(capsys, "multi", "recipe.yml", "out")
    assert "2 recipes are used by no other" in refused.err
    assert "'meldkit multi' with --intermediate-dir carries out all of them" in refused.err


def test_name_that_leads_elsewhere(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yml").write_text(MULTI.format(models).replace("both", "../both"))
    result = run(capsys, "multi", "recipe.yml", "out", "-I", "parts")
    assert result.status == 2
    assert "name '../both' cannot be that of a folder" in result.err


def test_explained(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yml").write_text(MULTI.format(models))
    done = run(capsys, "explain", "recipe.yml")
    assert done.status == 0, done.err
    assert "both: linear, computed when it is read" in done.out
    assert done.out.index("both: ") < done.out.index("the output: ")
    found = json.loads(run(capsys, "explain", "recipe.yml", "q_proj", "--json").out)
    assert list(found["stages"]) == ["both"]
    assert {tensor["method"] for tensor in found["stages"]["both"]["tensors"]} == {"linear"}


def test_stage_with_a_tokenizer_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is built for a stage is what the recipe around it reads, as if it were stored."""
    from test_moe import dense

    monkeypatch.chdir(tmp_path)
    for seed, (name, word) in enumerate((("a", "moon"), ("b", "sun"), ("c", "star"))):
        dense(Path(name), "Llama", seed, vocab_size=13)
        file = Path(name, "tokenizer.json")
        content = json.loads(file.read_text())
        content["model"]["vocab"][word] = 12
        file.write_text(json.dumps(content))
    inner = {
        "name": "both",
        "merge_method": "linear",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"weight": 0.5},
        "tokenizer_source": "union",
        "dtype": "float32",
    }
    around = {**inner, "name": "all", "models": [{"model": inner}, {"model": "c"}]}
    merge(inner, "both", MergeOptions())
    stored = weights({**around, "models": [{"model": "both"}, {"model": "c"}]}, Path("stored"))
    check_same(weights(around, Path("computed")), stored)
    vocabulary = json.loads(Path("computed/tokenizer.json").read_text())["model"]["vocab"]
    assert {"moon", "sun", "star"} <= vocabulary.keys()
    assert stored["model.embed_tokens.weight"].shape[0] == 15


def test_page_shows_stages(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yml").write_text(MULTI.format(models))
    done = run(capsys, "plan", "recipe.yml", "--no-probe", "--html", "plan.html")
    assert done.status == 0, done.err
    text = Path("plan.html").read_text()
    assert "Stage both" in text
    assert "It is stored nowhere." in text
