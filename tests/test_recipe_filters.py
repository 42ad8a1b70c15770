"""Filters, against a definition that follows the choice one entry at a time; and where a bad value stands."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deadline import within
from meldkit.errors import RecipeError
from meldkit.recipe import (
    Filtered,
    Setting,
    Value,
    evaluate,
    filter_matches,
    filters_of,
    parse_value,
    recipe_from_data,
    unreached_by,
)
from meldkit.recipe.values import choices

NAMES = st.sampled_from(["model.layers.0.mlp.up.weight", "model.norm.weight", "a", "ab", "b"])
FILTERS = st.sampled_from([None, "*", "a", "b", "ab", "mlp", "re:^a$", "glob:*norm*", "nowhere"])
LEAVES = st.sampled_from([0.0, 1.0, 0.5, True, "text"]) | st.lists(st.floats(-9, 9), min_size=1, max_size=3)


def entries(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A list of values with filters, as recipes write it."""

    def written(pairs: list[tuple[str | None, Any]]) -> list[dict[str, Any]]:
        return [{"value": v} if f is None else {"filter": f, "value": v} for f, v in pairs]

    return st.lists(st.tuples(FILTERS, inner), min_size=1, max_size=4).map(written)


VALUES = st.recursive(LEAVES, entries, max_leaves=8)


def matching(value: Filtered, name: str) -> list[int]:
    return [i for i, (chosen, _) in enumerate(value.entries) if filter_matches(chosen, name)]


def followed(value: Value, name: str) -> tuple[tuple[int, ...], Value | None]:
    """The entries that decide, by the definition, and what is written there."""
    if not isinstance(value, Filtered):
        return (), value
    found = matching(value, name)
    if not found:
        return (-1,), None
    more, end = followed(value.entries[found[0]][1], name)
    return (found[0], *more), end


@settings(deadline=None)
@given(VALUES, NAMES, st.floats(0, 1))
def test_the_first_entry_that_matches_decides_at_every_level(raw: Any, name: str, t: float) -> None:
    value = parse_value(raw)
    path, end = followed(value, name)
    assert choices(value, name) == path
    assert evaluate(value, name, t) == (None if end is None else evaluate(end, "", t))


@settings(deadline=None)
@given(VALUES, NAMES)
def test_a_setting_names_the_line_of_the_entry_that_decides(raw: Any, name: str) -> None:
    value = parse_value(raw)
    lines = tuple(f"r:{i}" for i in range(len(value.entries))) if isinstance(value, Filtered) else ()
    where, chosen = Setting(value, "r", lines).line_for(name)
    first = matching(value, name)[:1] if isinstance(value, Filtered) else []
    if not first:
        assert (where, chosen) == ("r", None)
    else:
        assert isinstance(value, Filtered)
        assert (where, chosen) == (f"r:{first[0]}", value.entries[first[0]][0])
        # Data of Python has no lines.
        assert Setting(value).line_for(name) == ("", chosen)


def decides_nothing(value: Value) -> list[str]:
    """Filters behind an entry of their own list that takes every tensor; of the outermost list first."""
    if not isinstance(value, Filtered):
        return []
    filters = [chosen for chosen, _ in value.entries]
    after = next((i + 1 for i, chosen in enumerate(filters) if chosen in (None, "*")), len(filters))
    own = [chosen for chosen in filters[after:] if chosen is not None]
    return own + [late for _, inner in value.entries for late in decides_nothing(inner)]


@settings(deadline=None)
@given(VALUES)
def test_a_filter_that_is_never_looked_at_is_found(raw: Any) -> None:
    value = parse_value(raw)
    late = decides_nothing(value)
    assert unreached_by(value) == (late[0] if late else None)
    assert set(late) <= set(filters_of(value))


@settings(deadline=None)
@given(VALUES)
def test_what_was_read_is_read_as_itself(raw: Any) -> None:
    """Also as a part of what is not read yet."""
    value = parse_value(raw)
    assert parse_value(value) is value
    assert parse_value({"filter": "x", "value": value}) == Filtered((("x", value),))


@given(st.lists(st.booleans() | st.sampled_from([0.5, 2, "1e-3"]), min_size=1, max_size=4))
def test_points_are_all_of_one_type(points: list[Any]) -> None:
    """Truth among numbers is the number 0 or 1; alone it stays what it is."""
    value = parse_value(points)
    kinds = {type(evaluate(value, "", i / max(1, len(points) - 1))) for i in range(len(points))}
    assert kinds == ({bool} if all(isinstance(p, bool) for p in points) else {float})


#: A bad value, and the place in it that is to blame.
BAD = [
    (None, ""),
    ([], ""),
    ([1, "text"], "[0]"),
    (["text", 1], "[1]"),
    ([1, [2]], "[1]"),
    ([1, None], "[1]"),
    (float("inf"), ""),
    ([0, float("nan")], "[1]"),
    ([{"value": 1}, 3], "[1]"),
    ({"filter": 3, "value": 1}, ".filter"),
    ({"filter": "re:(", "value": 1}, ".filter"),
    ([{"value": 1}, {"filter": "re:[", "value": 1}], "[1].filter"),
    ({"value": 1, "filer": "a"}, ".filer"),
]


@settings(deadline=None)
@given(st.sampled_from(BAD), st.lists(st.integers(0, 2), max_size=4))
def test_a_bad_value_is_found_wherever_it_stands(bad: tuple[Any, str], way: list[int]) -> None:
    raw, place = bad
    if raw is None and way:
        raw, place = [], ""  # no value at all has a message of its own
    for before in way:
        raw = [*({"filter": str(i), "value": i} for i in range(before)), {"filter": "x", "value": raw}]
        place = f"[{before}].value{place}"
    with pytest.raises(RecipeError) as caught:
        recipe_from_data({"merge_method": "linear", "models": [{"model": "a"}], "parameters": {"w": raw}})
    assert str(caught.value).startswith(f"parameters.w{place}: parameter 'w': ")


def test_filters_may_be_nested_16_deep() -> None:
    value: Any = 1
    for _ in range(16):
        value = {"filter": "a", "value": value}
    assert evaluate(parse_value(value), "a", 0) == 1
    with pytest.raises(RecipeError, match="more than 16 deep"):
        parse_value({"filter": "a", "value": value})


@pytest.mark.parametrize("text", ["mlp(", "re", "x[", "glob", "*a", "(?P<"])
def test_signs_of_patterns_are_text_without_re(text: str) -> None:
    value = parse_value({"filter": text, "value": 1})
    assert evaluate(value, f"model.{text}.weight", 0) == 1
    assert evaluate(value, "model.other.weight", 0) is None


@pytest.mark.parametrize("expression", ["(([a-z_.0-9])+)+[A-Z]", "(?=(([a-z_.0-9])+)+[A-Z])"])
def test_expression_that_takes_too_long_is_stopped(expression: str) -> None:
    """Python's own module would go on for longer than anyone lives."""
    value = parse_value([{"filter": f"re:{expression}", "value": 1}])
    with pytest.raises(RecipeError) as caught:
        within(20, lambda: evaluate(value, f"{'layers.' * 20}weight", 0))
    assert "takes too long to be looked for in 'layers." in caught.value.message


@pytest.mark.parametrize(
    "expression", ["(?:(?:a?){6000}){6000}", "a" * 20_000, "a{9999999}", "(a{0,5}){3000}"]
)
def test_expression_that_is_too_large_to_be_compiled(expression: str) -> None:
    with pytest.raises(RecipeError, match="is too large"):
        within(20, lambda: parse_value([{"filter": f"re:{expression}", "value": 1}]))


def test_only_what_python_understands_is_an_expression() -> None:
    """The other module knows more, such as expressions inside of themselves."""
    with pytest.raises(RecipeError, match="is not a valid regular expression: unknown extension"):
        parse_value([{"filter": "re:(?:(?R)|.)*", "value": 1}])


@given(
    st.lists(st.sampled_from(["layers", r"\.", r"\d+", "[0-4]", "(q|k)", "^", "$", "m?", ".*"])),
    NAMES,
)
def test_expressions_mean_what_they_mean_to_python(parts: list[str], name: str) -> None:
    text = "".join(parts)
    assert filter_matches(f"re:{text}", name) == (re.search(text, name) is not None)


def test_expression_that_python_may_read_differently_one_day_is_no_warning() -> None:
    assert evaluate(parse_value({"filter": "re:[[]a", "value": 1}), "[a", 0) == 1
