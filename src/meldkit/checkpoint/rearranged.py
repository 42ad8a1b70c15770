"""Tensors that are made of others: of runs of their elements, or with two sizes exchanged."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from meldkit.checkpoint.dtypes import DTYPES
from meldkit.checkpoint.files import OpenFiles
from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.tensor import Scratch, TensorInfo, TileSource
from meldkit.errors import CheckpointError
from meldkit.shapes import Float32

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
        run = Run(matrix.tensor, matrix.start, matrix.rows * matrix.columns)
        if runs and runs[-1].tensor is run.tensor and runs[-1].start + runs[-1].numel == run.start:
            runs[-1] = replace(run, start=runs[-1].start, numel=runs[-1].numel + run.numel)
        else:
            runs.append(run)
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


def _widest(dtypes: Iterable[str]) -> str:
    return max(dict.fromkeys(dtypes), key=lambda dtype: (DTYPES[dtype].floating, DTYPES[dtype].itemsize))


def transposed(info: TensorInfo) -> TensorInfo:
    """The tensor with its last two sizes exchanged."""
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
        del info
        # By identity: equal tensors are equal objects here, and comparing deep ones takes long.
        opened: dict[int, TileSource] = {}
        for run in self.runs:
            if id(run.tensor) not in opened:
                opened[id(run.tensor)] = run.tensor.open(files)
        return _RunsSource([(opened[id(run.tensor)], run.start, run.numel) for run in self.runs])


class _RunsSource:
    def __init__(self, runs: Sequence[tuple[TileSource, int, int]]) -> None:
        self._runs = runs
        self._ends = list(accumulate(numel for _, _, numel in runs))

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        index = bisect_right(self._ends, start)
        position = start
        while position < stop:
            source, first, numel = self._runs[index]
            begin = self._ends[index] - numel
            end = min(stop, self._ends[index])
            part = out[position - start : end - start]
            source.read(first + position - begin, first + end - begin, part, scratch)
            position = end
            index += 1


@dataclass(frozen=True, slots=True)
class Transposed:
    """A tensor whose last two sizes are exchanged; two of its matrices are held in memory at a time."""

    tensor: TensorInfo

    @property
    def files(self) -> Sequence[Path]:
        return self.tensor.files

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The tensor's values."""
        del info
        return _TransposedSource(self.tensor.open(files), self.tensor)


class _TransposedSource:
    def __init__(self, under: TileSource, info: TensorInfo) -> None:
        self._under = under
        self._rows, self._columns = info.shape[-2:]
        # What is decoded may be finer than the type it stands for.
        self._dtype: torch.dtype = (
            torch.float32 if info.encoding else getattr(torch, DTYPES[info.dtype].torch)
        )
        # Tiles of a matrix follow each other, and threads are at work on neighbours: one makes it for all.
        self._matrix = lru_cache(maxsize=2)(self._load)
        self._lock = Lock()

    def _load(self, index: int) -> Tensor:
        """One matrix, turned and flat."""
        size = self._rows * self._columns
        matrix = torch.empty(size, dtype=self._dtype)
        values, scratch = torch.empty(min(_RUN, size)), Scratch()
        for start in range(0, size, _RUN):
            stop = min(size, start + _RUN)
            part = values[: stop - start]
            self._under.read(index * size + start, index * size + stop, part, scratch)
            matrix[start:stop] = part
        return matrix.view(self._rows, self._columns).T.reshape(-1)

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
