"""Tables whose rows are put together from those of others, such as embeddings of another vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from meldkit.checkpoint import OpenFiles, Scratch, StoredTensor, TensorInfo, TileSource
from meldkit.shapes import Float32, Tensor

#: Rows read at once where a whole table is gone through.
_ROWS = 256


@dataclass(frozen=True, eq=False)
class RowMap:
    """Of which rows of which tables each row of a new one is the mean.

    Attributes:
        starts: int64 `[n + 1]`; row i is the mean of the entries from `starts[i]` to before `starts[i + 1]`,
            and zeros if there are none.
        tables: int16, for each entry which table.
        rows: int64, for each entry which row of it.
    """

    starts: np.ndarray
    tables: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def digest(self) -> str:
        """Hex hash; equal maps have equal ones."""
        parts = (self.starts.astype(np.int64), self.tables.astype(np.int16), self.rows.astype(np.int64))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()

    def entries(self, row: int) -> list[tuple[int, int]]:
        """(table, row) of what a row is made of."""
        first, last = self.starts[row : row + 2]
        return list(zip(self.tables[first:last].tolist(), self.rows[first:last].tolist(), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class AlignedRows:
    """A table whose rows are those of others, which have as many columns."""

    tables: tuple[TensorInfo, ...]
    map: RowMap

    @property
    def files(self) -> Sequence[Path]:
        return tuple(dict.fromkeys(path for table in self.tables for path in table.files))

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The table's values."""
        columns = info.numel // max(1, len(self.map))
        return _AlignedSource([table.open(files) for table in self.tables], self.map, columns)


@dataclass(frozen=True, slots=True, eq=False)
class MeanRow:
    """One row: the mean of all rows of a table, formed in float64 when it is opened."""

    table: TensorInfo

    @property
    def files(self) -> Sequence[Path]:
        return self.table.files

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The row's values."""
        columns, source, scratch = info.numel, self.table.open(files), Scratch()
        total = torch.zeros(columns, dtype=torch.float64)
        for start in range(0, self.table.numel, _ROWS * columns):
            part = torch.empty(min(_ROWS * columns, self.table.numel - start))
            source.read(start, start + len(part), part, scratch)
            total += part.view(-1, columns).sum(0, dtype=torch.float64)
        return _HeldRow((total / (self.table.numel // columns)).float())


class _HeldRow:
    def __init__(self, values: Float32[Tensor, " n"]) -> None:
        self._values = values

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        del scratch
        out.copy_(self._values[start:stop])


class _AlignedSource:
    """Whole rows are read many at once; the ends of a tile may lie within a row."""

    def __init__(self, tables: Sequence[TileSource], rows: RowMap, columns: int) -> None:
        self._tables = tables
        self._map = rows
        self._columns = columns

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        position = start
        while position < stop:
            row, column = divmod(position, self._columns)
            count = min(self._columns - column, stop - position)
            if column == 0 and stop - position >= self._columns:
                count = (stop - position) // self._columns * self._columns
                block = out[position - start :][:count].view(-1, self._columns)
                self._read_rows(row, block, scratch)
            else:
                self._read_part(row, column, out[position - start :][:count], scratch)
            position += count

    def _read_part(self, row: int, column: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        """A row from a column on."""
        entries = self._map.entries(row)
        if len(entries) != 1:
            out.zero_()
        part = out if len(entries) == 1 else torch.empty_like(out)
        for table, source_row in entries:
            start = source_row * self._columns + column
            self._tables[table].read(start, start + len(out), part, scratch)
            if part is not out:
                out.add_(part)
        if len(entries) > 1:
            out.div_(len(entries))

    def _read_rows(self, first: int, out: Float32[Tensor, "rows columns"], scratch: Scratch) -> None:
        starts = self._map.starts[first : first + len(out) + 1]
        counts = np.diff(starts)
        alone = np.flatnonzero(counts == 1)
        if len(alone) == len(out):
            entries = slice(int(starts[0]), int(starts[-1]))
            tables, rows = self._map.tables[entries], self._map.rows[entries]
        else:
            tables, rows = self._map.tables[starts[alone]], self._map.rows[starts[alone]]
            for row in np.flatnonzero(counts != 1).tolist():
                self._read_part(first + row, 0, out[row], scratch)
        for table in np.unique(tables).tolist():
            chosen = np.flatnonzero(tables == table)
            targets = alone[chosen]
            together = int(targets[-1]) - int(targets[0]) == len(targets) - 1
            block = (
                out[int(targets[0]) :][: len(targets)]
                if together
                else out.new_empty(len(targets), self._columns)
            )
            self._read_table(table, rows[chosen], block, scratch)
            if not together:
                out[torch.from_numpy(targets)] = block

    def _read_table(
        self, table: int, rows: np.ndarray, out: Float32[Tensor, "rows columns"], scratch: Scratch
    ) -> None:
        source = self._tables[table]
        runs = list(_runs(rows))
        if len(runs) > 1 and isinstance(source, StoredTensor):
            source.read_rows(rows, out, scratch)
            return
        done = 0
        for start, stop in runs:
            part = out[done : done + stop - start].view(-1)
            source.read(start * self._columns, stop * self._columns, part, scratch)
            done += stop - start


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, behind the last) of the rows that follow each other."""
    breaks = (np.flatnonzero(np.diff(rows) != 1) + 1).tolist()
    for start, stop in zip([0, *breaks], [*breaks, len(rows)], strict=True):
        yield int(rows[start]), int(rows[stop - 1]) + 1
