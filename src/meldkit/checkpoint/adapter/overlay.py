"""What an adapter does to one tensor, as an encoding over what lies beneath it: computed tile by tile.

    LowRank      W' = W + s · B A
    Dora         W' = m · (W + s · B A) / ‖W + s · B A‖, by output channel
    Rows         some rows of an embedding replaced
    Shift        b' = b + s · c

Per element and pass over the tensor, LowRank with r = 16 costs 0.5 ns on one core, and Dora 1 ns (AMD EPYC,
AVX-512).

Papers: LoRA, https://arxiv.org/abs/2106.09685; rsLoRA, https://arxiv.org/abs/2312.03732;
DoRA, https://arxiv.org/abs/2402.09353.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast
from weakref import WeakKeyDictionary

import torch

from meldkit.checkpoint.files import OpenFiles
from meldkit.checkpoint.tensor import Scratch, TensorInfo, TileSource, read_all
from meldkit.shapes import Float32, Tensor

#: Elements of the blocks of B·A, a quarter of a tile. A matrix product rounds differently for different
#: numbers of rows, and tiles must not show in the result: so each block of a fixed grid of whole rows is
#: always multiplied at once. Blocks are computed again for each of the tiles they reach into, which is much
#: for large ones; those of few rows, or of rows that are no multiple of 4, make inefficient products
#: (ns per element at r = 16: 0.70 for 8 rows, 0.58 for 11, 0.51 for 12, 0.46 for 16, 0.38 for 64).
_BLOCK = 1 << 17


class Change(Protocol):
    """What is done to the values of a tensor. Immutable."""

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The adapter's tensors that say how."""
        ...

    def over(self, files: OpenFiles, under: TileSource) -> TileSource:
        """The changed values, given those beneath."""
        ...


@dataclass(frozen=True, slots=True)
class Overlay:
    """The encoding of a tensor that an adapter changes.

    Attributes:
        under: the tensor as it is without the adapter.
        change: what the adapter does to it.
    """

    under: TensorInfo
    change: Change

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of the adapter, and what the tensor beneath needs besides its own."""
        beneath = self.under.encoding.files if self.under.encoding else ()
        return (*beneath, *(path for info in self.change.tensors for path in info.files))

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The changed values."""
        del info
        return self.change.over(files, self.under.open(files))


@dataclass(frozen=True, slots=True)
class Replacement:
    """The encoding of a tensor that stands in an adapter in another dtype than in the model."""

    values: TensorInfo

    @property
    def files(self) -> tuple[Path, ...]:
        """Whatever else the adapter's tensor needs."""
        return tuple(self.values.encoding.files) if self.values.encoding else ()

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The adapter's values."""
        del info
        return self.values.open(files)


@dataclass(frozen=True, slots=True)
class LowRank:
    """A product of low rank is added to one matrix, or to each of a stack of them (experts).

    Attributes:
        a: lora_A [m·r, in], matrix by matrix; of a convolution [r, in, k…]; lora_embedding_A [r, tokens].
        b: lora_B [out, r·m], the number of the matrix running fastest; of a convolution [out, r, 1…].
        scale: s.
        transposed: the weight lies as [in, out], so (B A)ᵀ is added.
        matrices: m.
        matrix: the one that this tensor holds, if it is not all of them.
        rows: the rows (first, last) of B A, or of (B A)ᵀ, that it holds, if it is not all of them.
    """

    a: TensorInfo
    b: TensorInfo
    scale: float
    transposed: bool = False
    matrices: int = 1
    matrix: int | None = None
    rows: tuple[int, int] | None = None

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Both factors."""
        return self.a, self.b

    def over(self, files: OpenFiles, under: TileSource) -> TileSource:
        """The sum."""
        return LowRankSource(under, self.open(files))

    def open(self, files: OpenFiles) -> Product:
        """Read the factors."""
        rank = self.a.shape[0] // self.matrices
        columns = math.prod(self.a.shape[1:])
        if self.matrix is None:
            a = read_all(files, self.a).view(self.matrices, rank, columns)
            b = _by_matrix(files, self.b, self.matrices)
        else:
            a = torch.empty(1, rank, columns)
            first = self.matrix * rank * columns
            self.a.open(files).read(first, first + rank * columns, a.view(-1), Scratch())
            b = _kept_by_matrix(files, self.b, self.matrices)[self.matrix, None]
        left, right = (a.mT, b.mT * self.scale) if self.transposed else (b * self.scale, a)
        if self.rows is not None:
            left = left[:, slice(*self.rows)]
        return Product(left.contiguous(), right.contiguous())


def _by_matrix(files: OpenFiles, b: TensorInfo, matrices: int) -> Float32[Tensor, "m out r"]:
    out = b.shape[0]
    return read_all(files, b).view(out, b.numel // out // matrices if out else 0, matrices).permute(2, 0, 1)


#: The last few lora_B that `_kept_by_matrix` has read.
_kept: WeakKeyDictionary[OpenFiles, OrderedDict[TensorInfo, Tensor]] = WeakKeyDictionary()
_MAX_KEPT = 8


def _kept_by_matrix(files: OpenFiles, b: TensorInfo, matrices: int) -> Float32[Tensor, "m out r"]:
    """The same for experts that are stored one by one: those of a layer need parts of the same lora_B."""
    kept = _kept.setdefault(files, OrderedDict())
    found = kept.get(b)
    if found is None:
        found = kept[b] = _by_matrix(files, b, matrices).contiguous()
        while len(kept) > _MAX_KEPT:
            kept.popitem(last=False)
    return found


@dataclass(frozen=True, slots=True)
class Dora:
    """A product is added, and each output channel is brought to a given length.

    Attributes:
        product: what is added.
        magnitude: lora_magnitude_vector [out], the lengths.
    """

    product: LowRank
    magnitude: TensorInfo

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The factors and the lengths."""
        return (*self.product.tensors, self.magnitude)

    def over(self, files: OpenFiles, under: TileSource) -> TileSource:
        """The scaled sum. Where output channels are columns, this reads the whole tensor first."""
        product = self.product.open(files)
        magnitude = read_all(files, self.magnitude).view(-1)
        if self.product.transposed:
            return ColumnDoraSource(LowRankSource(under, product), product, magnitude)
        return RowDoraSource(under, product, magnitude)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a matrix that are replaced.

    Attributes:
        values: [n, columns].
        indices: the n rows they replace.
    """

    values: TensorInfo
    indices: tuple[int, ...]

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The new rows."""
        return (self.values,)

    def over(self, files: OpenFiles, under: TileSource) -> TileSource:
        """The matrix with them."""
        return RowsSource(under, read_all(files, self.values), self.indices)


@dataclass(frozen=True, slots=True)
class Shift:
    """A vector is added, of the tensor's own shape.

    Attributes:
        by: the vector.
        scale: its factor.
    """

    by: TensorInfo
    scale: float

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The vector."""
        return (self.by,)

    def over(self, files: OpenFiles, under: TileSource) -> TileSource:
        """The sum."""
        return ShiftSource(under, read_all(files, self.by).view(-1) * self.scale)


class Product:
    """L R for each of m matrices, computed in blocks of whole rows.

    Args:
        left: [m, rows, r].
        right: [m, r, columns].
    """

    def __init__(self, left: Float32[Tensor, "m rows r"], right: Float32[Tensor, "m r columns"]) -> None:
        self._left, self._right = left, right
        self.columns = right.shape[2]
        self._matrix = left.shape[1] * self.columns
        rows = max(4, _BLOCK // max(1, self.columns) // 4 * 4) if self.columns <= _BLOCK else 1
        self._block = rows * self.columns
        self.numel = left.shape[0] * self._matrix

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The blocks (first, last) that reach into elements [start, stop), of a fixed grid in each matrix."""
        if start >= stop:
            return
        matrix = start // self._matrix * self._matrix
        first = matrix + (start - matrix) // self._block * self._block
        while first < stop:
            last = min(first + self._block, matrix + self._matrix)
            yield first, last
            first = last
            if first == matrix + self._matrix:
                matrix = first

    def add(self, first: int, block: Float32[Tensor, " n"]) -> None:
        """Add the block that begins at `first` to the same elements of something else."""
        index, offset = divmod(first, self._matrix)
        row = offset // self.columns
        rows = block.view(-1, self.columns)
        rows.addmm_(self._left[index, row : row + len(rows)], self._right[index])


class LowRankSource:
    """A tensor with a product added."""

    def __init__(self, under: TileSource, product: Product) -> None:
        self._under = under
        self._product = product

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        """Fill `out` with elements [start, stop)."""
        self._under.read(start, stop, out, scratch)
        for first, last in self._product.blocks(start, stop):
            begin, end = max(start, first), min(stop, last)
            inside = out[begin - start : end - start]
            if end - begin == last - first:
                self._product.add(first, inside)
            else:
                block = torch.zeros(last - first)
                part = block[begin - first : end - first].copy_(inside)
                self._product.add(first, block)
                inside.copy_(part)


class RowDoraSource:
    """A tensor with a product added and its rows scaled. Lengths are taken row by row as tiles are read.

    A row belongs to the tiles that it reaches into, which read it, and the others of its block, whole.
    """

    def __init__(self, under: TileSource, product: Product, magnitude: Float32[Tensor, " rows"]) -> None:
        self._under = under
        self._product = product
        self._magnitude = magnitude

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        """Fill `out` with elements [start, stop)."""
        for first, last in self._product.blocks(start, stop):
            begin, end = max(start, first), min(stop, last)
            inside = out[begin - start : end - start]
            block = inside if end - begin == last - first else torch.empty(last - first)
            self._under.read(first, last, block, scratch)
            self._product.add(first, block)
            rows = block.view(-1, self._product.columns)
            row = first // self._product.columns
            lengths = cast("Tensor", torch.linalg.vector_norm(rows, dim=1))
            rows.mul_(_factors(self._magnitude[row : row + len(rows)], lengths)[:, None])
            if block is not inside:
                inside.copy_(block[begin - first : end - first])


class ColumnDoraSource:
    """A tensor whose columns are scaled; for their lengths it is read once as a whole.

    Args:
        under: with the product added.
        product: its blocks.
        magnitude: the lengths that columns are brought to.
    """

    def __init__(self, under: TileSource, product: Product, magnitude: Float32[Tensor, " columns"]) -> None:
        self._under = under
        squares = torch.zeros(product.columns, dtype=torch.float64)
        scratch = Scratch()
        for first, last in product.blocks(0, product.numel):
            block = torch.empty(last - first)
            under.read(first, last, block, scratch)
            squares += block.view(-1, product.columns).square_().sum(0, dtype=torch.float64)
        self._factors = _factors(magnitude, squares.sqrt_().float())

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        """Fill `out` with elements [start, stop)."""
        self._under.read(start, stop, out, scratch)
        columns = len(self._factors)
        position = start
        while position < stop:
            column = position % columns
            count = min(columns - column, stop - position)
            if column == 0 and stop - position >= columns:
                count = (stop - position) // columns * columns
                out[position - start :][:count].view(-1, columns).mul_(self._factors)
            else:
                out[position - start :][:count].mul_(self._factors[column : column + count])
            position += count


def _factors(magnitude: Float32[Tensor, " n"], norms: Float32[Tensor, " n"]) -> Float32[Tensor, " n"]:
    """What brings vectors of these lengths to that magnitude; one without a direction stays 0."""
    return torch.where(norms > 0, magnitude / norms, 0.0)


class RowsSource:
    """A matrix with some rows replaced."""

    def __init__(
        self, under: TileSource, values: Float32[Tensor, "k columns"], indices: tuple[int, ...]
    ) -> None:
        self._under = under
        self._columns = values.shape[1]
        self._values = values.view(-1)
        # Of a row that is named twice, the last value counts.
        self._places = sorted({row: place for place, row in enumerate(indices)}.items())
        self._rows = [row for row, _ in self._places]

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        """Fill `out` with elements [start, stop)."""
        self._under.read(start, stop, out, scratch)
        if start == stop:
            return
        columns = self._columns
        from_, to = (bisect_left(self._rows, row) for row in (start // columns, -(-stop // columns)))
        for row, place in self._places[from_:to]:
            begin, end = max(start, row * columns), min(stop, (row + 1) * columns)
            shift = (place - row) * columns
            out[begin - start : end - start] = self._values[begin + shift : end + shift]


class ShiftSource:
    """A tensor with another one added."""

    def __init__(self, under: TileSource, by: Float32[Tensor, " n"]) -> None:
        self._under = under
        self._by = by

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        """Fill `out` with elements [start, stop)."""
        self._under.read(start, stop, out, scratch)
        out.add_(self._by[start:stop])
