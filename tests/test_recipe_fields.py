"""Fields of a recipe: what may be written and what it means, at the edges; and where a bad one stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meldkit.errors import RecipeError
from meldkit.recipe import ModelRef, ModelToken, Recipe, recipe_from_data

SLICES = {"merge_method": "linear", "slices": [{"sources": [{"model": "a", "layer_range": [0, 4]}]}]}
A = ModelRef.parse("a")


def padded(value: Any) -> dict[str, Any]:
    return {**SLICES, "tokenizer": {"source": "union", "pad_to_multiple_of": value}}


def ranged(value: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "slices": [{"sources": [{"model": "a", "layer_range": value}]}]}


def token(source: Any) -> dict[str, Any]:
    return {**SLICES, "tokenizer": {"source": "union", "tokens": {"<x>": {"source": source}}}}


def vocabulary(source: Any) -> dict[str, Any]:
    return {**SLICES, "tokenizer": {"source": source}}


def of_token(**fields: Any) -> dict[str, Any]:
    return token({"kind": "model_token", "model": "a", **fields})


def found(recipe: Recipe, kind: Callable[[Any], Any]) -> object:
    """What a field has become."""
    tokenizer = recipe.tokenizer
    if kind is ranged:
        return recipe.modules[0].slices[0].sources[0].layer_range
    assert tokenizer is not None
    if kind is padded:
        return tokenizer.pad_to_multiple_of
    return tokenizer.source if kind is vocabulary else tokenizer.tokens["<x>"].source


@pytest.mark.parametrize(
    ("kind", "raw", "means"),
    [
        *(
            (padded, raw, number)
            for raw, number in [(1, 1), (64, 64), ("8", 8), (8.0, 8), ("123456789", 123456789)]
        ),
        *((ranged, raw, (0, 8)) for raw in ([0, 8], (0, 8), ["0", "8"], [0.0, 8.0])),
        *((ranged, raw, tuple(raw)) for raw in ([0, 0], [3, 3], [3, 4])),
        (token, "a", A),
        (token, "mankind", ModelRef.parse("mankind")),
        (token, {"model": {"path": "a"}}, A),
        (token, {"kind": "zero"}, "zero"),
        (token, {"kind": "model_token", "model": "a", "token": "y"}, ModelToken(A, token="y")),
        (token, {"kind": "model_token", "model": "a", "token_id": 0}, ModelToken(A, token_id=0)),
        (token, {"kind": "model_token", "model": "a", "token_id": "7"}, ModelToken(A, token_id=7)),
        (vocabulary, "union", "union"),
        (vocabulary, "base", "base"),
        (vocabulary, "a", A),
        (vocabulary, {"model": {"path": "a"}}, A),
        (vocabulary, "model:base", ModelRef.parse("base")),
        (vocabulary, "model:union", ModelRef.parse("union")),
    ],
)
def test_what_may_be_written(kind: Callable[[Any], dict[str, Any]], raw: Any, means: object) -> None:
    value = found(recipe_from_data(kind(raw)), kind)
    assert value == means
    assert type(value) is type(means)


WHOLE = "must be a whole number, "
PAIR = "'layer_range' must be two whole numbers, got "


@pytest.mark.parametrize(
    ("data", "place", "message"),
    [
        *(
            (padded(raw), "tokenizer.pad_to_multiple_of", f"'pad_to_multiple_of' {WHOLE}1 or more, got ")
            for raw in (0, -1, True, 1.5, "x", "1234567890", "٣", "", [1])
        ),
        *(
            (ranged(raw), "slices[0].sources[0].layer_range", PAIR)
            for raw in ([0], [0, 1, 2], [], [True, 8], [0, None], [0, 1.5], 3, "0-8", {"0": 8})
        ),
        *(
            (ranged(raw), "slices[0].sources[0].layer_range", f"'layer_range' {raw} is not a range of layers")
            for raw in ([8, 0], [-1, 3], [-2, -1])
        ),
        (of_token(), "", "a model's token is given by exactly one of 'token' and 'token_id'"),
        (of_token(token="y", token_id=0), "", "a model's token is given by exactly one of"),
        (of_token(token=3), ".token", "'token' must be text, got the number 3\n  put it in quotes"),
        (of_token(token_id=-1), ".token_id", f"'token_id' {WHOLE}0 or more, got the number -1"),
        (of_token(token_id=True), ".token_id", f"'token_id' {WHOLE}0 or more, got "),
        (of_token(token_id=0, more=1), ".more", "unknown key 'more' in a model's token"),
        (token({"kind": "model_token", "token": "y"}), "", "'model' is missing in a model's token"),
        (token({"kind": "model_token", "model": 3, "token": "y"}), ".model", "a model must be text"),
        (token({"kind": "zero", "model": "a"}), ".model", "unknown key 'model' in a zero embedding"),
        (token({"kind": "zeros"}), ".kind", "'kind' cannot be the text 'zeros'\n  did you mean 'zero'?"),
        (token({"kind": 0}), ".kind", "'kind' cannot be the number 0\n  known: model_token, zero"),
    ],
)
def test_what_may_not_is_found_where_it_stands(data: dict[str, Any], place: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from_data(data)
    if not place.startswith(("tokenizer", "slices")):
        place = f"tokenizer.tokens.<x>.source{place}"
    assert str(caught.value).startswith(f"{place}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"merge_method": 3},
            "merge_method: 'merge_method' must be text, got the number 3\n  put it in quotes",
        ),
        (
            {"merge_method": True},
            "merge_method: 'merge_method' must be text, got the value true\n  put it in quotes",
        ),
        ({"merge_method": ["a"]}, "merge_method: 'merge_method' must be text, got a list"),
        ({"merge_method": " "}, "merge_method: 'merge_method' is empty"),
        ({"models": []}, "models: 'models' is an empty list"),
        (
            {"models": {"a": 1}},
            "models: 'models' must be a list, got a mapping (keys and values)\n  begin each entry with '- '",
        ),
        ({"models": "a"}, "models: 'models' must be a list, got the text 'a'\n  begin each entry with '- '"),
        ({"parameters": [1]}, "parameters: 'parameters' must be a mapping (keys and values), got a list"),
        ({"parameters": {1: 2}}, "parameters: key 1 of 'parameters' is not text\n  put it in quotes"),
        ({"models": None, "modules": {}}, "modules: 'modules' is empty"),
        ({"compat": "mergekat"}, "compat: 'compat' cannot be 'mergekat'\n  did you mean 'mergekit'?"),
        (
            {"tokenizer": {"tokens": {"x": {"source": "a", "force": 1}}}},
            "tokenizer.tokens.x.force: 'force' must be",
        ),
    ],
)
def test_fields_of_the_wrong_kind(data: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from_data({"merge_method": "linear", "models": [{"model": "a"}], **data})
    assert str(caught.value).startswith(message)
    if "\n" not in message:
        assert caught.value.hint == ""


def test_models_are_named_once_in_the_order_of_the_file_and_bases_last() -> None:
    data = {
        "merge_method": "linear",
        "base_model": "z",
        "slices": [
            {"base_model": "y", "sources": [{"model": "b", "layer_range": [0, 1]}]},
            {"sources": [{"model": m, "layer_range": [0, 1]} for m in ("a", "b", "c")]},
        ],
    }
    assert [str(m) for m in recipe_from_data(data).models()] == ["b", "a", "c", "y", "z"]
    del data["base_model"]
    assert [str(m) for m in recipe_from_data(data).models()] == ["b", "a", "c", "y"]
