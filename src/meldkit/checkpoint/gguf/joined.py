"""Tensors that are made of several stored ones, and such that a file keeps as a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from meldkit.checkpoint.files import OpenFiles
from meldkit.checkpoint.tensor import Scratch, TensorInfo, TileSource
from meldkit.shapes import Float32, Tensor

#: Turns up to this many elements are read whole.
_SHORT = 1 << 16


@dataclass(frozen=True, slots=True)
class Alternating:
    """A tensor that consists of runs of others by turns, all runs of one of them equally long."""

    parts: tuple[TensorInfo, ...]
    runs: tuple[int, ...]

    @property
    def files(self) -> Sequence[Path]:
        return tuple(dict.fromkeys(path for part in self.parts for path in part.files))

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The tensor's values."""
        del info
        return _AlternatingSource([part.open(files) for part in self.parts], self.runs)


class _AlternatingSource:
    def __init__(self, parts: Sequence[TileSource], runs: Sequence[int]) -> None:
        self._parts = parts
        self._runs = runs
        self._ends = list(accumulate(runs))

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        if self._ends[-1] <= _SHORT:
            self._read_turns(start, stop, out, scratch)
            return
        position = start
        while position < stop:
            turn, inside = divmod(position, self._ends[-1])
            which = next(i for i, end in enumerate(self._ends) if inside < end)
            count = min(stop - position, self._ends[which] - inside)
            run = self._runs[which]
            first = turn * run + inside - (self._ends[which] - run)
            self._parts[which].read(
                first, first + count, out[position - start : position - start + count], scratch
            )
            position += count

    def _read_turns(self, start: int, stop: int, out: Tensor, scratch: Scratch) -> None:
        """Whole turns, of which those at the ends are not all wanted."""
        length = self._ends[-1]
        first, last = start // length, -(-stop // length)
        whole = torch.empty(last - first, length)
        for part, run, end in zip(self._parts, self._runs, self._ends, strict=True):
            values = torch.empty((last - first) * run)
            part.read(first * run, last * run, values, scratch)
            whole[:, end - run : end] = values.view(-1, run)
        out.copy_(whole.view(-1)[start - first * length : stop - first * length])


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that is one number everywhere."""

    value: float
    files: Sequence[Path] = ()

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The tensor's values."""
        del files, info
        return _ConstantSource(self.value)


class _ConstantSource:
    def __init__(self, value: float) -> None:
        self._value = value

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        del start, stop, scratch
        out.fill_(self._value)
