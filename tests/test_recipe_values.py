"""Parameter values: worked examples, and the laws of gradients and filters."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meldkit.errors import RecipeError
from meldkit.recipe import (
    Filtered,
    Gradient,
    Setting,
    Value,
    evaluate,
    filter_matches,
    filters_of,
    parse_value,
    reaches,
    resolve,
    to_plain,
)

numbers = st.floats(-1e6, 1e6)
depths = st.floats(0, 1)


def depths_of(num_layers: int) -> list[float]:
    return [1.0 if num_layers == 1 else j / (num_layers - 1) for j in range(num_layers)]


def test_three_points_over_five_layers() -> None:
    value = parse_value([0, 0.5, 1])
    assert [evaluate(value, "x", t) for t in depths_of(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert evaluate(value, "lm_head.weight", 0.0) == 0


def test_single_layer_takes_the_last_point() -> None:
    assert [evaluate(parse_value([1, 2, 3]), "x", t) for t in depths_of(1)] == [3]


def test_filtered_gradient_and_fallback() -> None:
    value = parse_value([{"filter": "self_attn", "value": [0, 1]}, {"value": 0.3}])
    assert evaluate(value, "model.layers.1.self_attn.q_proj.weight", 0.5) == 0.5
    assert evaluate(value, "model.layers.1.mlp.up_proj.weight", 0.5) == 0.3


def test_no_filter_matches() -> None:
    value = parse_value([{"filter": "self_attn", "value": 1}])
    assert evaluate(value, "mlp", 0) is None


def test_outer_filter_decides_even_if_the_inner_ones_match_nothing() -> None:
    value = parse_value([{"filter": "a", "value": [{"filter": "b", "value": 1}]}, {"value": 2}])
    assert evaluate(value, "ab", 0) == 1
    assert evaluate(value, "a", 0) is None
    assert evaluate(value, "b", 0) == 2


@pytest.mark.parametrize(
    ("chosen", "name", "matches"),
    [
        (None, "anything", True),
        ("*", "anything", True),
        ("", "anything", True),
        ("mlp", "model.layers.0.mlp.up_proj.weight", True),
        ("1", "layers.10.x", True),
        ("MLP", "mlp", False),
        (r"re:layers\.(0|1)\.", "model.layers.1.x", True),
        (r"re:layers\.(0|1)\.", "model.layers.10.x", False),
        ("re:^mlp", "model.mlp", False),
        ("glob:*.layers.?.mlp.*", "model.layers.3.mlp.up", True),
        ("glob:*.layers.?.mlp.*", "model.layers.13.mlp.up", False),
        ("glob:mlp", "model.mlp", False),
    ],
)
def test_filters(chosen: str | None, name: str, matches: bool) -> None:
    assert filter_matches(chosen, name) is matches


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (1, 1.0),
        (True, True),
        ("1e-10", 1e-10),
        (" -.5E3 ", -500.0),
        ("max", "max"),
        ("nan", "nan"),
        ("1_000", "1_000"),
        ([1, 2], Gradient((1.0, 2.0))),
        ((1, 2), Gradient((1.0, 2.0))),
        ([0, "1e-3"], Gradient((0.0, 1e-3))),
        ([True, False], Gradient((True, False))),
        ([True, 0.5], Gradient((1.0, 0.5))),
        (["sum", "count"], Gradient(("sum", "count"))),
        ({"value": 1, "filter": "x"}, Filtered((("x", 1.0),))),
        ({"value": 1}, Filtered(((None, 1.0),))),
        ([{"value": 1, "filter": None}], Filtered(((None, 1.0),))),
    ],
)
def test_reading(raw: object, value: Value) -> None:
    read = parse_value(raw)
    assert read == value
    assert type(read) is type(value)
    assert parse_value(to_plain(read)) == read


def test_where_begins_the_message() -> None:
    with pytest.raises(RecipeError, match=r"^recipe\.yml:3: the list is empty"):
        parse_value([], "recipe.yml:3")


@pytest.mark.parametrize(
    "raw",
    [
        math.nan,
        math.inf,
        "1e999",
        10**400,
        pytest.param(10**5000, id="huge"),
        [1, math.nan],
        None,
        object(),
        b"x",
    ],
)
def test_not_values(raw: object) -> None:
    with pytest.raises(RecipeError):
        parse_value(raw)


@given(st.lists(numbers, min_size=1, max_size=9))
def test_gradient_meets_its_points(points: list[float]) -> None:
    gradient = Gradient(tuple(points))
    assert gradient.at(0.0) == points[0]
    assert gradient.at(1.0) == points[-1]
    for index, point in enumerate(points[:-1]):
        assert gradient.at(index / (len(points) - 1)) == pytest.approx(point, abs=1e-6, rel=1e-9)


@given(st.lists(numbers, min_size=1, max_size=9), depths)
def test_gradient_stays_between_its_extremes(points: list[float], t: float) -> None:
    value = Gradient(tuple(points)).at(t)
    assert isinstance(value, float)
    slack = 1e-9 * max(map(abs, points))
    assert min(points) - slack <= value <= max(points) + slack


@given(numbers, numbers, depths)
def test_two_points_are_linear(a: float, b: float, t: float) -> None:
    assert Gradient((a, b)).at(t) == pytest.approx((1 - t) * a + t * b, abs=1e-6)


@given(st.lists(numbers, min_size=1, max_size=6), numbers, numbers, depths)
def test_gradient_commutes_with_affine_maps(
    points: list[float], scale: float, shift: float, t: float
) -> None:
    mapped = Gradient(tuple(scale * point + shift for point in points)).at(t)
    plain = Gradient(tuple(points)).at(t)
    assert isinstance(plain, float)
    assert mapped == pytest.approx(scale * plain + shift, abs=1e-2, rel=1e-6)


@given(st.lists(numbers, min_size=1, max_size=6), depths)
def test_reversed_gradient_runs_backwards(points: list[float], t: float) -> None:
    forwards, backwards = Gradient(tuple(points)), Gradient(tuple(points[::-1]))
    assert forwards.at(t) == pytest.approx(backwards.at(1 - t), abs=1e-6, rel=1e-6)


@pytest.mark.parametrize(("t", "point"), [(0, "a"), (0.49, "a"), (0.5, "b"), (0.99, "b"), (1, "c")])
def test_texts_step(t: float, point: str) -> None:
    assert Gradient(("a", "b", "c")).at(t) == point


@pytest.mark.parametrize(
    ("raw", "name", "expected"),
    [
        ([0, 1], "x", True),
        ([1, 1], "x", False),
        ([1], "x", False),
        (0.5, "x", False),
        ([{"filter": "a", "value": [0, 1]}, {"value": 0}], "a", True),
        ([{"filter": "a", "value": [0, 1]}, {"value": 0}], "b", False),
        ([{"filter": "a", "value": [0, 1]}], "b", False),
    ],
)
def test_reaches(raw: object, name: str, expected: bool) -> None:
    assert reaches(parse_value(raw), name) is expected


def test_filters_of() -> None:
    raw = [
        {"filter": "a", "value": {"filter": "b", "value": 1}},
        {"filter": "*", "value": [0, 1]},
        {"value": 2},
    ]
    assert list(filters_of(parse_value(raw))) == ["a", "b", "*"]
    assert list(filters_of(1.0)) == []


def test_resolve_takes_the_first_scope_that_answers() -> None:
    def settings(raw: object, where: str) -> dict[str, Setting]:
        return {"weight": Setting(parse_value(raw), where)}

    scopes = [
        ("source", settings([{"filter": "mlp", "value": [0, 1]}], "r:1")),
        ("slice", {}),
        ("module", settings([{"filter": "norm", "value": 3}], "r:2")),
        ("recipe", settings(4, "r:3")),
    ]

    def found(name: str, t: float = 0.25) -> tuple[object, str, str] | None:
        resolved = resolve("weight", name, t, scopes)
        return None if resolved is None else (resolved.value, resolved.where, resolved.scope)

    assert found("mlp") == (0.25, "r:1", "source")
    assert found("norm") == (3, "r:2", "module")
    assert found("attn") == (4, "r:3", "recipe")
    assert resolve("density", "mlp", 0, scopes) is None
    assert resolve("weight", "mlp", 0, scopes[1:2]) is None


def test_resolve_keeps_falsy_values() -> None:
    scopes = [("source", {"w": Setting(0.0, "a")}), ("recipe", {"w": Setting(1.0, "b")})]
    resolved = resolve("w", "x", 0, scopes)
    assert resolved is not None
    assert resolved.value == 0.0
