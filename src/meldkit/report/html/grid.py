"""Tensors by layer and leaf: what keeps a report small whatever the number of tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    """The tensors of one stack of layers.

    Attributes:
        prefix: what their names begin with.
        layers: the numbers that follow, without holes.
        leaves: what their names have after the layer's number, the numbers of experts as `*`.
        tensors: positions in the list that the grid was made from.
        rows, columns: leaf and layer of each of them.
    """

    prefix: str
    layers: range
    leaves: tuple[str, ...]
    tensors: Ints
    rows: Ints
    columns: Ints

    @property
    def labels(self) -> list[str]:
        """The leaves without the ending that nearly all of them have."""
        return [leaf.removesuffix(".weight") for leaf in self.leaves]

    def spread(self, values: Floats) -> Spread:
        """Take together what falls into one cell.

        Args:
            values: one for each tensor of the list that the grid was made from; NaN for none.
        """
        shape = (len(self.leaves), len(self.layers))
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


def grids_of(places: Iterable[tuple[str | None, int | None, str]]) -> list[Grid]:
    """A grid for each stack, in order of first appearance.

    Args:
        places: for each tensor what the names of its stack begin with, the layer's number, and the rest of
            its name; what stands outside, with None twice, is in no grid.
    """
    leaves: dict[str, dict[str, int]] = {}
    members: dict[str, list[tuple[int, int, int]]] = {}
    for position, (prefix, layer, leaf) in enumerate(places):
        if prefix is None or layer is None:
            continue
        rows = leaves.setdefault(prefix, {})
        row = rows.setdefault(family(leaf), len(rows))
        members.setdefault(prefix, []).append((position, row, layer))
    result: list[Grid] = []
    for prefix, rows in leaves.items():
        found = np.array(members[prefix], np.int64)
        first, last = int(found[:, 2].min()), int(found[:, 2].max())
        layers = range(first, last + 1)
        result.append(Grid(prefix, layers, tuple(rows), found[:, 0], found[:, 1], found[:, 2] - first))
    return result


def family(leaf: str) -> str:
    """A leaf without the numbers of experts."""
    return _NUMBER.sub("*", leaf)


def gather(values: Mapping[int, float], length: int) -> Floats:
    """An array from values by position; NaN elsewhere."""
    result = np.full(length, np.nan)
    for position, value in values.items():
        result[position] = value
    return result
