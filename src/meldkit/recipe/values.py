"""Parameter values: plain values, gradients over depth, and values that depend on the tensor's name.

weight: 0.5                          the same everywhere
weight: [0, 0.5, 1]                  a gradient: 0 at the first layer, 1 at the last, linear in between
weight:                              the first entry whose filter matches the tensor's name
  - filter: self_attn
    value: [0, 1]
  - value: 0.5
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias, cast

from meldkit.errors import RecipeError
from meldkit.expression import ExpressionError, check_expression, occurs
from meldkit.recipe.problem import Problem, check_keys, kind_of, placed, within

Scalar: TypeAlias = float | bool | str

# Filters inside filters mean little beyond two levels; the bound keeps hostile input off the stack.
_MAX_DEPTH = 16

# YAML 1.1 reads an unquoted 1e-10 as text, because it lacks a dot.
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Gradient:
    """A value that changes over the depth of a slice; `points` are equally spaced and all of one type."""

    points: tuple[Scalar, ...]

    def at(self, t: float) -> Scalar:
        """The value at depth `t`, 0 (first layer) to 1 (last layer).

        Numbers are interpolated linearly; texts and booleans have no in-between, the point before `t` holds.
        """
        assert 0.0 <= t <= 1.0, t
        last = len(self.points) - 1
        position = t * last
        index = int(position)
        here, following = self.points[index], self.points[min(last, index + 1)]
        if isinstance(here, bool | str) or isinstance(following, bool | str):
            return here
        fraction = position - index
        return (1.0 - fraction) * here + fraction * following


@dataclass(frozen=True, slots=True)
class Filtered:
    """Values chosen by tensor name: `entries` are (filter, value); the first filter that matches decides."""

    entries: tuple[tuple[str | None, Value], ...]


Value: TypeAlias = float | bool | str | Gradient | Filtered


def parse_value(raw: object, where: str = "") -> Value:
    """Reads a parameter's value as YAML or Python data has it.

    Args:
        raw: a number, boolean, text, list of one of these, `{value, filter}`, or a list of those.
        where: "recipe.yml:12", put before the message of an error.

    Raises:
        RecipeError: anything else, an empty list, a number that is not finite, or an invalid `re:` filter.
    """
    with placed(where):
        return _parse(raw, 0)


def _parse(raw: object, depth: int) -> Value:
    if depth > _MAX_DEPTH:
        raise Problem(f"filters are nested more than {_MAX_DEPTH} deep")
    if isinstance(raw, Gradient | Filtered):
        return raw
    if isinstance(raw, Mapping):
        return Filtered((_entry(cast("Mapping[object, object]", raw), depth),))
    if isinstance(raw, list | tuple):
        items = cast("list[object] | tuple[object, ...]", raw)
        if not items:
            raise Problem(
                "the list is empty", hint="a list of values is a gradient and needs at least one point"
            )
        if any(isinstance(item, Mapping) for item in items):
            return _filtered(items, depth)
        return _gradient(items)
    return _scalar(raw)


def _scalar(raw: object) -> Scalar:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and not _NUMBER.fullmatch(raw.strip()):
        return raw
    if isinstance(raw, int | float | str):
        try:
            number = float(raw)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise Problem(f"{kind_of(raw)} is not finite")
        return number
    if raw is None:
        raise Problem("the value is missing", hint="write it after the colon, or leave the parameter out")
    raise Problem(f"must be a number, true/false, text, a list or {{value, filter}}, got {kind_of(raw)}")


def _gradient(items: list[object] | tuple[object, ...]) -> Gradient:
    points: list[Scalar] = []
    for index, item in enumerate(items):
        with within(index):
            if isinstance(item, list | tuple):
                raise Problem("a gradient cannot hold another list", hint="write one flat list of numbers")
            points.append(_scalar(item))
    if any(isinstance(point, str) for point in points):
        for index, point in enumerate(points):
            if not isinstance(point, str):
                raise Problem("a gradient cannot mix text and numbers", path=(index,))
    elif not all(isinstance(point, bool) for point in points):
        points = [float(point) for point in points]
    return Gradient(tuple(points))


def _filtered(items: list[object] | tuple[object, ...], depth: int) -> Filtered:
    entries: list[tuple[str | None, Value]] = []
    for index, item in enumerate(items):
        with within(index):
            if not isinstance(item, Mapping):
                raise Problem(
                    f"a list with filters cannot also hold {kind_of(item)}",
                    hint="write the value for all other tensors as '- value: ...'",
                )
            entries.append(_entry(cast("Mapping[object, object]", item), depth))
    return Filtered(tuple(entries))


def _entry(raw: Mapping[object, object], depth: int) -> tuple[str | None, Value]:
    data = check_keys(raw, "a filtered value", ("filter", "value"), ("value",))
    chosen = data.get("filter")
    if chosen is not None and not isinstance(chosen, str):
        raise Problem(
            f"'filter' must be text, got {kind_of(chosen)}", hint="put it in quotes", path=("filter",)
        )
    if chosen is not None and chosen.startswith("re:"):
        try:
            check_expression(chosen[3:])
        except ExpressionError as error:
            raise Problem(
                f"filter '{chosen}' {error}",
                hint="leave out 're:' for text that is to be found as it is",
                path=("filter",),
            ) from None
    with within("value"):
        return chosen, _parse(data["value"], depth + 1)


def to_plain(value: Value) -> object:
    """`value` as plain data that YAML can hold and `parse_value` reads back as an equal value."""
    if isinstance(value, Gradient):
        return list(value.points)
    if isinstance(value, Filtered):
        return [
            {"value": to_plain(inner)} if chosen is None else {"filter": chosen, "value": to_plain(inner)}
            for chosen, inner in value.entries
        ]
    return value


def filter_matches(filter: str | None, tensor_name: str) -> bool:  # noqa: A002  the recipe's own word
    """Whether a filter selects a tensor.

    Args:
        filter: text contained in the name; `re:` and a regular expression found anywhere in it; `glob:` and a
            shell pattern for all of it; None or "*" for every tensor.
        tensor_name: full name of the tensor.

    Raises:
        RecipeError: the expression is none, or takes too long.
    """
    if filter is None or filter == "*":
        return True
    if filter.startswith("re:"):
        try:
            return occurs(filter[3:], tensor_name)
        except ExpressionError as e:
            raise RecipeError(f"filter '{filter}' {e}") from None
    if filter.startswith("glob:"):
        return fnmatchcase(tensor_name, filter[5:])
    return filter in tensor_name


def _decided(value: Value, tensor_name: str) -> Scalar | Gradient | None:
    """The scalar or gradient that holds for a tensor; None when no filter matches.

    The first matching entry decides even if filters inside it then match nothing.
    """
    while isinstance(value, Filtered):
        matching = (inner for chosen, inner in value.entries if filter_matches(chosen, tensor_name))
        found = next(matching, None)
        if found is None:
            return None
        value = found
    return value


def choices(value: Value, tensor_name: str) -> tuple[int, ...]:
    """Which entries of filters decide for a tensor, outer ones first; -1 at the end if none does."""
    found: list[int] = []
    while isinstance(value, Filtered):
        for index, (chosen, inner) in enumerate(value.entries):
            if filter_matches(chosen, tensor_name):
                found.append(index)
                value = inner
                break
        else:
            return (*found, -1)
    return tuple(found)


def evaluate(value: Value, tensor_name: str, t: float) -> Scalar | None:
    """The value for one tensor at depth `t` (0 to 1); None when no filter matches its name."""
    decided = _decided(value, tensor_name)
    return decided.at(t) if isinstance(decided, Gradient) else decided


def reaches(value: Value, tensor_name: str) -> bool:
    """Whether the value for this tensor comes from a gradient that is not the same at every depth."""
    decided = _decided(value, tensor_name)
    return isinstance(decided, Gradient) and len(set(decided.points)) > 1


def unreached_by(value: Value) -> str | None:
    """The first filter that stands after an entry for all tensors, so that it decides nothing; None if none.

    >>> unreached_by(parse_value([{"value": 0.5}, {"filter": "mlp", "value": 0.3}]))
    'mlp'
    """
    if not isinstance(value, Filtered):
        return None
    filters = [chosen for chosen, _ in value.entries]
    last = next((i for i, chosen in enumerate(filters) if chosen in (None, "*")), len(filters))
    late = next((chosen for chosen in filters[last + 1 :] if chosen is not None), None)
    return late or next((late for _, inner in value.entries if (late := unreached_by(inner))), None)


def filters_of(value: Value) -> Iterator[str]:
    """All filters inside a value, outer ones first, entries without a filter left out."""
    if isinstance(value, Filtered):
        for chosen, inner in value.entries:
            if chosen is not None:
                yield chosen
            yield from filters_of(inner)
