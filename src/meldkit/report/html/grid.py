"""Tensors by layer and leaf: what keeps a report small whatever the number of tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meldkit.layout import Place, Stack

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: The number of an expert, or of anything else inside a layer.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|\Z)")


@dataclass(frozen=True, slots=True)
class Spread:
    """Values of the tensors in each cell of a grid; all [leaves, layers].

    Attributes:
        mean, low, high: NaN where no tensor has a value.
        count: how many have one.
    """

    mean: Floats
    low: Floats
    high: Floats
    count: Ints

    @property
    def varied(self) -> bool:
        """Whether two cells differ."""
        known = self.mean[self.count > 0]
        return known.size > 0 and bool(self.low[self.count > 0].min() < self.high[self.count > 0].max())


@dataclass(frozen=True, slots=True)
class Grid:
    """The tensors of one stack.

    Attributes:
        stack: whose layers they are.
        leaves: what their names have after the layer's number, the numbers of experts as `*`.
        tensors: positions in the list that the grid was made from.
        rows, columns: leaf and layer of each of them.
    """

    stack: Stack
    leaves: tuple[str, ...]
    tensors: Ints
    rows: Ints
    columns: Ints

    @property
    def layers(self) -> list[int]:
        """Numbers of the layers, as tensor names have them."""
        return list(range(self.stack.first, self.stack.first + self.stack.num_blocks))

    @property
    def labels(self) -> list[str]:
        """The leaves without the ending that nearly all of them have."""
        return [leaf.removesuffix(".weight") for leaf in self.leaves]

    def spread(self, values: Floats) -> Spread:
        """Take together what falls into one cell.

        Args:
            values: one for each tensor of the list that the grid was made from; NaN for none.
        """
        shape = (len(self.leaves), self.stack.num_blocks)
        own = values[self.tensors]
        known = ~np.isnan(own)
        at, own = (self.rows[known], self.columns[known]), own[known]
        count, total = np.zeros(shape, np.int64), np.zeros(shape)
        low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
        np.add.at(count, at, 1)
        np.add.at(total, at, own)
        np.minimum.at(low, at, own)
        np.maximum.at(high, at, own)
        low[count == 0] = high[count == 0] = np.nan
        # The mean of equal numbers is that number, whatever rounding says.
        mean = np.clip(total / np.where(count == 0, np.nan, count), low, high)
        return Spread(mean, low, high, count)


def grids(places: Sequence[Place]) -> tuple[list[Grid], list[int]]:
    """A grid for each stack, in order of first appearance, and the positions of what stands outside."""
    leaves: dict[Stack, dict[str, int]] = {}
    members: dict[Stack, list[tuple[int, int, int]]] = {}
    outside: list[int] = []
    for position, place in enumerate(places):
        if place.stack is None or place.block is None:
            outside.append(position)
            continue
        rows = leaves.setdefault(place.stack, {})
        row = rows.setdefault(family(place.leaf), len(rows))
        members.setdefault(place.stack, []).append((position, row, place.block))
    result: list[Grid] = []
    for stack, rows in leaves.items():
        found = np.array(members[stack], np.int64)
        result.append(Grid(stack, tuple(rows), found[:, 0], found[:, 1], found[:, 2]))
    return result, outside


def family(leaf: str) -> str:
    """A leaf without the numbers of experts."""
    return _NUMBER.sub("*", leaf)


def gather(values: Mapping[int, float], length: int) -> Floats:
    """An array from values by position; NaN elsewhere."""
    result = np.full(length, np.nan)
    for position, value in values.items():
        result[position] = value
    return result
