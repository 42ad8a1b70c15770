"""What may be given for a parameter, at the edges; what to begin with; and how both are told."""

from __future__ import annotations

import inspect
import json
import math
import textwrap
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meldkit.methods import METHODS, Base, Parameter
from meldkit.methods.base import Elementwise
from meldkit.methods.describe import (
    data,
    default_text,
    explain,
    minimal_recipe,
    models_text,
    scope_text,
    start_text,
    values_text,
)
from meldkit.recipe import parse_recipe

FLOAT = Parameter("x", "A number.")
BOOL = Parameter("x", "A flag.", kind=bool)
WORD = Parameter("x", "A word.", kind=str, choices=("one", "two"))
TEXT = Parameter("x", "Any text.", kind=str)
ALIASED = Parameter("x", "A word.", kind=str, choices=("l1", "none"), aliases={True: "l1", False: "none"})
DECLARED = [pytest.param(m, p, id=f"{m.name}-{p.name}") for m in METHODS.values() for p in m.parameters]


@given(st.floats(allow_nan=True), st.floats(-5, 5), st.floats(0, 5))
def test_a_number_is_valid_in_its_closed_range(value: float, low: float, width: float) -> None:
    parameter = Parameter("x", "A number.", low=low, high=low + width)
    if low <= value <= low + width:
        assert parameter.check(value) == value
    else:
        with pytest.raises(ValueError, match=r"^x: .* is not valid; it must be "):
            parameter.check(value)
    for edge, beyond in ((low, -math.inf), (low + width, math.inf)):
        assert parameter.check(edge) == edge
        with pytest.raises(ValueError):
            parameter.check(math.nextafter(edge, beyond))


@pytest.mark.parametrize(
    ("parameter", "given", "means"),
    [
        (FLOAT, 1, 1.0),
        (FLOAT, -1e300, -1e300),
        (FLOAT, True, 1.0),
        (FLOAT, np.float32(0.5), 0.5),
        (FLOAT, np.int64(3), 3.0),
        (BOOL, True, True),
        (BOOL, False, False),
        (BOOL, 1, True),
        (BOOL, 0, False),
        (BOOL, 0.0, False),
        (BOOL, np.bool_(True), True),
        (WORD, "two", "two"),
        (TEXT, "anything", "anything"),
        (ALIASED, True, "l1"),
        (ALIASED, False, "none"),
        (ALIASED, "none", "none"),
    ],
)
def test_valid(parameter: Parameter, given: Any, means: Any) -> None:
    value = parameter.check(given)
    assert value == means
    assert type(value) is type(means)


@pytest.mark.parametrize(
    ("parameter", "given", "said"),
    [
        (FLOAT, math.nan, "any number"),
        (FLOAT, math.inf, "any number"),
        (FLOAT, "1", "any number"),
        (FLOAT, None, "any number"),
        (FLOAT, [1.0], "any number"),
        (BOOL, 2, "true or false"),
        (BOOL, -1, "true or false"),
        (BOOL, "true", "true or false"),
        (WORD, "three", "one, two"),
        (WORD, True, "one, two"),
        (WORD, 1, "one, two"),
        (ALIASED, "true", "l1, none"),
        (ALIASED, 2, "l1, none"),
        (ALIASED, None, "l1, none"),
    ],
)
def test_invalid(parameter: Parameter, given: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parameter.check(given)
    assert str(caught.value) == f"x: {given!r} is not valid; it must be {said}"


@pytest.mark.parametrize(
    ("parameter", "text"),
    [
        (FLOAT, "any number"),
        (Parameter("x", "", low=0), "0 or more"),
        (Parameter("x", "", high=0), "0 or less"),
        (Parameter("x", "", low=-0.5, high=1), "-0.5 to 1"),
        (BOOL, "true or false"),
        (WORD, "one, two"),
    ],
)
def test_range_in_words(parameter: Parameter, text: str) -> None:
    assert parameter.range_text == text
    usual = Parameter("x", "", usual=(0, 0.5))
    assert values_text(usual) == "Any number, usually 0 to 0.5"
    assert values_text(parameter) == (f"One of {text}" if parameter.choices else text[0].upper() + text[1:])


@pytest.mark.parametrize(
    ("parameter", "num_models", "start"),
    [
        (Parameter("x", "", start=1.0, shared=True), 3, 0.333),
        (Parameter("x", "", start=1.0, shared=True), 1, 1.0),
        (Parameter("x", "", start=1.0), 3, 1.0),
        (Parameter("x", "", start=0.0), 3, 0.0),
        (Parameter("x", "", default=0.7), 2, None),
        (Parameter("x", "", default=None), 2, None),
        (Parameter("x", "", default=None, start=0.7), 2, 0.7),
        (FLOAT, 2, 0.5),
        (Parameter("x", "", low=2), 2, 2),
        (Parameter("x", "", high=0.25), 2, 0.25),
        (Parameter("x", "", low=0, high=1), 2, 0.5),
        (BOOL, 2, True),
        (WORD, 2, "one"),
        (TEXT, 2, ""),
    ],
)
def test_what_to_begin_with(parameter: Parameter, num_models: int, start: Any) -> None:
    assert parameter.start_for(num_models) == start


@pytest.mark.parametrize(("_", "p"), DECLARED)
def test_declarations_are_valid_themselves(_: object, p: Parameter) -> None:
    """Defaults, beginnings, usual ranges and aliases are within what is allowed; the argument is Python's."""
    if not p.required and p.default is not None:
        assert p.check(p.default) == p.default
    for m in (1, 2, 3, 7):
        start = p.start_for(m)
        assert start is None or p.check(start) == start
    if p.shared:
        assert sum(p.check(p.start_for(4)) for _ in range(4)) == pytest.approx(p.start)
    for word in p.aliases.values():
        assert word in p.choices
    if p.usual is not None:
        assert p.low <= p.usual[0] < p.usual[1] <= p.high
    assert p.argument.isidentifier()
    assert p.argument.removesuffix("_") == p.name
    assert p.doc.endswith(".")
    assert (p.reason != "") == (p.start is not None)


@pytest.mark.parametrize("name", METHODS)
def test_minimal_recipe_is_all_that_the_method_needs(name: str) -> None:
    """It gives what is required, and nothing else; and as few models as make sense."""
    method = METHODS[name]
    recipe = parse_recipe(minimal_recipe(method))
    (source, *others) = recipe.modules[0].slices[0].sources
    low, high = method.num_models
    num = 1 + len(others) + (method.base is Base.ENDPOINT)
    assert low <= num <= (high or 9)
    assert num == max(low, min(2, high or 2))
    assert (recipe.base_model is not None) == method.base.required
    required = [p for p in method.parameters if p.required]
    assert list(source.parameters) == [p.name for p in required if p.per_model]
    assert list(recipe.parameters) == [p.name for p in required if not p.per_model]
    assert all(other.parameters == source.parameters for other in others)
    assert len({str(s.model) for s in (source, *others)}) == 1 + len(others)
    for p in required:
        setting = (source.parameters | recipe.parameters)[p.name]  # type: ignore[operator]
        assert setting.value == p.start_for(1 + len(others))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("linear", "1 or more"),
        ("slerp", "2"),
        ("ties", "1 or more + base"),
        ("model_stock", "2 or more + base"),
        ("nearswap", "1 + base"),
        ("passthrough", "1"),
    ],
)
def test_numbers_of_models_in_words(name: str, text: str) -> None:
    assert models_text(METHODS[name]) == text


def test_defaults_beginnings_and_places_in_words() -> None:
    assert default_text(FLOAT) == "required"
    assert default_text(Parameter("x", "", default=None)) == "not used"
    assert default_text(Parameter("x", "", default=True, kind=bool)) == "true"
    assert default_text(Parameter("x", "", default=1e-5)) == "1e-05"
    assert default_text(Parameter("x", "", default="l1", kind=str)) == "l1"
    assert start_text(FLOAT) == ""
    assert start_text(Parameter("x", "", start=0.5, reason="half")) == "0.5 (half)"
    assert start_text(Parameter("x", "", start=1.0, shared=True, reason="r")) == "1 / number of models (r)"
    assert start_text(Parameter("x", "", kind=bool, start=True, reason="r")) == "True (r)"
    assert scope_text(FLOAT) == "slice or recipe"
    assert scope_text(Parameter("x", "", per_model=True)) == "model, slice or recipe"
    assert scope_text(Parameter("x", "", of_recipe=True)) == "the recipe's `compat: mergekit`"


@pytest.mark.parametrize("name", METHODS)
def test_measuring_the_whole_model_looks_at_declared_parameters(name: str) -> None:
    method = METHODS[name]
    assert set(method.model_parameters) <= {p.name for p in method.parameters}
    assert bool(method.model_parameters) == (method.measure_model is not None)


def test_what_a_base_model_means() -> None:
    assert [base for base in Base if base.required] == [Base.ENDPOINT, Base.DELTA]
    assert [base for base in Base if base.delta] == [Base.DELTA, Base.OPTIONAL_DELTA]


@pytest.mark.parametrize("name", METHODS)
def test_everything_about_a_method_as_text(name: str) -> None:
    """Its name, documentation, models, parameters, and a minimal recipe, each after an empty line."""
    method = METHODS[name]
    documentation = inspect.getdoc(method.function) or ""
    head, rest = explain(method).split(documentation)
    assert head == f"{name}\n\n"
    about, *parameters, recipe_title, recipe = rest.strip("\n").split("\n\n")
    assert about.startswith(
        f"Models: {models_text(method)}.  base_model: {method.base.value}.  Speed class: "
    )
    assert about.endswith(f"{method.shape}.")
    assert recipe_title == "A minimal recipe:"
    assert textwrap.dedent(recipe) + "\n" == minimal_recipe(method)
    assert recipe.startswith("    merge_method")
    if not method.parameters:
        assert parameters == []
        return
    title, *lines = parameters[0].split("\n")
    assert title == "Parameters:"
    for p in method.parameters:
        assert lines.pop(0) == (
            f"  {p.name}: {p.doc} {values_text(p)}; default {default_text(p)}; {scope_text(p)}."
        )
        if p.start is not None:
            assert lines.pop(0) == f"    Begin with {start_text(p)}."
    assert lines == []


@pytest.mark.parametrize("name", METHODS)
def test_everything_about_a_method_as_json(name: str) -> None:
    """JSON has no infinity; limits that there are not are null, and so is the default of what is required."""
    method = METHODS[name]
    told = json.loads(json.dumps(data(method), allow_nan=False))
    parameters = told.pop("parameters")
    assert told == {
        "name": name,
        "summary": method.summary,
        "documentation": inspect.getdoc(method.function),
        "paper": method.paper,
        "speed_class": method.shape,
        "base_model": method.base.value,
        "num_models": list(method.num_models),
        "minimal_recipe": minimal_recipe(method),
    }
    assert "\n" not in method.summary
    assert told["documentation"].startswith(f"{method.summary}\n\n")
    for p, shown in zip(method.parameters, parameters, strict=True):
        assert shown == {
            "name": p.name,
            "doc": p.doc,
            "kind": {float: "float", bool: "bool", str: "str"}[p.kind],
            "required": p.required,
            "default": None if p.required else p.default,
            "low": None if p.low == -math.inf else p.low,
            "high": None if p.high == math.inf else p.high,
            "choices": list(p.choices),
            "per_model": p.per_model,
            "start": p.start,
            "reason": p.reason,
        }


def test_a_method_without_documentation_has_an_empty_one() -> None:
    method = Elementwise(name="mine", function=lambda x: x[0])
    assert (method.summary, data(method)["summary"], data(method)["documentation"]) == ("", "", "")
    assert explain(method).startswith("mine\n\n\n\nModels: 1 or more.  ")
