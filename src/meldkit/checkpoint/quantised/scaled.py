"""Tensors stored as small codes and, for each block of them, a scale.

    value = (code − zero) · scale                       zero only where the format has one

A tensor is a stack of matrices of rows × columns, its last two dimensions. A grid has one number for each
block of height × width elements of a matrix; at the far edges blocks may be smaller. Nothing is kept in
memory: each tile reads the part of the grid that lies over it.

Sources: OCP Microscaling Formats 1.0 (E2M1, E8M0); `transformers.integrations.mxfp4` (how GPT-OSS lays
out its experts); compressed-tensors, `compressors/pack_quantized` (how small integers are packed).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Lock

import torch

from meldkit.checkpoint.files import OpenFiles
from meldkit.checkpoint.tensor import Scratch, TensorInfo, TileSource, read_all
from meldkit.errors import CheckpointError
from meldkit.shapes import Float32, Tensor


@dataclass(frozen=True, slots=True)
class _Code:
    """How the bytes of codes become small numbers.

    Attributes:
        bits: of a code; of two in a byte the first is in the lower half.
        unpack: uint8 [n] to the codes in a type that holds them exactly; n is even if a byte holds two.
        unit: what one step of that type is worth; a power of two.
    """

    bits: int
    unpack: Callable[[Tensor], Tensor]
    unit: float = 1.0


def _nibbles(packed: Tensor) -> Tensor:
    """The halves of each byte, lower first: uint8 [n] to uint8 [2n] with values below 16."""
    wide = packed.to(torch.int16)
    return (wide << 4).bitwise_or_(wide).bitwise_and_(0x0F0F).view(torch.uint8)


def _e2m1(nibbles: Tensor) -> Tensor:
    """Twice the values of 4-bit floats: 0 ½ 1 1½ 2 3 4 6, and the highest bit is the sign; int8."""
    code = nibbles.view(torch.int8)
    size = code & 7
    # Steps of ½ up to 2, of 1 up to 4, of 2 beyond.
    doubled = (size - 4).clamp_min_(0).add_(size).add_((size - 6).clamp_min_(0).mul_(2))
    return doubled.mul_(1 - ((code & 8) >> 2))


@cache
def _four_e2m1() -> Tensor:
    """Twice the values of the four 4-bit floats that each pair of bytes holds, as four int8 in an int32."""
    return _e2m1(_nibbles(torch.arange(1 << 16).to(torch.uint16).view(torch.uint8))).view(torch.int32)


def _fours_of_e2m1(raw: Tensor) -> Tensor:
    return _four_e2m1().index_select(0, raw.view(torch.uint16).to(torch.int32)).view(torch.int8)


def _e4m3(raw: Tensor) -> Tensor:
    """8-bit floats of three bits of fraction, a 256th of their values; float16 if all are numbers.

    Moved to its places, the bits are those of a float16 whose exponent counts from another zero; torch's own
    conversion takes ten times as long.
    """
    signed = raw.view(torch.int8)
    if raw.numel() and int((signed & 0x7F).max()) == 0x7F:
        return raw.view(torch.float8_e4m3fn).to(torch.float32).div_(256)
    wide = signed.to(torch.int16)
    return wide.bitwise_left_shift_(7).bitwise_and_(~0x4000).view(torch.float16)


def _e5m2(raw: Tensor) -> Tensor:
    """8-bit floats of two bits of fraction, which are the higher halves of float16."""
    return raw.to(torch.int16).bitwise_left_shift_(8).view(torch.float16)


#: Changes its first argument by its second, which is broadcast.
_Operation = Callable[[Tensor, Tensor], Tensor]

_CODES = {
    "F8_E4M3": _Code(8, _e4m3, 256),
    "F8_E5M2": _Code(8, _e5m2),
    "I8": _Code(8, lambda raw: raw.view(torch.int8)),
    # Two's complement with the highest bit turned over.
    "I8+128": _Code(8, lambda raw: (raw ^ 0x80).view(torch.int8)),
    "I4+8": _Code(4, lambda raw: _nibbles(raw).sub_(8).view(torch.int8)),
    "E2M1": _Code(4, _fours_of_e2m1, 0.5),
}


@cache
def _e8m0() -> Tensor:
    """Values of E8M0, a power of two: the byte is the exponent of a float32, and 255 is no number."""
    values = (torch.arange(256, dtype=torch.int32) << 23).view(torch.float32)
    values[0], values[255] = 2.0**-127, math.nan
    return values


@dataclass(frozen=True, slots=True)
class Grid:
    """A number for each block of a tensor.

    Attributes:
        numbers: where they are stored, row after row, matrix after matrix.
        rows, columns: blocks of one matrix below and beside each other.
        block: height and width of a block in elements.
        per_matrix: whether each matrix of the stack has blocks of its own; else one grid serves all.
    """

    numbers: TensorInfo
    rows: int
    columns: int
    block: tuple[int, int]
    per_matrix: bool


@dataclass(frozen=True, slots=True)
class Scaled:
    """Codes and their scales.

    Attributes:
        codes: their format, a key of `_CODES`.
        scale: factors.
        zero: codes that stand for 0; None if 0 does.
        inverse: whether the scales are divisors.
        stated_shape: tensor that tells the shape; it is compared with what the headers imply.
    """

    codes: str
    scale: Grid
    zero: Grid | None = None
    inverse: bool = False
    stated_shape: TensorInfo | None = None

    @property
    def files(self) -> Sequence[Path]:
        """Files of everything but the codes."""
        infos = [grid.numbers for grid in (self.scale, self.zero) if grid is not None]
        infos += [self.stated_shape] if self.stated_shape is not None else []
        return [path for info in infos for path in info.files]

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The values.

        Raises:
            CheckpointError: the file states another shape.
        """
        if self.stated_shape is not None:
            stated = [int(n) for n in read_all(files, self.stated_shape)]
            if stated != list(info.shape):
                raise CheckpointError(
                    f"{info.file}: '{self.stated_shape.name}' says {stated}, "
                    f"the packed weight and its scales imply {list(info.shape)}",
                    hint="download the file again, or merge the original, unquantised weights",
                )
        return _ScaledTensor(files, info, self)


class _ScaledTensor:
    def __init__(self, files: OpenFiles, info: TensorInfo, encoding: Scaled) -> None:
        self._files = files
        self._info = info
        self._code = _CODES[encoding.codes]
        # Units are powers of two, so that nothing is rounded by counting in them.
        unit = self._code.unit
        self._steps: list[tuple[_GridOver, _Operation]] = []
        if encoding.zero is not None:
            self._steps.append((_GridOver(files, info, encoding.zero, 1 / unit), torch.Tensor.sub_))
        if encoding.inverse:
            self._steps.append((_GridOver(files, info, encoding.scale, 1 / unit), torch.Tensor.div_))
        else:
            self._steps.append((_GridOver(files, info, encoding.scale, unit), torch.Tensor.mul_))

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        if start == stop:
            return
        bits = self._code.bits
        # Whole bytes, and pairs of them where a code is smaller.
        together = 1 if bits == 8 else 16 // bits
        first, last = start // together * together, -(-stop // together) * together
        raw = scratch.take((last - first) * bits // 8)
        self._files.read_into(self._info.file, self._info.offset + first * bits // 8, raw.numpy().data)
        out.copy_(self._code.unpack(raw)[start - first : stop - first])
        for grid, operation in self._steps:
            grid.apply(operation, start, out)


class _GridOver:
    """A grid laid over the elements of a flattened tensor; its numbers are multiplied by `unit`."""

    def __init__(self, files: OpenFiles, info: TensorInfo, grid: Grid, unit: float = 1.0) -> None:
        self._source = grid.numbers.open(files)
        self._grid = grid
        self._unit = unit
        self._rows, self._columns = (1, 1, *info.shape)[-2:]

    def apply(self, operation: _Operation, start: int, values: Float32[Tensor, " n"]) -> None:
        """Work on each element from `start` on with the number of its block."""
        columns = self._columns
        n = values.numel()
        numbers = self._numbers(start // columns, -(-(start + n) // columns))
        # The end of a row, whole rows, the start of a row; each may be empty.
        head = min(-start % columns, n)
        body = (n - head) // columns * columns
        if head:
            self._along(operation, values[:head], numbers[0], start % columns)
        if body:
            first = 1 if head else 0
            whole = values[head : head + body].view(-1, columns)
            self._across(operation, whole, numbers[first : first + whole.shape[0]])
        if head + body < n:
            self._along(operation, values[head + body :], numbers[-1], 0)

    def _numbers(self, first: int, stop: int) -> Float32[Tensor, "rows c"]:
        """Rows of the grid for rows [first, stop), which are counted through all matrices."""
        grid = self._grid
        row = torch.arange(first, stop)
        index = row % self._rows // grid.block[0]
        if grid.per_matrix:
            index += row // self._rows * grid.rows
        low, high = (int(i) for i in torch.aminmax(index))
        numbers = torch.empty(high + 1 - low, grid.columns)
        self._source.read(low * grid.columns, (high + 1) * grid.columns, numbers.view(-1), Scratch())
        if self._unit != 1:
            numbers *= self._unit
        return numbers.expand(stop - first, -1) if low == high else numbers[index - low]

    def _across(
        self,
        operation: _Operation,
        values: Float32[Tensor, "rows columns"],
        numbers: Float32[Tensor, "rows c"],
    ) -> None:
        width = self._grid.block[1]
        full = self._columns // width
        if full:
            by_block = values[:, : full * width].view(-1, full, width)
            operation(by_block, numbers[:, :full, None])
        if full * width < self._columns:
            operation(values[:, full * width :], numbers[:, full:])

    def _along(
        self,
        operation: _Operation,
        values: Float32[Tensor, " n"],
        numbers: Float32[Tensor, " c"],
        column: int,
    ) -> None:
        """A part of one row that begins at a column."""
        width = self._grid.block[1]
        first, last = column // width, (column + values.numel() - 1) // width
        if first == last:
            operation(values, numbers[first])
            return
        spread = numbers[first : last + 1].repeat_interleave(width)
        operation(values, spread[column - first * width :][: values.numel()])


@dataclass(frozen=True, slots=True)
class PowersOfTwo:
    """Scales stored as their exponents, one byte each (E8M0)."""

    files: Sequence[Path] = ()

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The scales."""
        return _PowersOfTwo(files, info)


class _PowersOfTwo:
    def __init__(self, files: OpenFiles, info: TensorInfo) -> None:
        self._files = files
        self._info = info

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        raw = scratch.take(stop - start)
        self._files.read_into(self._info.file, self._info.offset + start, raw.numpy().data)
        torch.index_select(_e8m0(), 0, raw.to(torch.int32), out=out)


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Small integers [rows, columns], those of a column packed into int32 [⌈rows · bits / 32⌉, columns].

    Attributes:
        codes: "I4+8" or "I8+128".
    """

    codes: str
    files: Sequence[Path] = ()

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The integers."""
        return _PackedRows(files, info, _CODES[self.codes])


class _PackedRows:
    def __init__(self, files: OpenFiles, info: TensorInfo, code: _Code) -> None:
        self._files = files
        self._info = info
        self._code = code

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        columns = self._info.shape[1]
        per_word = 32 // self._code.bits
        first, last = start // columns // per_word, -(-stop // columns // per_word)
        raw = scratch.take((last - first) * columns * 4)
        self._files.read_into(self._info.file, self._info.offset + first * columns * 4, raw.numpy().data)
        # [words, columns, integers of a word] to [words, integers of a word, columns]
        values = self._code.unpack(raw).view(last - first, columns, per_word).transpose(1, 2).reshape(-1)
        skip = start - first * per_word * columns
        out.copy_(values[skip : skip + stop - start])


@dataclass(frozen=True, slots=True)
class TransposedFp4:
    """4-bit floats [matrices, columns, rows / 2 bytes] of a tensor [matrices, rows, columns].

    Attributes:
        scale: E8M0 [matrices, columns, groups], each for `rows / groups` of a column's elements.
    """

    scale: TensorInfo

    @property
    def files(self) -> Sequence[Path]:
        """The file of the scales."""
        return self.scale.files

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The values."""
        return _TransposedFp4Tensor(files, info, self.scale)


class _TransposedFp4Tensor:
    """A tile needs a little of each column as it is stored, so matrices are read whole, in their packed form.

    The latest two are kept: the tiles of a matrix come close after each other, in any thread.
    """

    def __init__(self, files: OpenFiles, info: TensorInfo, scale: TensorInfo) -> None:
        self._files = files
        self._info = info
        self._scale = replace(scale, encoding=PowersOfTwo()).open(files)
        self._group = info.shape[1] // scale.shape[2]
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._lock = Lock()

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        del scratch
        _, rows, columns = self._info.shape
        size = rows * columns
        for matrix in range(start // size, -(-stop // size)) if start < stop else ():
            begin, end = max(start - matrix * size, 0), min(stop - matrix * size, size)
            codes, scales = self._matrix(matrix)
            # Each byte holds two elements that lie below each other.
            first, last = begin // columns // 2, -(-end // columns // 2)
            packed = codes[first:last]
            values = torch.empty(last - first, 2, columns)
            values[:, 0] = _e2m1(packed & 15)
            values[:, 1] = _e2m1(packed >> 4)
            values = values.view(-1, columns)
            for group in range(2 * first // self._group, -(-2 * last // self._group)):
                top = group * self._group - 2 * first
                values[max(top, 0) : top + self._group] *= scales[group]
            skip = begin - 2 * first * columns
            part = out[begin + matrix * size - start :][: end - begin]
            part.copy_(values.view(-1)[skip : skip + end - begin])

    def _matrix(self, matrix: int) -> tuple[Tensor, Float32[Tensor, "groups columns"]]:
        """A matrix's codes, uint8 [rows / 2, columns], and its scales for twice the value of the codes."""
        with self._lock:
            if matrix not in self._kept:
                _, rows, columns = self._info.shape
                raw = torch.empty(columns, rows // 2, dtype=torch.uint8)
                self._files.read_into(
                    self._info.file, self._info.offset + matrix * raw.numel(), raw.view(-1).numpy().data
                )
                scales = torch.empty(columns, rows // self._group)
                n = scales.numel()
                self._scale.read(matrix * n, (matrix + 1) * n, scales.view(-1), Scratch())
                while len(self._kept) > 1:
                    del self._kept[next(iter(self._kept))]
                self._kept[matrix] = raw.t().contiguous(), (scales.t() * 0.5).contiguous()
            return self._kept[matrix]
