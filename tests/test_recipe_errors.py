"""Every message a recipe can earn, word for word, and what is warned about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from meldkit.errors import MeldError, RecipeError
from meldkit.recipe import load_recipe, load_recipes, parse_recipe, parse_recipes, recipe_from_data

GOLDEN = Path(__file__).parent / "golden" / "recipe_errors.txt"

MODELS = "merge_method: linear\nmodels:\n  - model: a\n"
SLICES = "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 1]}]\n"


def cases() -> list[tuple[str, str, str]]:
    """(name, recipe, message) of each case: `#### name`, the recipe, `>>>>`, the message."""
    found: list[tuple[str, str, str]] = []
    for case in GOLDEN.read_text(encoding="utf-8").split("#### ")[1:]:
        name, rest = case.split("\n", 1)
        recipe, message = rest.split(">>>>\n")
        found.append((name, recipe, message.rstrip("\n")))
    return found


@pytest.mark.parametrize(("recipe", "message"), [pytest.param(r, m, id=name) for name, r, m in cases()])
def test_message(recipe: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe)
    assert str(caught.value) == message
    assert caught.value.exit_status == 2


def test_names_of_cases_are_unique() -> None:
    names = [name for name, _, _ in cases()]
    assert len(set(names)) == len(names) > 60


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "'merge_method' is missing in the recipe"),
        (
            {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": [0, []]}}]},
            "models[0].parameters.weight[1]: parameter 'weight': a gradient cannot hold another list",
        ),
        (
            {"merge_method": "linear", "models": [{"model": "a"}, {"modle": "b"}]},
            "models[1].modle: unknown key 'modle' in an entry of 'models'",
        ),
        ({"merge_method": "linear"}, "'models', 'slices' or 'modules' is missing"),
        ({True: "linear"}, "key True of the recipe is not text"),
        (
            {"merge_method": "linear", "models": [{"model": "a"}], "tokenizer": {"tokens": {1: {}}}},
            "tokenizer.tokens: key 1 of 'tokens' is not text",
        ),
        (
            {"merge_method": "linear", "models": [{"model": object}]},
            "models[0].model: a model must be text or a mapping, got a Python type",
        ),
        (
            {"merge_method": "linear", "models": [{"model": 10**5000}]},
            "models[0].model: a model must be text or a mapping, got a huge number",
        ),
    ],
)
def test_python_data_is_placed_by_its_path(data: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from_data(data)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("recipe", "warning"),
    [
        (
            MODELS + "normalize: true\n",
            "recipe.yml:4: 'normalize' here has no effect; write it under 'parameters:'",
        ),
        (
            MODELS + "int8_mask: true\n",
            "recipe.yml:4: 'int8_mask' here has no effect; write it under 'parameters:'",
        ),
        (
            MODELS + "    weight: 0.5\n",
            "recipe.yml:4: 'weight' here has no effect; write it under 'parameters:'",
        ),
        (
            MODELS + "    dtype: float16\n",
            "recipe.yml:4: 'dtype' here has no effect; write it at the top level of the recipe",
        ),
        (
            MODELS + "    layer_range: [0, 32]\n",
            "recipe.yml:4: 'layer_range' here has no effect; layers are chosen under 'slices:'",
        ),
        (
            MODELS + "parameters:\n  dtype: float16\n",
            "recipe.yml:5: 'dtype' here has no effect; write it at the top level of the recipe",
        ),
        (
            SLICES + "    residual_weight: 1\n",
            "recipe.yml:4: 'residual_weight' here has no effect",
        ),
    ],
)
def test_accepted_but_without_effect(recipe: str, warning: str) -> None:
    read = parse_recipe(recipe)
    assert read.warnings == (warning,)
    assert parse_recipe(read.to_yaml()).warnings == ()


def test_warning_of_python_data() -> None:
    recipe = recipe_from_data(yaml.safe_load(MODELS + "density: 0.5\n"))
    assert recipe.warnings == ("density: 'density' here has no effect; write it under 'parameters:'",)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    with pytest.raises(RecipeError, match=r"cannot read recipe '.*r\.yml': No such file or directory"):
        load_recipe(path)
    with pytest.raises(RecipeError, match=r"cannot read recipe '.*': Is a directory"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError, match="cannot read recipe"):
        load_recipe("a\0b")
    path.write_bytes(b"merge_method: \xff\n")
    with pytest.raises(
        RecipeError, match=r"r\.yml: not UTF-8 text: byte 0xff at position 14\n  save the file as UTF-8"
    ):
        load_recipe(path)
    path.write_bytes(b"#" * (16 * 2**20 + 1))
    with pytest.raises(RecipeError, match="more than 16 MiB is too much for a recipe"):
        load_recipe(path)
    path.write_bytes(b"\xef\xbb\xbf" + MODELS.encode())
    recipe = load_recipe(path)
    assert recipe.origin == str(path)
    assert recipe.lines["models"] == f"{path}:2"
    assert load_recipes(path) == (recipe,)


def test_documents_of_one_file() -> None:
    first, second = parse_recipes(f"name: first\n{MODELS}---\n{MODELS.replace('a', 'first')}---\n")
    assert first.name == "first"
    assert second.name is None
    assert [str(model) for model in second.models()] == ["first"]
    assert second.lines["merge_method"] == "recipe.yml:6"
    assert parse_recipe(f"name: first\n{MODELS}---\n{MODELS.replace('a', 'first')}") == replace(
        second, stages={"first": first}
    )
    with pytest.raises(RecipeError) as caught:
        parse_recipes(f"name: x\n{MODELS}---\nname: x\n{MODELS}")
    assert caught.value.message == "recipe.yml:6: name 'x' is taken; see recipe.yml:1"


def test_recipe_that_holds_itself() -> None:
    recipe: dict[str, object] = {"name": "a", "merge_method": "linear"}
    recipe["models"] = [{"model": recipe}]
    assert [ref.path for ref in recipe_from_data(recipe).models()] == ["a"]


HOSTILE = {
    "deep flow": "[" * 100_000,
    "deep block": "\n".join("  " * level + "a:" for level in range(200)),
    "alias bomb": "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
    ),
    "merge bomb": "a: &a {x: 1}\n"
    + "".join(
        f"{b}: &{b}\n  <<: [{', '.join(['*' + a] * 20)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
    ),
    "merge of itself": "a: &a\n  <<: *a\n  b: 1\n",
    "control character": MODELS + "name: \x07\n",
    "lone surrogate": MODELS + "name: '\ud800'\n",
    "digits": MODELS + f"parameters: {{w: {'9' * 5000}}}\n",
    "large number": MODELS + f"parameters: {{w: {'9' * 400}}}\n",
    "bad int": MODELS + "parameters: {w: !!int abc}\n",
    "bad bool": MODELS + "parameters: {w: !!bool abc}\n",
    "bad float": MODELS + "parameters: {w: !!float ''}\n",
    "binary": MODELS + "name: !!binary aGk=\n",
    "set": MODELS + "parameters: !!set {a}\n",
    "tab after odd line breaks": "a:\x85\u2028\t- b",
    "yaml version": "%YAML 9.9\n---\n" + MODELS,
    "nested filters": MODELS + "parameters: {w: " + "{value: " * 30 + "1" + "}" * 31,
}


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in HOSTILE.items()])
def test_hostile_text_is_an_error_and_nothing_worse(
    text: str, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meldkit.recipe.source._LOADER", getattr(yaml, loader))
    if loader == "SafeLoader" and text.startswith("[["):
        text = text[:200]
    with pytest.raises(RecipeError, match=r"^recipe\.yml"):
        parse_recipe(text)


def test_self_containing_python_data() -> None:
    value: dict[str, object] = {}
    value["value"] = [value]
    with pytest.raises(MeldError, match="filters are nested more than 16 deep"):
        recipe_from_data({"merge_method": "linear", "models": [{"model": "a"}], "parameters": {"w": value}})
