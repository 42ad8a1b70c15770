"""Tables whose rows are computed when they are read: weighted sums, linear maps, random draws."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from meldkit.checkpoint import OpenFiles, Scratch, TensorInfo, TileSource, read_all
from meldkit.composed import Latest, normal
from meldkit.plan.tables import Table
from meldkit.shapes import Float32, Tensor
from meldkit.vocab import AlignedRows, RowMap

#: Rows computed at once, of which as many blocks are kept; and of those that are turned first.
_ROWS, _KEPT, _TURNED = 128, 8, 8

#: From (first, behind the last) to those rows, float32 `[rows, columns]`.
Make = Callable[[int, int, Scratch], Tensor]


class _Computed:
    """Rows that are computed several at a time, always the same ones together: sums may depend on that."""

    def __init__(self, count: int, columns: int, make: Make) -> None:
        self._count = count
        self._columns = columns
        self._make = make
        # Tiles end within blocks, and threads are at work on neighbours.
        self._latest = Latest[Tensor](_KEPT)

    def _block(self, number: int, scratch: Scratch) -> Tensor:
        first = number * _ROWS
        last = min(first + _ROWS, self._count)
        return self._latest.get(number, lambda: self._make(first, last, scratch).reshape(-1))

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        """Fill `out` with elements [start, stop)."""
        size = _ROWS * self._columns
        for number in range(start // size, -(-stop // size)):
            values, begin = self._block(number, scratch), number * size
            since, until = max(start, begin), min(stop, begin + len(values))
            out[since - start : until - start] = values[since - begin : until - begin]


def columns_of(table: Table) -> int:
    """Elements of a row."""
    return math.prod(table.row_shape)


def chosen(table: Table, numbers: np.ndarray) -> TensorInfo:
    """Rows of a table as a table of their own; int64 `[n]`."""
    size = len(numbers)
    rows = RowMap(np.arange(size + 1), np.zeros(size, np.int16), numbers.astype(np.int64))
    return table.with_rows(size, AlignedRows((table.info,), rows))


def read_rows(files: OpenFiles, table: Table, numbers: np.ndarray) -> Float32[Tensor, "n columns"]:
    """The same in memory."""
    return read_all(files, chosen(table, numbers)).view(len(numbers), columns_of(table))


def digest(*arrays: np.ndarray) -> str:
    """Hex hash of numbers."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


@dataclass(frozen=True, slots=True)
class Turn:
    """How far atoms are turned before they are added up, as rotary position embeddings turn heads.

    Attributes:
        positions: float32 `[n, k]`.
        heads: into how many a row is cut.
        base: of the frequencies.
    """

    positions: np.ndarray
    heads: int
    base: float

    def turned(self, first: int, part: slice, atoms: Float32[Tensor, "n k columns"]) -> Tensor:
        """Atoms of a part of the rows from `first` on, turned."""
        return turned(atoms, torch.from_numpy(self.positions[first:][part]), self.heads, self.base)


def turned(
    x: Float32[Tensor, "*n columns"], positions: Float32[Tensor, "*n"], heads: int, base: float
) -> Float32[Tensor, "*n columns"]:
    """Vectors turned as rotary position embeddings do (arXiv:2104.09864), halves of a head in pairs."""
    one, other = halves(x, heads)
    angles = positions[..., None, None] * frequencies(x.shape[-1] // heads, base).to(x.device)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((one * cos - other * sin, other * cos + one * sin), -2).flatten(-3)


def halves(
    x: Float32[Tensor, "*n columns"], heads: int
) -> tuple[Float32[Tensor, "*n heads half"], Float32[Tensor, "*n heads half"]]:
    """The first and the second half of each head."""
    parts = x.reshape(*x.shape[:-1], heads, 2, -1)
    return parts[..., 0, :], parts[..., 1, :]


def lengths(x: Float32[Tensor, "*n columns"]) -> Float32[Tensor, "*n"]:
    """Euclidean lengths of rows."""
    return x.square().sum(-1).sqrt()


def frequencies(head_size: int, base: float) -> Float32[Tensor, " half"]:
    """Of the pairs of a head: radians per position."""
    return base ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)


@dataclass(frozen=True, slots=True, eq=False)
class WeightedRows:
    """A table whose rows are weighted sums of rows of another.

    Attributes:
        table: the other.
        rows: int32 `[n, k]`, which of its rows.
        weights: float32 `[n, k]`, of each.
        turn: applied to each before; None for none.
    """

    table: Table
    rows: np.ndarray
    weights: np.ndarray
    turn: Turn | None = None

    @property
    def files(self) -> Sequence[Path]:
        return self.table.info.files

    @property
    def digest(self) -> str:
        """Hex hash of the numbers."""
        turn = () if self.turn is None else (self.turn.positions, np.array([self.turn.heads, self.turn.base]))
        return digest(self.rows, self.weights, *turn)

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The table's values."""
        del info
        columns = columns_of(self.table)

        def make(first: int, last: int, scratch: Scratch) -> Tensor:
            rows, weights = self.rows[first:last], torch.from_numpy(self.weights[first:last])
            needed, places = np.unique(rows, return_inverse=True)
            atoms = torch.empty(len(needed), columns)
            chosen(self.table, needed).open(files).read(0, atoms.numel(), atoms.view(-1), scratch)
            if self.turn is not None:
                at = torch.from_numpy(places.reshape(rows.shape))
                parts = [slice(row, row + _TURNED) for row in range(0, len(rows), _TURNED)]
                sums = [
                    weights[part, None] @ self.turn.turned(first, part, atoms[at[part]]) for part in parts
                ]
                return torch.cat(sums)[:, 0]
            # What is chosen for one row is often chosen for others: a matrix of few columns.
            mixture = torch.zeros(len(rows), len(needed))
            mixture.scatter_add_(1, torch.from_numpy(places.reshape(rows.shape)), weights)
            return mixture @ atoms

        return _Computed(len(self.rows), columns, make)


@dataclass(frozen=True, slots=True, eq=False)
class MappedRows:
    """A table whose rows are those of another in a linear map.

    Attributes:
        table: the other.
        rows: int64 `[n]`, which of its rows.
        matrix: float32 `[its columns, columns]`.
        before, after: subtracted from its rows, added to the results.
    """

    table: Table
    rows: np.ndarray
    matrix: Tensor
    before: Tensor
    after: Tensor

    @property
    def files(self) -> Sequence[Path]:
        return self.table.info.files

    @property
    def digest(self) -> str:
        """Hex hash of the numbers."""
        return digest(self.rows, *(tensor.numpy() for tensor in (self.matrix, self.before, self.after)))

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The table's values."""
        del info

        def make(first: int, last: int, scratch: Scratch) -> Tensor:
            x = torch.empty(last - first, columns_of(self.table))
            chosen(self.table, self.rows[first:last]).open(files).read(0, x.numel(), x.view(-1), scratch)
            return (x - self.before) @ self.matrix + self.after

        return _Computed(len(self.rows), self.matrix.shape[1], make)


@dataclass(frozen=True, slots=True, eq=False)
class DrawnRows:
    """A table of rows drawn at random from a normal distribution.

    Attributes:
        count: of rows.
        mean: float32 `[columns]`.
        factor: float32 `[columns, columns]`, whose product with its transpose is the covariance; None for 1.
        key: of the random numbers.
    """

    count: int
    mean: Tensor
    factor: Tensor | None
    key: str

    @property
    def files(self) -> Sequence[Path]:
        return ()

    @property
    def digest(self) -> str:
        """Hex hash of the numbers."""
        factor = () if self.factor is None else (self.factor.numpy(),)
        return digest(self.mean.numpy(), *factor, np.frombuffer(self.key.encode(), np.uint8))

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The table's values."""
        del files, info
        columns = len(self.mean)

        def make(first: int, last: int, scratch: Scratch) -> Tensor:
            del scratch
            drawn = torch.from_numpy(normal(self.key, first * columns, last * columns)).view(-1, columns)
            return self.mean + (drawn if self.factor is None else drawn @ self.factor.T)

        return _Computed(self.count, columns, make)


@dataclass(frozen=True, slots=True, eq=False)
class EqualRows:
    """A table whose rows are all the same.

    Attributes:
        count: of rows.
        values: float32 `[columns]`.
    """

    count: int
    values: Tensor

    @property
    def files(self) -> Sequence[Path]:
        return ()

    @property
    def digest(self) -> str:
        """Hex hash of the numbers."""
        return digest(self.values.numpy())

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The table's values."""
        del files, info
        return _Computed(
            self.count, len(self.values), lambda first, last, _: self.values.expand(last - first, -1)
        )


#: Rows of tokens that a model lacks.
NewRows = WeightedRows | MappedRows | DrawnRows | EqualRows
