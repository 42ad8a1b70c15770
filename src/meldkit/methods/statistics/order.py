"""Exact order statistics without sorting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from meldkit import kernels
from meldkit.kernels import Numbers, Rows
from meldkit.methods.statistics.base import CHUNK, Range

#: Elements looked at to guess where an order statistic lies, in blocks spread over the tensor.
_SAMPLE = 1 << 15
_SAMPLE_BLOCKS = 8
#: Half width of the guessed bracket in units of rank: five standard errors of a quantile estimated
#: from the sample, sqrt(p(1-p)/32768) <= 0.0028.
_RANK_MARGIN = 0.014
#: By how much a bracket that missed widens.
_WIDEN = 4

#: k, or how it follows from the number of elements that are not 0.
Rank = int | Callable[[int], int]


class KthMagnitude:
    """The k-th largest |x| of each model's vector, exactly and without sorting it.

    A sample gives a bracket that very probably holds it; one pass counts what lies above the bracket
    and on its ends, and keeps what lies strictly inside, where the answer is then selected. Heavy ties,
    which differences of 16-bit numbers are full of, fall on the ends and are only counted. If the
    bracket misses, another pass takes a wider one on the side that must hold the answer.

    Args:
        ranks: for each row of a tile, the ks that are wanted of it, perhaps none; 0 ≤ k ≤ numel, where
            infinity counts as the 0-th largest. They may depend on how many elements are not 0.
        numel: elements of the tensor.
        grain: starts and lengths of tiles are multiples of it.
        num_blocks: into how many blocks the sample is cut; more where far parts are of different kinds.
    """

    def __init__(
        self,
        ranks: Sequence[Sequence[Rank]],
        numel: int,
        *,
        grain: int = 1,
        num_blocks: int = _SAMPLE_BLOCKS,
    ) -> None:
        self._numel = numel
        self._grain = grain
        self._selections = [[_Selection(k, numel) for k in row] for row in ranks]
        self._num_blocks = num_blocks
        self._sampling = numel >= num_blocks * max(CHUNK, grain)
        self._samples: list[np.ndarray] = []
        wanted = sum(map(len, self._selections))
        self.passes = int(wanted > 0)
        # What lies inside the brackets; to select among it, it is joined and then ordered, one row at a time.
        inside = round(2 * _RANK_MARGIN * numel) if self._sampling else numel
        self.held = 4 * ((wanted + 2 * (wanted > 0)) * inside + 2 * len(ranks) * _SAMPLE * self._sampling)

    def ranges(self) -> Sequence[Range]:
        if all(s.value is not None for row in self._selections for s in row):
            return []
        if not self._sampling:
            return [(0, self._numel)]
        step = self._numel // self._num_blocks // self._grain * self._grain
        length = max(1, _SAMPLE // self._num_blocks // self._grain) * self._grain
        return [(i * step, i * step + length) for i in range(self._num_blocks)]

    def update(self, x: Rows | Sequence[Numbers], start: int) -> Any:
        """Measure one tile, given as such or as its rows."""
        del start
        rows = list(x)
        if self._sampling:
            return kernels.magnitudes(rows)
        brackets = [[s.bracket for s in row if s.value is None] for row in self._selections]
        return kernels.count_magnitudes(rows, brackets)

    def absorb(self, partial: Any) -> None:
        if self._sampling:
            self._samples.append(partial)
            return
        for selections, parts in zip(self._selections, partial, strict=True):
            unfinished = (s for s in selections if s.value is None)
            for selection, part in zip(unfinished, parts, strict=True):
                selection.absorb(part)

    def finish_pass(self) -> None:
        if self._sampling:
            self._sampling = False
            sample = np.concatenate(self._samples, axis=1)
            self._samples.clear()
            for selections, row in zip(self._selections, sample, strict=True):
                for selection in selections:
                    selection.start(row)
            return
        for selection in (s for row in self._selections for s in row):
            if selection.value is None:
                selection.finish_pass()

    @property
    def result(self) -> list[tuple[float, ...]]:
        """For each row the magnitudes in the order of its ks."""
        return [tuple(s.value for s in row if s.value is not None) for row in self._selections]


class _Selection:
    """Selects the k-th largest of a stream of magnitudes by a bracket `[low, high]`."""

    def __init__(self, rank: Rank, numel: int) -> None:
        self.value: float | None = None
        self._rank = rank
        self._numel = numel
        self._quantile = 0.0
        self._sample = np.empty(0, np.float32)
        self._margin = _RANK_MARGIN
        self._low, self._high = np.float32(0), np.float32(np.inf)
        # The answer is known to lie between these.
        self._floor, self._ceiling = self._low, self._high
        self._begin_pass()

    def _begin_pass(self) -> None:
        # How many magnitudes are: > high, ≥ high, > low, ≥ low, and not 0.
        self._counts = np.zeros(5, np.int64)
        self._inside: list[np.ndarray] = []

    def start(self, sample: np.ndarray) -> None:
        """Guess the bracket from a sample of magnitudes, in any order."""
        self._sample = sample
        self._quantile = 1 - self._k(np.count_nonzero(sample) / len(sample)) / self._numel
        self._bracket()

    def _k(self, varied: float) -> int:
        """The rank, if that share of the elements is not 0."""
        return self._rank(round(varied * self._numel)) if callable(self._rank) else self._rank

    def _bracket(self) -> None:
        n = len(self._sample)
        first = int((self._quantile - self._margin) * n)
        last = int((self._quantile + self._margin) * n) + 1
        inner = [i for i in (first, last) if 0 <= i < n]
        ordered = np.partition(self._sample, inner) if inner else self._sample
        low = ordered[first] if first >= 0 and n else self._floor
        high = ordered[last] if last < n else self._ceiling
        self._low, self._high = max(low, self._floor), min(high, self._ceiling)
        if self._low > self._high:  # the sample says nothing about this side
            self._low, self._high = self._floor, self._ceiling

    @property
    def bracket(self) -> tuple[float, float]:
        return float(self._low), float(self._high)

    def absorb(self, part: tuple[list[int], np.ndarray]) -> None:
        self._counts += part[0]
        self._inside.append(part[1])

    def finish_pass(self) -> None:
        above, at_least_high, above_low, at_least_low, num_varied = self._counts.tolist()
        k = self._rank(num_varied) if callable(self._rank) else self._rank
        if k == 0:
            self.value = math.inf
        elif k <= above:
            self._floor = np.nextafter(self._high, np.float32(np.inf))
        elif k <= at_least_high:
            self.value = float(self._high)
        elif k <= above_low:
            values = np.concatenate(self._inside)
            index = len(values) - (k - at_least_high)
            self.value = float(np.partition(values, index)[index])
        elif k <= at_least_low or self._low <= self._floor:
            self.value = float(self._low)
        else:
            self._ceiling = np.nextafter(self._low, np.float32(0))
        self._begin_pass()
        self._margin *= _WIDEN
        self._bracket()
