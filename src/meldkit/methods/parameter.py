"""What a method's parameters are, and which of their values are valid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

#: One number, flag or word.
Value = float | bool | str
#: What parameters resolve to; per-model ones are tuples. None stands for an optional one that is not given.
Values = Mapping[str, Value | tuple[Value | None, ...] | None]

REQUIRED: Any = object()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One declared parameter.

    Attributes:
        name: as written in recipes.
        doc: one sentence.
        default: value when absent from the recipe; `REQUIRED` if it must be given; None if it may be
            absent and then means "not used".
        kind: float, bool or str.
        per_model: one value per input model instead of one for the tensor.
        low, high: closed range of valid numbers.
        usual: closed range of the numbers that make sense; others are valid, and warned of.
        choices: valid words.
        aliases: values that stand for words, such as true for the default.
        of_recipe: set by a key of the recipe itself, not among its parameters.
        start: a value to begin with, where there is no default or the default leaves the parameter off.
        shared: `start` is divided among the models.
        reason: why begin with that.
    """

    name: str
    doc: str
    default: Any = REQUIRED
    kind: type[float] | type[bool] | type[str] = float
    per_model: bool = False
    low: float = -math.inf
    high: float = math.inf
    usual: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    aliases: Mapping[Value, str] = field(default_factory=dict[Value, str])
    of_recipe: bool = False
    start: Value | None = None
    shared: bool = False
    reason: str = ""

    @property
    def required(self) -> bool:
        """Whether a recipe must give it."""
        return self.default is REQUIRED

    def start_for(self, num_models: int) -> Value | None:
        """The value to begin with when that many models are merged; None for the default."""
        if self.shared and isinstance(self.start, float):
            return round(self.start / num_models, 3)
        if self.start is not None or not self.required:
            return self.start
        if self.kind is float:
            return min(max(0.5, self.low), self.high)
        return True if self.kind is bool else self.choices[0] if self.choices else ""

    @property
    def argument(self) -> str:
        """Name of the Python argument: the recipe's, made legal."""
        return f"{self.name}_" if self.name in _PYTHON_WORDS else self.name

    @property
    def range_text(self) -> str:
        """Valid values in words, e.g. "0 to 1"."""
        if self.choices:
            return ", ".join(self.choices)
        if self.kind is bool:
            return "true or false"
        low, high = self.low != -math.inf, self.high != math.inf
        if low and high:
            return f"{self.low:g} to {self.high:g}"
        if low:
            return f"{self.low:g} or more"
        return f"{self.high:g} or less" if high else "any number"

    def check(self, value: object) -> Value:
        """The value in its declared kind; numpy's numbers are numbers too.

        Raises:
            ValueError: wrong kind or out of range; the message says what would be valid.
        """
        if isinstance(value, np.generic):
            value = cast("object", value.item())  # pyright: ignore[reportUnknownMemberType]
        if isinstance(value, bool | float | str) and value in self.aliases:
            return self.aliases[value]
        if self.kind is bool and value in (0, 1):
            return bool(value)
        if self.kind is str and isinstance(value, str) and (not self.choices or value in self.choices):
            return value
        if self.kind is float and isinstance(value, int | float):
            number = float(value)
            if math.isfinite(number) and self.low <= number <= self.high:
                return number
        raise ValueError(f"{self.name}: {value!r} is not valid; it must be {self.range_text}")


_PYTHON_WORDS = ("lambda",)

#: For methods that can also do what mergekit does where meldkit does otherwise: the recipe's `compat`.
COMPAT = Parameter("compat", "Do as mergekit does.", default=False, kind=bool, of_recipe=True)
