"""Tensors that are made of others: of runs of their elements, or with two sizes exchanged."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from threading import Lock, RLock
from typing import Generic, TypeVar, cast
from weakref import WeakKeyDictionary

import torch

from meldkit.checkpoint.dtypes import DTYPES
from meldkit.checkpoint.files import OpenFiles
from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.tensor import Scratch, StoredTensor, TensorInfo, TileSource
from meldkit.errors import CheckpointError
from meldkit.shapes import Float32, Tensor

Source = TypeVar("Source", bound=TileSource)

#: Elements read at once where a whole matrix is collected.
_RUN = 1 << 19


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix that is a run of elements of a tensor."""

    tensor: TensorInfo
    start: int
    rows: int
    columns: int


def joined(name: str, matrices: Sequence[Matrix], outer: tuple[int, ...]) -> TensorInfo:
    """Matrices below each other as one tensor; `outer` sizes come before its rows and columns."""
    runs: list[Run] = []
    for matrix in matrices:
        for run in _pieces(Run(matrix.tensor, matrix.start, matrix.rows * matrix.columns)):
            both = _together(runs[-1], run) if runs else None
            runs[-1:] = [both] if both else [*runs[-1:], run]
    rows = sum(matrix.rows for matrix in matrices)
    columns = {matrix.columns for matrix in matrices}
    count = outer[0] if outer else 1
    if len(columns) > 1 or rows % count:
        raise CheckpointError(
            f"the experts that would be {shown(name)} have different shapes",
            hint="the models are of different kinds, or one of them is damaged",
        )
    dtype = _widest(run.tensor.dtype for run in runs)
    shape = (*outer, rows // count, *columns)
    first = runs[0].tensor
    if len(runs) == 1 and first.shape == shape:
        return replace(first, name=name)
    if len(runs) == 1 and first.encoding is None:
        itemsize = DTYPES[dtype].itemsize
        offset = first.offset + runs[0].start * itemsize
        return TensorInfo(name, dtype, shape, first.file, offset, runs[0].numel * itemsize)
    nbytes = sum(run.numel * run.tensor.nbytes // max(1, run.tensor.numel) for run in runs)
    return TensorInfo(name, dtype, shape, first.file, first.offset, nbytes, Runs(tuple(runs)))


def _pieces(run: Run) -> Iterator[Run]:
    """The same elements as runs of those tensors that theirs is made of."""
    if not isinstance(run.tensor.encoding, Runs):
        yield run
        return
    position = 0
    for part in run.tensor.encoding.runs:
        begin, end = max(run.start, position), min(run.start + run.numel, position + part.numel)
        if begin < end:
            yield from _pieces(Run(part.tensor, part.start + begin - position, end - begin))
        position += part.numel


def _together(first: Run, second: Run) -> Run | None:
    """Both as one; None if the second does not begin where the first one ends."""
    a, b = first.tensor, second.tensor
    if a is b and first.start + first.numel == second.start:
        return replace(first, numel=first.numel + second.numel)
    if a.encoding is None and b.encoding is None and (a.file, a.dtype) == (b.file, b.dtype):
        itemsize = DTYPES[a.dtype].itemsize
        offset = a.offset + first.start * itemsize
        if offset + first.numel * itemsize == b.offset + second.start * itemsize:
            numel = first.numel + second.numel
            return Run(replace(a, shape=(numel,), offset=offset, nbytes=numel * itemsize), 0, numel)
    return None


def _widest(dtypes: Iterable[str]) -> str:
    return max(dict.fromkeys(dtypes), key=lambda dtype: (DTYPES[dtype].floating, DTYPES[dtype].itemsize))


def transposed(info: TensorInfo) -> TensorInfo:
    """The tensor with its last two sizes exchanged."""
    if isinstance(info.encoding, Transposed):
        return replace(info.encoding.tensor, name=info.name)
    *outer, rows, columns = info.shape
    return replace(info, shape=(*outer, columns, rows), encoding=Transposed(info))


def _files(tensors: Iterable[TensorInfo]) -> Iterator[Path]:
    for info in tensors:
        yield from info.files


@dataclass(frozen=True, slots=True)
class Run:
    """Elements [start, start + numel) of a tensor."""

    tensor: TensorInfo
    start: int
    numel: int


@dataclass(frozen=True, slots=True)
class Runs:
    """A tensor that consists of runs of others, one after the other."""

    runs: tuple[Run, ...]

    @property
    def files(self) -> Sequence[Path]:
        return tuple(dict.fromkeys(_files(run.tensor for run in self.runs)))

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The tensor's values."""
        # By identity: equal tensors are equal objects here, and comparing deep ones takes long.
        opened: dict[int, TileSource] = {}
        for run in self.runs:
            if id(run.tensor) not in opened:
                opened[id(run.tensor)] = run.tensor.open(files)
        runs = [(opened[id(run.tensor)], run.start, run.numel) for run in self.runs]
        if all(run.tensor.encoding is None and run.tensor.dtype == info.dtype for run in self.runs):
            return _StoredRuns(cast("list[tuple[StoredTensor, int, int]]", runs), info)
        return _RunsSource(runs)


class _RunsSource(Generic[Source]):
    def __init__(self, runs: Sequence[tuple[Source, int, int]]) -> None:
        self._runs = runs
        self._ends = list(accumulate(numel for _, _, numel in runs))

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Source, int, int, int]]:
        """Where elements [start, stop) come from: (source, first, last, position behind `start`)."""
        index = bisect_right(self._ends, start)
        position = start
        while position < stop:
            source, first, numel = self._runs[index]
            begin = self._ends[index] - numel
            end = min(stop, self._ends[index])
            yield source, first + position - begin, first + end - begin, position - start
            position = end
            index += 1

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        for source, first, last, position in self._pieces(start, stop):
            source.read(first, last, out[position : position + last - first], scratch)


class _StoredRuns(_RunsSource[StoredTensor]):
    """Runs of elements that all lie in files, in the tensor's own type."""

    def __init__(self, runs: Sequence[tuple[StoredTensor, int, int]], info: TensorInfo) -> None:
        super().__init__(runs)
        self._itemsize = DTYPES[info.dtype].itemsize

    def read_bytes(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the stored bytes from element `start` on."""
        size = self._itemsize
        for source, first, last, position in self._pieces(start, start + len(buffer) // size):
            source.read_bytes(first, buffer[position * size : (position + last - first) * size])


#: The sources of transposed tensors that were opened last, as many as a layer of experts has.
_latest: WeakKeyDictionary[OpenFiles, dict[TensorInfo, _TransposedSource]] = WeakKeyDictionary()
_latest_lock = RLock()
_MAX_LATEST = 2


@dataclass(frozen=True, slots=True)
class Transposed:
    """A tensor whose last two sizes are exchanged; two of its matrices are held in memory at a time."""

    tensor: TensorInfo

    @property
    def files(self) -> Sequence[Path]:
        return self.tensor.files

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The tensor's values; the same source for all that are parts of it, such as single experts."""
        del info
        with _latest_lock:
            latest = _latest.setdefault(files, {})
            source = latest.pop(self.tensor, None) or _TransposedSource(self.tensor.open(files), self.tensor)
            latest[self.tensor] = source
            if len(latest) > _MAX_LATEST:
                del latest[next(iter(latest))]
            return source


class _TransposedSource:
    def __init__(self, under: TileSource, info: TensorInfo) -> None:
        self._under = under
        self._rows, self._columns = info.shape[-2:]
        self._stored = under if isinstance(under, StoredTensor | _StoredRuns) else None
        # What is decoded may be finer than the type it stands for.
        self._dtype: torch.dtype = getattr(torch, DTYPES[info.dtype].torch) if self._stored else torch.float32
        # Tiles of a matrix follow each other, and threads are at work on neighbours: one makes it for all.
        # Rooms are used again and again, as each page of a new one costs a page fault.
        self._upright = torch.empty(0, dtype=self._dtype)
        self._turned: dict[int, Tensor] = {}
        self._lock = Lock()

    def _matrix(self, index: int) -> Tensor:
        """One matrix, turned and flat; in use until the lock is given back."""
        if index not in self._turned:
            size = self._rows * self._columns
            if not len(self._upright):
                self._upright = torch.empty(size, dtype=self._dtype)
            if self._stored:
                self._stored.read_bytes(index * size, self._upright.view(torch.uint8).numpy().data)
            else:
                scratch = Scratch()
                for start in range(0, size, _RUN):
                    part = self._upright[start : start + _RUN]
                    first = index * size + start
                    self._under.read(first, first + len(part), part, scratch)
            full = len(self._turned) == 2
            room = self._turned.pop(next(iter(self._turned))) if full else torch.empty_like(self._upright)
            room.view(self._columns, self._rows).copy_(self._upright.view(self._rows, self._columns).T)
            self._turned[index] = room
        return self._turned[index]

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        del scratch
        size = self._rows * self._columns
        position = start
        while position < stop:
            index, inside = divmod(position, size)
            count = min(stop - position, size - inside)
            with self._lock:
                matrix = self._matrix(index)
                out[position - start : position - start + count] = matrix[inside : inside + count]
            position += count
