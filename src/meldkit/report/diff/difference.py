"""How numbers differ: sums over elements, which can be added over tensors, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

#: One in as many elements of a tensor is among its largest changes: 1 %.
ONE_IN = 100


@dataclass(frozen=True, slots=True)
class TaskDifference:
    """How two task vectors differ over some elements: the changes u and v of two models against the base.

    Attributes:
        square_first, square_second: Σ u², Σ v².
        product: Σ u v.
        num_both: elements where neither u nor v is 0.
        num_opposite: those of them where their signs differ.
        num_top_first, num_top_second: elements among the largest 1 % of |u| (of |v|) of their tensor, without
            those that are 0. All that equal the smallest of them count as well, so that they may be more.
        num_top_both: elements among both.
    """

    square_first: float
    square_second: float
    product: float
    num_both: int
    num_opposite: int
    num_top_first: int
    num_top_second: int
    num_top_both: int

    def __add__(self, other: TaskDifference) -> TaskDifference:
        return TaskDifference(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def norm_first(self) -> float:
        """|u|."""
        return math.sqrt(self.square_first)

    @property
    def norm_second(self) -> float:
        """|v|."""
        return math.sqrt(self.square_second)

    @property
    def cosine(self) -> float | None:
        """Of the angle between u and v; None if one of them is 0."""
        return _cosine(self.product, self.square_first, self.square_second)

    @property
    def sign_conflict(self) -> float | None:
        """Share of the elements that both models changed where they changed them in opposite directions."""
        return self.num_opposite / self.num_both if self.num_both else None

    @property
    def top_overlap(self) -> float | None:
        """Share of the largest 1 % of both that they have in common: 2 |T ∩ U| / (|T| + |U|)."""
        total = self.num_top_first + self.num_top_second
        return 2 * self.num_top_both / total if total else None

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "norm_first": self.norm_first,
            "norm_second": self.norm_second,
            "cosine": self.cosine,
            "sign_conflict": self.sign_conflict,
            "top_overlap": self.top_overlap,
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """How the numbers b of one model differ from those, a, of another over some elements; sums can be added.

    Elements where any of the compared models has NaN or Inf are left out.

    Attributes:
        numel: how many elements were compared.
        num_equal: where a = b.
        num_rounded: where a = b after rounding to the less precise of the two types they are stored in.
        square_first, square_second: Σ a², Σ b².
        product: Σ a b.
        square_change: Σ (b − a)².
        largest: max |b − a|.
        task: the same of their task vectors; None without a base, or if one of them is the base.
    """

    numel: int = 0
    num_equal: int = 0
    num_rounded: int = 0
    square_first: float = 0.0
    square_second: float = 0.0
    product: float = 0.0
    square_change: float = 0.0
    largest: float = 0.0
    task: TaskDifference | None = None

    def __add__(self, other: Difference) -> Difference:
        tasks = [d.task for d in (self, other) if d.task is not None]
        return Difference(
            numel=self.numel + other.numel,
            num_equal=self.num_equal + other.num_equal,
            num_rounded=self.num_rounded + other.num_rounded,
            square_first=self.square_first + other.square_first,
            square_second=self.square_second + other.square_second,
            product=self.product + other.product,
            square_change=self.square_change + other.square_change,
            largest=max(self.largest, other.largest),
            task=tasks[0] + tasks[1] if len(tasks) == 2 else tasks[0] if tasks else None,
        )

    @property
    def equal(self) -> bool:
        """Whether no element differs."""
        return self.num_equal == self.numel

    @property
    def norm_first(self) -> float:
        """|a|."""
        return math.sqrt(self.square_first)

    @property
    def norm_second(self) -> float:
        """|b|."""
        return math.sqrt(self.square_second)

    @property
    def change(self) -> float:
        """|b − a|."""
        return math.sqrt(self.square_change)

    @property
    def relative_change(self) -> float | None:
        """|b − a| / |a|; 0 if they are equal, None if only a is 0 or nothing was compared."""
        if not self.numel:
            return None
        if not self.square_first:
            return 0.0 if not self.square_change else None
        return math.sqrt(self.square_change / self.square_first)

    @property
    def cosine(self) -> float | None:
        """Of the angle between a and b; None if one of them is 0."""
        return _cosine(self.product, self.square_first, self.square_second)

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        values: dict[str, Any] = {
            "elements": self.numel,
            "equal_elements": self.num_equal,
            "relative_change": self.relative_change,
            "cosine": self.cosine,
            "norm_first": self.norm_first,
            "norm_second": self.norm_second,
            "change_norm": self.change,
            "largest_change": self.largest,
        }
        return values if self.task is None else values | {"task": self.task.data()}


def _cosine(product: float, square_first: float, square_second: float) -> float | None:
    if not square_first or not square_second:
        return None
    return max(-1.0, min(1.0, product / math.sqrt(square_first) / math.sqrt(square_second)))


def total(differences: Iterable[Difference]) -> Difference:
    """Their sum, in order."""
    return reduce(Difference.__add__, differences, Difference())


@dataclass(frozen=True, slots=True)
class Spectrum:
    """How many directions the change of a matrix has, from its singular values σ₁ ≥ σ₂ ≥ …

    Attributes:
        effective_rank: exp of the entropy of σ / Σσ (Roy & Vetterli 2007), of the singular values that were
            found; a lower bound where `captured` is below 1.
        energy_rank: how many of them have 90 % of Σσ²; None if those that were found have less.
        captured: their share of Σσ².
        full_rank: of a matrix of that shape: rows or columns, whichever are fewer.
    """

    effective_rank: float
    energy_rank: int | None
    captured: float
    full_rank: int
