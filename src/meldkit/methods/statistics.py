"""Statistics over a whole tensor, gathered tile by tile in any order on any thread.

A statistic asks for passes over ranges of the flattened tensor until it is finished. Each range
arrives in tiles whose starts are multiples of `CHUNK`; `update` may run in many threads at once and
returns a partial result, `absorb` takes partial results in any order, one at a time. Results do
not depend on tile size, threads or order: sums are formed per chunk and added exactly, and order
statistics are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from threading import local
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

#: Elements over which sums are formed before they are added exactly. Tile sizes are multiples of it.
CHUNK = 1 << 16

Range = tuple[int, int]


@runtime_checkable
class Statistic(Protocol):
    """Something measured over a tensor of `numel` elements of `m` models."""

    def ranges(self) -> Sequence[Range]:
        """Element ranges of the next pass; empty when finished. Starts are multiples of `CHUNK`."""
        ...

    def update(self, x: Float32[Tensor, "m n"], start: int) -> Any:
        """Measure one tile, elements `start` to `start + n`; called in any thread, changes nothing."""
        ...

    def absorb(self, partial: Any) -> None:
        """Take what `update` returned."""
        ...

    def finish_pass(self) -> None:
        """All tiles of the pass have been absorbed."""
        ...

    @property
    def result(self) -> Any:
        """The finished statistic."""
        ...


class Gram:
    """Inner products of the models' vectors, as float64 `[m, m]`.

    Products of float32 numbers are exact in float64; each chunk is summed in float64 and the chunk
    sums are added exactly (`math.fsum`), so that the matrix does not depend on how it was tiled.
    """

    def __init__(self, num_models: int, numel: int) -> None:
        self._pairs = [(i, j) for i in range(num_models) for j in range(i, num_models)]
        self._num_models = num_models
        self._numel = numel
        self._sums: list[list[float]] = [[] for _ in self._pairs]
        self._done = False
        # Each thread has one: a fresh buffer per chunk would cost more in page faults than the sums.
        self._local = local()

    def ranges(self) -> Sequence[Range]:
        return [] if self._done else [(0, self._numel)]

    def update(self, x: Float32[Tensor, "m n"], start: int) -> list[list[float]]:
        del start
        if not hasattr(self._local, "doubles"):
            self._local.doubles = torch.empty(self._num_models, CHUNK, dtype=torch.float64)
        sums: list[list[float]] = [[] for _ in self._pairs]
        for chunk in torch.split(x, CHUNK, dim=1):
            rows = self._local.doubles[:, : chunk.shape[1]].copy_(chunk)
            for total, (i, j) in zip(sums, self._pairs, strict=True):
                total.append(torch.dot(rows[i], rows[j]).item())
        return sums

    def absorb(self, partial: list[list[float]]) -> None:
        for total, part in zip(self._sums, partial, strict=True):
            total.extend(part)

    def finish_pass(self) -> None:
        self._done = True

    @property
    def result(self) -> np.ndarray:
        gram = np.empty((self._num_models, self._num_models))
        for (i, j), total in zip(self._pairs, self._sums, strict=True):
            gram[i, j] = gram[j, i] = math.fsum(total)
        return gram


class L1Ratio:
    """Σ|x| / Σ|trim(x)| of each model's vector: how much trimming shrank it (1 if nothing is left).

    Args:
        trim: zeroes, in place, what is not kept of a tile `[m, n]`.
        num_models: m.
        numel: elements of the tensor.
    """

    #: A vector whose L1 norm is below this is left as it is, as in mergekit.
    MIN_NORM = 1e-7

    def __init__(self, trim: Callable[[Tensor], None], num_models: int, numel: int) -> None:
        self._trim = trim
        self._numel = numel
        self._sums: list[tuple[list[float], list[float]]] = [([], []) for _ in range(num_models)]
        self._done = False

    def ranges(self) -> Sequence[Range]:
        return [] if self._done else [(0, self._numel)]

    def update(self, x: Float32[Tensor, "m n"], start: int) -> list[tuple[list[float], list[float]]]:
        del start
        before = [_chunk_sums(row) for row in x.abs_()]
        self._trim(x)
        return list(zip(before, [_chunk_sums(row) for row in x], strict=True))

    def absorb(self, partial: list[tuple[list[float], list[float]]]) -> None:
        for (before, after), (more_before, more_after) in zip(self._sums, partial, strict=True):
            before.extend(more_before)
            after.extend(more_after)

    def finish_pass(self) -> None:
        self._done = True

    @property
    def result(self) -> list[float]:
        norms = [(math.fsum(before), math.fsum(after)) for before, after in self._sums]
        return [b / a if min(a, b) >= self.MIN_NORM else 1.0 for b, a in norms]


def _chunk_sums(row: Tensor) -> list[float]:
    return [chunk.sum(dtype=torch.float64).item() for chunk in torch.split(row, CHUNK)]


class Chain:
    """One statistic, then another (or none) that is made from the first one's result.

    `result` is the pair of both results; the second is None if there was none.
    """

    def __init__(self, first: Statistic, then: Callable[[Any], Statistic | None]) -> None:
        self._first = first
        self._then = then
        self._second: Statistic | None = None
        self._current = first

    def ranges(self) -> Sequence[Range]:
        if ranges := self._current.ranges():
            return ranges
        if self._current is self._first:
            self._second = self._then(self._first.result)
            if self._second is not None:
                self._current = self._second
                return self._current.ranges()
        return []

    def update(self, x: Float32[Tensor, "m n"], start: int) -> Any:
        return self._current.update(x, start)

    def absorb(self, partial: Any) -> None:
        self._current.absorb(partial)

    def finish_pass(self) -> None:
        self._current.finish_pass()

    @property
    def result(self) -> tuple[Any, Any]:
        return self._first.result, None if self._second is None else self._second.result


#: Elements looked at to guess where an order statistic lies, in blocks spread over the tensor.
_SAMPLE_BLOCKS = 8
_SAMPLE_BLOCK = 8192
#: Half width of the guessed bracket in units of rank: five standard errors of a quantile estimated
#: from the sample, sqrt(p(1-p)/65536) <= 0.002.
_RANK_MARGIN = 0.01
#: By how much a bracket that missed widens.
_WIDEN = 4


class KthMagnitude:
    """The k-th largest |x| of each model's vector, exactly and without sorting it.

    A sample gives a bracket that very probably holds it; one pass counts what lies above the bracket
    and on its ends, and keeps what lies strictly inside, where the answer is then selected. Heavy ties,
    which differences of 16-bit numbers are full of, fall on the ends and are only counted. If the
    bracket misses, another pass takes a wider one on the side that must hold the answer.

    Args:
        ranks: k per model, 1 ≤ k ≤ numel; None for a model that needs none.
        numel: elements of the tensor.
    """

    def __init__(self, ranks: Sequence[int | None], numel: int) -> None:
        self._numel = numel
        self._selections = [None if k is None else _Selection(k, numel) for k in ranks]
        self._sampling = numel >= _SAMPLE_BLOCKS * CHUNK
        self._samples: list[np.ndarray] = []

    def ranges(self) -> Sequence[Range]:
        if all(s is None or s.value is not None for s in self._selections):
            return []
        if not self._sampling:
            return [(0, self._numel)]
        step = self._numel // _SAMPLE_BLOCKS // CHUNK * CHUNK
        return [(i * step, i * step + _SAMPLE_BLOCK) for i in range(_SAMPLE_BLOCKS)]

    def update(self, x: Float32[Tensor, "m n"], start: int) -> Any:
        del start
        magnitudes = x.abs_().numpy()
        if self._sampling:
            return np.array(magnitudes)
        return [
            None if s is None or s.value is not None else s.update(row)
            for s, row in zip(self._selections, magnitudes, strict=True)
        ]

    def absorb(self, partial: Any) -> None:
        if self._sampling:
            self._samples.append(partial)
            return
        for selection, part in zip(self._selections, partial, strict=True):
            if selection is not None and part is not None:
                selection.absorb(part)

    def finish_pass(self) -> None:
        if self._sampling:
            self._sampling = False
            sample = np.concatenate(self._samples, axis=1)
            self._samples.clear()
            for selection, row in zip(self._selections, sample, strict=True):
                if selection is not None:
                    selection.start(row)
            return
        for selection in self._selections:
            if selection is not None and selection.value is None:
                selection.finish_pass()

    @property
    def result(self) -> list[float | None]:
        return [None if s is None else s.value for s in self._selections]


class _Selection:
    """Selects the k-th largest of a stream of magnitudes by a bracket `[low, high]`."""

    def __init__(self, k: int, numel: int) -> None:
        self.value: float | None = None
        self._k = k
        self._quantile = 1 - k / numel
        self._sample = np.empty(0, np.float32)
        self._margin = _RANK_MARGIN
        self._low, self._high = np.float32(0), np.float32(np.inf)
        # The answer is known to lie between these.
        self._floor, self._ceiling = self._low, self._high
        self._begin_pass()

    def _begin_pass(self) -> None:
        # How many are: > high, ≥ high, > low, ≥ low.
        self._counts = np.zeros(4, np.int64)
        self._inside: list[np.ndarray] = []

    def start(self, sample: np.ndarray) -> None:
        """Guess the bracket from a sample of magnitudes, in any order."""
        self._sample = sample
        self._bracket()

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

    def update(self, row: np.ndarray) -> tuple[list[int], np.ndarray]:
        above, at_least_low = row > self._high, row >= self._low
        at_least_high, above_low = row >= self._high, row > self._low
        counts = [int(np.count_nonzero(m)) for m in (above, at_least_high, above_low, at_least_low)]
        return counts, np.compress(np.greater(above_low, at_least_high), row)

    def absorb(self, part: tuple[list[int], np.ndarray]) -> None:
        self._counts += part[0]
        self._inside.append(part[1])

    def finish_pass(self) -> None:
        above, at_least_high, above_low, at_least_low = self._counts.tolist()
        if self._k <= above:
            self._floor = np.nextafter(self._high, np.float32(np.inf))
        elif self._k <= at_least_high:
            self.value = float(self._high)
        elif self._k <= above_low:
            values = np.concatenate(self._inside)
            index = len(values) - (self._k - at_least_high)
            self.value = float(np.partition(values, index)[index])
        elif self._k <= at_least_low or self._low <= self._floor:
            self.value = float(self._low)
        else:
            self._ceiling = np.nextafter(self._low, np.float32(0))
        self._begin_pass()
        self._margin *= _WIDEN
        self._bracket()
