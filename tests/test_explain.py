"""`meldkit explain`: its values are the plan's, its lines those of the recipe, its texts word for word."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
import torch
import yaml

import command
import tiny
from meldkit import plan
from meldkit.cli.explain import describe, draw
from meldkit.errors import MeldError, RecipeError
from meldkit.plan import Decision, Plan, decisions
from meldkit.report import explain, grids, varying

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "explain.txt"
SLERP = "merge_method: slerp\nbase_model: a\nparameters: {t: [0, 1]}\nmodels: [{model: a}, {model: b}]"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models base, a, b (4 layers) and ids (with integers, without a norm) in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b", "c", "wide")):
        tiny.decoder(tmp_path / name, seed, layers=4)
    tiny.decoder(
        tmp_path / "ids",
        7,
        layers=4,
        extra={"model.ids": torch.arange(3)},
        without=("model.layers.2.input_layernorm.weight",),
    )
    return tmp_path


def made(recipe: str) -> Plan:
    Path("recipe.yml").write_text(recipe)
    return plan("recipe.yml")


def cases() -> list[tuple[str, str, str, str]]:
    """(name, arguments, recipe, text) of each case: `#### name: arguments`, the recipe, `>>>>`, the text."""
    found: list[tuple[str, str, str, str]] = []
    for case in GOLDEN.read_text("utf-8").split("#### ")[1:]:
        head, rest = case.split("\n", 1)
        name, _, arguments = head.partition(": ")
        recipe, text = rest.split(">>>>\n")
        found.append((name, arguments, recipe, text.strip("\n")))
    return found


def said(capsys: pytest.CaptureFixture[str], arguments: str, recipe: str) -> str:
    Path("recipe.yml").write_text(recipe)
    done = command.run(capsys, "explain", "recipe.yml", *arguments.split())
    return (done.out + (f"{done.status}: {done.err}" if done.status else "")).strip("\n")


@pytest.mark.parametrize(
    ("arguments", "recipe", "text"), [pytest.param(*rest, id=name) for name, *rest in cases()]
)
def test_text(capsys: pytest.CaptureFixture[str], arguments: str, recipe: str, text: str) -> None:
    assert said(capsys, arguments, recipe) == text
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith(("2: ", "  did you")))


# the values are those of the plan


def parity_recipes() -> ModuleType:
    """The recipes with which meldkit is compared with mergekit."""
    path = HERE.parent / "benchmarks" / "parity_recipes.py"
    spec = importlib.util.spec_from_file_location("parity_recipes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity_recipes"] = module
    spec.loader.exec_module(module)
    return module


def agreeing(made: Plan) -> int:
    """Check that what is explained is what will be done; how many values that were."""
    count = 0
    for index, found in enumerate(decisions(made, range(len(made.jobs)))):
        job = made.jobs[index]
        if job.method is None:
            continue
        values = {
            name: tuple(part.value for part in d) if isinstance(d, tuple) else d.value
            for name, d in found.items()
        }
        assert values == dict(job.values), job.name
        count += len(values)
    return count


def test_values_of_all_recipes_are_those_of_their_plans() -> None:
    module = parity_recipes()
    explained = 0
    for case in module.CASES:
        try:
            Path("recipe.yml").write_text(
                yaml.safe_dump(case.recipe, sort_keys=False).replace(f"{module.FOLDER}/", "")
            )
            of_case = plan("recipe.yml")
        except MeldError:  # for models of other shapes, or with tokenizers
            continue
        agreeing(of_case)
        explained += 1
    assert explained > 100


def test_values_by_filters_inside_filters_and_gradients() -> None:
    recipe = """
merge_method: ties
base_model: base
models:
  - model: a
    parameters:
      weight:
        - {filter: "layers.1.", value: [{filter: "re:q_proj$", value: 0.25}, {value: [0, 1]}]}
        - {filter: glob:*.mlp.*, value: [0.1, 0.9, 0.5]}
      density: [0.2, 0.8]
  - model: b
    parameters: {weight: {filter: norm, value: 3}}
parameters:
  weight: 0.75
  density: [{filter: mlp, value: 0.5}, {value: 0.6}]
"""
    assert agreeing(made(recipe)) == 15 * 7


def test_where_a_value_stands_is_where_it_comes_from() -> None:
    """Each line is changed to another value; just those that were said to come from it change."""
    lines = [
        "merge_method: linear",
        "slices:",
        "  - sources:",
        "      - model: a",
        "        layer_range: [0, 2]",
        "        parameters:",
        "          weight:",
        "            - {filter: mlp, value: 11}",
        "            - {filter: q_proj, value: 12}",
        "      - model: b",
        "        layer_range: [0, 2]",
        "        parameters: {weight: {filter: norm, value: 13}}",
        "    parameters: {weight: {filter: up_proj, value: 14}}",
        "  - sources:",
        "      - {model: a, layer_range: [2, 4], parameters: {weight: 15}}",
        "      - {model: b, layer_range: [2, 4]}",
        "parameters: {weight: 16}",
    ]

    def values(text: str) -> dict[tuple[str, int], Decision]:
        found: dict[tuple[str, int], Decision] = {}
        of_text = made(text)
        for tensor in explain(of_text).tensors():
            for place, model in enumerate(tensor.models):
                found[tensor.name, place] = model.values["weight"]
        return found

    before = values("\n".join(lines))
    tried = 0
    for number, line in enumerate(lines, start=1):
        for value in range(11, 17):
            if f" {value}" not in line:
                continue
            changed = [*lines[: number - 1], line.replace(f" {value}", f" {value + 100}"), *lines[number:]]
            after = values("\n".join(changed))
            moved = {key for key in before if before[key].value != after[key].value}
            assert moved == {key for key in before if before[key].where == f"recipe.yml:{number}"}
            assert all(before[key].value == value for key in moved)
            tried += 1
    assert tried == 6
    assert {d.scope for d in before.values()} == {"source", "slice", "recipe"}
    assert {d.filter for d in before.values()} == {None, "mlp", "q_proj", "norm", "up_proj"}


def test_recipes_that_are_data_have_values_without_places() -> None:
    recipe = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}]}
    (tensor,) = explain(plan(recipe), "model.norm.weight").tensors()
    assert tensor.models[0].values["weight"] == Decision(1.0, "source")
    assert tensor.values["normalize"] == Decision(value=True)


# what is copied says why


def test_copies_say_why() -> None:
    recipe = (
        "merge_method: linear\nbase_model: ids\nparameters: {weight: 1}\nmodels: [{model: ids}, {model: a}]"
    )
    why = {t.name: t.why_copied for t in explain(made(recipe)).tensors() if t.method is None}
    assert why == {"model.ids": "I64 is no type of weights"}
    recipe = (
        "merge_method: linear\nbase_model: a\nparameters: {weight: 1}\nmodels: [{model: a}, {model: ids}]"
    )
    why = {t.name: t.why_copied for t in explain(made(recipe)).tensors() if t.method is None}
    assert why == {"model.layers.2.input_layernorm.weight": "missing in 'ids'"}
    recipe = "merge_method: passthrough\nmodels: [{model: a}]"
    tensors = explain(made(recipe)).tensors()
    assert {t.why_copied for t in tensors} == {"passthrough changes nothing with these values"}


# grids


def test_grids_have_the_values_of_the_plan() -> None:
    recipe = """
merge_method: ties
base_model: base
models:
  - {model: a, parameters: {weight: [0, 1], density: 0.5}}
  - {model: b, parameters: {weight: [{filter: mlp, value: [1, 0]}, {value: 1}], density: 0.5}}
"""
    made_plan = made(recipe)
    assert varying(made_plan) == ["weight"]
    drawn = grids(explain(made_plan), "weight")
    assert [(g.model, g.stack, g.num_blocks) for g in drawn] == [
        ("a", "model.layers.*", 4),
        ("b", "model.layers.*", 4),
    ]
    for place, grid in enumerate(drawn):
        for leaf, row in grid.rows.items():
            for block, value in enumerate(row):
                job = next(j for j in made_plan.jobs if j.name == f"model.layers.{block}.{leaf}")
                weight = job.values["weight"]
                assert isinstance(weight, tuple)
                assert value == weight[place]


def test_wide_grids_stay_within_eighty_columns() -> None:
    tiny.decoder(Path("deep"), 9, layers=150)
    made_plan = made(SLERP.replace("model: a", "model: deep").replace("model: b", "model: deep"))
    plain = [click.unstyle(line) for line in draw(explain(made_plan))]
    assert all(len(line) <= 80 for line in plain)
    # Every layer once in each of three rows.
    cells = [c for line in plain[1:-1] for c in line if c in "▁▂▃▄▅▆▇█"]
    assert len(cells) == 3 * 150


def test_colours_are_for_terminals_that_want_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("recipe.yml").write_text(SLERP)
    assert "\x1b" not in command.run(capsys, "explain", "recipe.yml", "--grid").out
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda _, color=None: color is False)
    assert "\x1b[38;5;" in command.run(capsys, "explain", "recipe.yml", "--grid").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in command.run(capsys, "explain", "recipe.yml", "--grid").out


# JSON, and errors


def test_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yml").write_text(
        "merge_method: task_arithmetic\nbase_model: base\n"
        "models:\n  - {model: a, parameters: {weight: [0, 1]}}"
    )
    done = command.run(capsys, "explain", "recipe.yml", "layers.1.mlp", "--json")
    assert json.loads(done.out) == {
        "method": "task_arithmetic",
        "pattern": "layers.1.mlp",
        "num_tensors": 15,
        "tensors": [
            {
                "name": "model.layers.1.mlp.up_proj.weight",
                "t": 1 / 3,
                "method": "task_arithmetic",
                "why_copied": "",
                "base": {"model": "base", "tensor": "model.layers.1.mlp.up_proj.weight"},
                "values": {
                    "lambda": {"value": 1.0, "scope": "default", "where": "", "filter": None},
                    "normalize": {"value": False, "scope": "default", "where": "", "filter": None},
                },
                "models": [
                    {
                        "model": "a",
                        "tensor": "model.layers.1.mlp.up_proj.weight",
                        "values": {
                            "weight": {
                                "value": 1 / 3,
                                "scope": "source",
                                "where": "recipe.yml:4",
                                "filter": None,
                            }
                        },
                    }
                ],
                "notes": [],
            }
        ],
    }


def test_verbose_explains_every_tensor() -> None:
    made_plan = made("merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]")
    lines = list(describe(explain(made_plan), verbose=True))
    assert [line for line in lines if line and line[0] != " "] == [job.name for job in made_plan.jobs]


def test_a_name_that_is_part_of_others_means_itself() -> None:
    tiny.decoder(Path("x"), extra={"norm": torch.ones(3)})
    made_plan = made("merge_method: passthrough\nmodels: [{model: x}]")
    assert [t.name for t in explain(made_plan, "norm").tensors()] == ["norm"]
    assert len(explain(made_plan, "norm.").tensors()) == 3
    assert len(explain(made_plan, "re:norm").tensors()) == 4


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("q_porj", "no tensor of the output matches 'q_porj'\n  did you mean 'q_proj'"),
        ("layers.1.self_atn", "did you mean 'self_attn'"),
        ("model.layers.2.self_atn.q_proj.weight", "did you mean 'model.layers.2.self_attn.q_proj.weight'"),
        ("glob:embed_token", "did you mean 'embed_tokens'"),
        ("zzz", "names are like 'lm_head.weight', 'model.embed_tokens.weight' and "),
        ("re:(", "'re:(' is not a valid regular expression: missing ), unterminated subpattern"),
    ],
)
def test_patterns_without_a_match(pattern: str, said: str) -> None:
    made_plan = made("merge_method: passthrough\nmodels: [{model: a}]")
    with pytest.raises(RecipeError) as raised:
        explain(made_plan, pattern)
    assert said in str(raised.value)


def test_parameters_that_are_not_there() -> None:
    slerp = made("merge_method: slerp\nbase_model: a\nparameters: {t: 1}\nmodels: [{model: a}, {model: b}]")
    with pytest.raises(RecipeError, match="slerp has no parameter 'weight'\n  it has t"):
        list(draw(explain(slerp), "weight"))
