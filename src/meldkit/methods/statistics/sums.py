"""Sums over whole tensors that do not depend on how the tensor was cut into tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from meldkit import kernels
from meldkit.kernels import Rows, Tile
from meldkit.kernels.elsewhere import in_memory, lists
from meldkit.methods.statistics.base import CHUNK, Range

#: A vector whose L1 norm is below this is left as it is, as in mergekit.
_MIN_NORM = 1e-7

#: Bytes of a list, and of a number in it.
_LIST, _FLOAT = 72, 32

#: Of a tile, the numbers of each `grain` elements.
Terms = Callable[[Rows], Sequence[Sequence[float]]]


def exact_sum(numbers: Sequence[float]) -> float:
    """Their sum, rounded once; NaN where infinities cancel or it is too large."""
    try:
        return math.fsum(numbers)
    except (ValueError, OverflowError):
        return math.nan


class ChunkSums:
    """Sums that are formed chunk by chunk, and then added exactly (`math.fsum`), in whatever order.

    Args:
        num_sums: how many.
        numel: elements of the tensor.
        grain: elements of a chunk: `CHUNK`, or a row where sums belong to rows.
    """

    passes = 1

    def __init__(self, num_sums: int, numel: int, grain: int = CHUNK) -> None:
        self._num_sums = num_sums
        self._numel = numel
        self._parts: list[Sequence[float]] = []
        self._done = False
        self.held = -(-numel // grain) * (_LIST + num_sums * _FLOAT)

    def ranges(self) -> Sequence[Range]:
        return [] if self._done else [(0, self._numel)]

    def absorb(self, partial: Sequence[Sequence[float]]) -> None:
        """Take the sums of each chunk of a tile."""
        self._parts.extend(partial)

    def finish_pass(self) -> None:
        self._done = True

    @property
    def result(self) -> Any:
        return [exact_sum([part[i] for part in self._parts]) for i in range(self._num_sums)]


class Sums(ChunkSums):
    """Sums of whatever can be summed chunk by chunk.

    Args:
        terms: of a tile, which may be overwritten, the float64 numbers of each chunk.
        args: as for `ChunkSums`.
    """

    def __init__(self, terms: Terms, *args: int) -> None:
        super().__init__(*args)
        self._terms = terms

    def update(self, x: Rows, start: int) -> Any:
        del start
        return self._terms(x)


class Gram(Sums):
    """Inner products of the models' vectors, as float64 `[m, m]`, or what is computed from them.

    Products of float32 numbers are exact in float64, in which each chunk is summed.

    Args:
        num_models: m.
        numel: elements of the tensor.
        then: makes the result from the inner products.
    """

    def __init__(
        self, num_models: int, numel: int, then: Callable[[np.ndarray], Any] = lambda gram: gram
    ) -> None:
        pairs = [(i, j) for i in range(num_models) for j in range(i, num_models)]
        super().__init__(lambda x: kernels.products(x, CHUNK), len(pairs), numel)
        self._pairs = pairs
        self._num_models = num_models
        self._then = then

    @property
    def result(self) -> Any:
        gram = np.zeros((self._num_models, self._num_models))
        for (i, j), total in zip(self._pairs, super().result, strict=True):
            gram[i, j] = gram[j, i] = total
        return self._then(gram)


class L1Ratio(Sums):
    """Σ|x| / Σ|trim(x)| of each model's vector: how much trimming shrank it.

    Args:
        trim: zeroes, in place, what is not kept of a tile.
        num_models: m.
        numel: elements of the tensor.
    """

    def __init__(self, trim: Callable[[Rows], None], num_models: int, numel: int) -> None:
        super().__init__(self._norms, 2 * num_models, numel)
        self._trim = trim
        self._num_models = num_models

    def _norms(self, x: Rows) -> Sequence[Sequence[float]]:
        return lists(np.transpose(np.concatenate(kernels.norms_around(x, self._trim, CHUNK))))

    @property
    def result(self) -> list[float]:
        norms = super().result
        pairs = zip(norms[: self._num_models], norms[self._num_models :], strict=True)
        return [l1_ratio(before, after) for before, after in pairs]


def l1_ratio(before: float, after: float) -> float:
    """The factor that restores an L1 norm; 1 where there is next to nothing to restore or to scale."""
    return before / after if min(before, after) >= _MIN_NORM else 1.0


class ColumnGram:
    """Inner products of the models' columns, as float64 `[m, m, columns]`.

    Tiles consist of whole rows, whose products are added in the order of the rows.

    Args:
        num_models: m.
        numel: elements of the tensor.
        num_columns: elements of a row.
    """

    passes = 1

    def __init__(self, num_models: int, numel: int, num_columns: int) -> None:
        self._pairs = [(i, j) for i in range(num_models) for j in range(i, num_models)]
        self._num_models = num_models
        self._numel = numel
        self._num_columns = num_columns
        self._totals = [np.zeros(num_columns) for _ in self._pairs]
        # By first row: products of a tile's rows, of each pair `[rows, columns]`.
        self._waiting: dict[int, list[np.ndarray]] = {}
        self._next = 0
        self._done = False
        # Products of rows that arrive before their turn wait for it.
        self.held = 2 * len(self._pairs) * num_columns * 8

    def ranges(self) -> Sequence[Range]:
        return [] if self._done else [(0, self._numel)]

    def update(self, x: Rows, start: int) -> tuple[int, list[np.ndarray]]:
        assert not isinstance(x, Tile)
        if in_memory(x):
            rows = x.numpy().reshape(self._num_models, -1, self._num_columns)
            products = [np.multiply(rows[i], rows[j], dtype=np.float64) for i, j in self._pairs]
        else:
            there = x.view(self._num_models, -1, self._num_columns).double()
            products = [(there[i] * there[j]).cpu().numpy() for i, j in self._pairs]
        return start // self._num_columns, products

    def absorb(self, partial: tuple[int, list[np.ndarray]]) -> None:
        first, products = partial
        self._waiting[first] = products
        while (products := self._waiting.pop(self._next, None)) is not None:
            for total, of_pair in zip(self._totals, products, strict=True):
                for row in of_pair:
                    total += row
            self._next += len(products[0])

    def finish_pass(self) -> None:
        self._done = True

    @property
    def result(self) -> np.ndarray:
        gram = np.zeros((self._num_models, self._num_models, self._num_columns))
        for (i, j), total in zip(self._pairs, self._totals, strict=True):
            gram[i, j] = gram[j, i] = total
        return gram
