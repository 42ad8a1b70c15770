"""Measures how tensors differ, tile by tile, in the engine's threads."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from threading import Lock
from typing import TYPE_CHECKING

import torch

from meldkit import kernels
from meldkit.checkpoint import DTYPES, OpenFiles, StoredTensor, TensorInfo
from meldkit.engine.buffers import Buffers, cut
from meldkit.methods.statistics import KthMagnitude, exact_sum
from meldkit.plan import Input, TensorJob
from meldkit.report.diff.difference import ONE_IN, Difference, Spectrum, TaskDifference
from meldkit.report.diff.model import PairKey
from meldkit.report.diff.spectrum import spectra_of
from meldkit.shapes import Float32

if TYPE_CHECKING:
    from torch import Tensor

#: Elements of a tile, over which sums are formed before they are added exactly. A tile of two models stays
#: in a core's own cache, and the time of a call is little beside that of its work.
GRAIN = 1 << 17
#: Elements that a worker takes at once.
SPAN = 16 * GRAIN
#: The largest float32. Looking it up would load torch, which this file's readers may not need.
_MOST = (2 - 2.0**-23) * 2.0**127


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of several models that are compared with each other: they have the same shape.

    Attributes:
        name: of the tensor.
        models: their places among all models, rising.
        infos: the tensor of each.
        based: whether the first of them is the base.
    """

    name: str
    models: tuple[int, ...]
    infos: tuple[TensorInfo, ...]
    based: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of them."""
        return self.infos[0].shape

    @property
    def floating(self) -> bool:
        """Whether all of them are numbers with fractions."""
        return all(info.floating for info in self.infos)

    def num_passes(self, *, spectral: bool) -> int:
        """How often it is read, in the usual case."""
        if not self.floating:
            return 1
        sketched = spectral and len(self.shape) == 2 and 0 in self.models
        return 1 + (self.based and len(self.models) > 2) + 2 * sketched

    @property
    def job(self) -> TensorJob:
        """What the engine calls it."""
        inputs = tuple(Input(model, info.name) for model, info in zip(self.models, self.infos, strict=True))
        return TensorJob(self.name, self.infos[0].dtype, self.shape, None, {}, inputs, None, -1, -1)


class Measurement:
    """Measures one group; to the engine it is like a tensor that is merged.

    First the size from which on changes are among the largest, if there is a base; then all sums; then the
    spectra of a matrix, by one worker.

    Args:
        group: the tensors.
        files: where they are read.
        spectral: whether spectra are wanted.

    Attributes:
        job, spans, outstanding: as of `Runnable`.
    """

    def __init__(self, group: Group, files: OpenFiles, *, spectral: bool) -> None:
        self.group = group
        self.job = group.job
        self.outstanding = 0
        self.pairs: dict[PairKey, Difference] = {}
        self.norms: dict[int, float] = {}
        self.spectra: dict[int, Spectrum] = {}
        self.num_nonfinite = [0] * len(group.models)
        self._num_left_out = 0
        numel = self.job.numel
        num_models = len(group.models)
        self._sources = [info.open(files) for info in group.infos]
        self._rounded = _rounded_types(group.infos)
        self._pairs = list(combinations(range(num_models), 2))
        num_tasks = num_models - 1 if group.based else 0
        self._task_pairs = list(combinations(range(num_tasks), 2))
        # Only where two task vectors can be compared.
        ranks = [[-(-numel // ONE_IN)]] * num_tasks
        self._kth = KthMagnitude(ranks, numel) if self._task_pairs and numel else None
        self._least: list[float] = []
        self._parts: list[_Sums] = []
        self._lock = Lock()
        self._spectral = spectral and len(group.shape) == 2 and numel > 0
        self._phase = "sums"
        self.spans: deque[tuple[int, int]] = deque()
        self._begin_sums()

    def _begin_sums(self) -> None:
        ranges = self._kth.ranges() if self._kth is not None else ()
        self._phase = "largest" if ranges else "sums"
        if not ranges and self._kth is not None:
            self._least = [min(magnitudes[0], _MOST) for magnitudes in self._kth.result]
        self.spans = deque(cut(ranges or [(0, self.job.numel)], SPAN))

    def advance(self) -> bool:
        """Go on to the next pass; False when everything is measured."""
        if self._phase == "largest":
            assert self._kth is not None
            self._kth.finish_pass()
            self._begin_sums()
            return True
        if self._phase == "sums":
            self._finish_sums()
            changed = any(d.square_change for (i, _), d in self.pairs.items() if i == self.group.models[0])
            if self._spectral and self.group.models[0] == 0 and changed:
                self._phase = "spectra"
                self.spans = deque([(0, self.job.numel)])
                return True
        # What was measured is kept until the end; what it took is not.
        self._sources, self._kth = [], None
        return False

    def process(self, start: int, stop: int, buffers: Buffers) -> None:
        """Measure elements [start, stop) in the current pass."""
        if self._phase == "spectra":
            changed = [
                i
                for i, model in enumerate(self.group.models)
                if i and self.pairs[0, model].square_change and not sum(self.num_nonfinite)
            ]
            found = spectra_of(self._sources, changed, self.group.shape, buffers)
            self.spectra = {self.group.models[i]: spectrum for i, spectrum in found.items()}
            return
        for first, last in cut([(start, stop)], GRAIN):
            self._measure(first, last, buffers)

    def _measure(self, start: int, stop: int, buffers: Buffers) -> None:
        num_models, num_tasks = len(self._sources), len(self.group.models) - 1
        rows = buffers.rows(num_models + num_tasks * bool(self._task_pairs), stop - start)
        values, changes = rows[:num_models], rows[num_models:]
        for row, source in zip(values, self._sources, strict=True):
            source.read(start, stop, row, buffers.scratch)
        if self._phase == "largest":
            assert self._kth is not None
            # For the price of a sum: one such value makes it NaN or Inf as well.
            if not math.isfinite(values.sum().item()):
                _clear_nonfinite(values)
            partial = self._kth.update(_task_vectors(values, changes), start)
            with self._lock:
                self._kth.absorb(partial)
            return
        nonfinite, left_out = [0] * num_models, 0
        differences = kernels.differences(values)
        # Squares of float32 numbers are finite in float64, unless these are not.
        if not all(map(math.isfinite, differences[0])):
            nonfinite, left_out = _clear_nonfinite(values)
            differences = kernels.differences(values)
        task_products, tops, conflicts = [], [], []
        rounded = [self._count_rounded(values, pair) for pair in self._pairs]
        if self._task_pairs:
            _task_vectors(values, changes)
            task_products = _products(changes)
            if not all(map(math.isfinite, task_products)):  # the difference of two numbers may be too large
                changes.nan_to_num_()
                task_products = _products(changes)
            tops, conflicts = kernels.count_conflicts(changes, self._least)
        sums = _Sums(*differences, rounded, task_products, tops, conflicts, nonfinite, left_out)
        with self._lock:
            self._parts.append(sums)

    def _count_rounded(self, values: Float32[Tensor, "m n"], pair: tuple[int, int]) -> int:
        """How many elements of a pair are equal in the less precise of their types; 0 if there is none."""
        dtype = self._rounded.get(pair)
        if dtype is None:
            return 0
        one, other = (values[i].to(dtype).float() for i in pair)
        return int(torch.eq(one, other).sum())

    def _finish_sums(self) -> None:
        parts = self._parts
        models = self.group.models
        if not parts:  # tensors without elements
            self.pairs = {(models[i], models[j]): Difference() for i, j in self._pairs}
            return
        products = [exact_sum(column) for column in zip(*(p.products for p in parts), strict=True)]
        gram = dict(zip(_triangle(len(models)), products, strict=True))
        tasks = self._finish_tasks()
        self.num_nonfinite = [sum(column) for column in zip(*(p.nonfinite for p in parts), strict=True)]
        self._num_left_out = sum(p.left_out for p in parts)
        numel = self.job.numel - self._num_left_out
        self.norms = {model: gram[i, i] ** 0.5 for i, model in enumerate(models)}
        for place, (i, j) in enumerate(self._pairs):
            # What is left out counts as equal in the kernels, which see zeros.
            num_equal = sum(p.equal[place] for p in parts) - self._num_left_out
            num_rounded = sum(p.rounded[place] for p in parts) - self._num_left_out
            self.pairs[models[i], models[j]] = Difference(
                numel=numel,
                num_equal=num_equal,
                num_rounded=num_rounded if (i, j) in self._rounded else num_equal,
                square_first=gram[i, i],
                square_second=gram[j, j],
                product=gram[i, j],
                square_change=exact_sum([p.squares[place] for p in parts]),
                largest=max(p.largest[place] for p in parts),
                task=tasks.get((i - 1, j - 1)),
            )
        self._parts = []

    def _finish_tasks(self) -> dict[tuple[int, int], TaskDifference]:
        if not self._task_pairs:
            return {}
        parts = self._parts
        products = [exact_sum(column) for column in zip(*(p.task_products for p in parts), strict=True)]
        gram = dict(zip(_triangle(len(self.group.models) - 1), products, strict=True))
        tops = [sum(column) for column in zip(*(p.tops for p in parts), strict=True)]
        result: dict[tuple[int, int], TaskDifference] = {}
        for place, (i, j) in enumerate(self._task_pairs):
            both, opposite, top = (sum(p.conflicts[place][c] for p in parts) for c in range(3))
            result[i, j] = TaskDifference(
                gram[i, i], gram[j, j], gram[i, j], both, opposite, tops[i], tops[j], top
            )
        return result


@dataclass(frozen=True, slots=True)
class _Sums:
    """What one tile adds; see `kernels.differences` and `kernels.count_conflicts`."""

    products: list[float]
    squares: list[float]
    largest: list[float]
    equal: list[int]
    rounded: list[int]
    task_products: list[float]
    tops: list[int]
    conflicts: list[tuple[int, int, int]]
    nonfinite: list[int]
    left_out: int


class IntegerMeasurement:
    """As `Measurement`, for tensors of which one at least holds whole numbers: counts what is equal."""

    def __init__(self, group: Group, files: OpenFiles) -> None:
        self.group = group
        self.job = group.job
        self.outstanding = 0
        self.spans = deque(cut([(0, self.job.numel)], SPAN))
        self.pairs: dict[PairKey, Difference] = {}
        self.norms: Mapping[int, float] = {}
        self.spectra: Mapping[int, Spectrum] = {}
        self.num_nonfinite = [0] * len(group.models)
        self._files = files
        self._equal = dict.fromkeys(combinations(range(len(group.models)), 2), 0)
        self._lock = Lock()

    def process(self, start: int, stop: int, buffers: Buffers) -> None:
        """Compare elements [start, stop)."""
        values = [self._read(info, start, stop, buffers) for info in self.group.infos]
        for i, j in self._equal:
            # Compared as they are: torch finds the type that holds both.
            equal = int(torch.eq(values[i], values[j]).sum())
            with self._lock:
                self._equal[i, j] += equal

    def _read(self, info: TensorInfo, start: int, stop: int, buffers: Buffers) -> Tensor:
        if info.encoding is not None:
            out = torch.empty(stop - start)
            info.open(self._files).read(start, stop, out, buffers.scratch)
            return out
        dtype = DTYPES[info.dtype]
        raw = torch.empty((stop - start) * dtype.itemsize, dtype=torch.uint8)
        StoredTensor(self._files, info).read_bytes(start, raw.numpy().data)
        values = raw.view(getattr(torch, dtype.torch))
        # Types of one byte that are no integers, and unsigned ones, cannot be compared with all others.
        return values.double() if dtype.itemsize == 1 or dtype.name.startswith("U") else values

    def advance(self) -> bool:
        """There is one pass."""
        models = self.group.models
        for (i, j), equal in self._equal.items():
            self.pairs[models[i], models[j]] = Difference(self.job.numel, equal, equal)
        return False


def _triangle(size: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(size) for j in range(i, size)]


def _clear_nonfinite(values: Float32[Tensor, "m n"]) -> tuple[list[int], int]:
    """Set positions to 0, in all rows, where one of them is NaN or Inf.

    Returns:
        How many such values each row has, and how many positions that makes.
    """
    bad = values.isfinite().logical_not_()
    somewhere = bad.any(0)
    values.masked_fill_(somewhere, 0)
    return [int(row.sum()) for row in bad], int(somewhere.sum())


def _products(changes: Float32[Tensor, "m n"]) -> list[float]:
    """Inner products of rows i ≤ j, in that order."""
    return kernels.products(changes, changes.shape[1])[0]


def _task_vectors(
    values: Float32[Tensor, "m n"], changes: Float32[Tensor, "m-1 n"]
) -> Float32[Tensor, "m-1 n"]:
    """The changes of all rows against the first one, in float32 as merges form them."""
    # Row by row: torch is several times slower at all of them together.
    for row, change in zip(values[1:], changes, strict=True):
        torch.sub(row, values[0], out=change)
    return changes


def _rounded_types(infos: Sequence[TensorInfo]) -> dict[tuple[int, int], torch.dtype]:
    """Of pairs that are stored in different types, the less precise one; decoded values have no such type."""
    result: dict[tuple[int, int], torch.dtype] = {}
    for i, j in combinations(range(len(infos)), 2):
        one, other = infos[i], infos[j]
        if one.dtype == other.dtype or one.encoding is not None or other.encoding is not None:
            continue
        types: list[torch.dtype] = [getattr(torch, DTYPES[info.dtype].torch) for info in (one, other)]
        result[i, j] = max(types, key=lambda dtype: torch.finfo(dtype).eps)
    return result
