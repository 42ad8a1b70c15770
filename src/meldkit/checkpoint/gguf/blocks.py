"""The number formats of GGUF files, and tensors that are read out of them tile by tile.

Rows are cut into blocks of equal numbers of elements, each block a few scales and small integers. The common
formats are decoded here, in the same order of operations as in the gguf package, so that both give the same
bits; the gguf package itself decodes the rare ones.
Source: https://github.com/ggml-org/llama.cpp (ggml-common.h, ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from meldkit.checkpoint.files import OpenFiles
from meldkit.checkpoint.tensor import Scratch, TensorInfo, TileSource
from meldkit.errors import FormatError
from meldkit.shapes import Float32, Tensor


@dataclass(frozen=True, slots=True)
class Kind:
    """A number format.

    Attributes:
        number: in the file.
        name: ggml's.
        block: elements of a block.
        nbytes: bytes of a block.
    """

    number: int
    name: str
    block: int
    nbytes: int


_TABLE = (
    Kind(0, "F32", 1, 4),
    Kind(1, "F16", 1, 2),
    Kind(2, "Q4_0", 32, 18),
    Kind(3, "Q4_1", 32, 20),
    Kind(6, "Q5_0", 32, 22),
    Kind(7, "Q5_1", 32, 24),
    Kind(8, "Q8_0", 32, 34),
    Kind(10, "Q2_K", 256, 84),
    Kind(11, "Q3_K", 256, 110),
    Kind(12, "Q4_K", 256, 144),
    Kind(13, "Q5_K", 256, 176),
    Kind(14, "Q6_K", 256, 210),
    Kind(16, "IQ2_XXS", 256, 66),
    Kind(17, "IQ2_XS", 256, 74),
    Kind(18, "IQ3_XXS", 256, 98),
    Kind(19, "IQ1_S", 256, 50),
    Kind(20, "IQ4_NL", 32, 18),
    Kind(21, "IQ3_S", 256, 110),
    Kind(22, "IQ2_S", 256, 82),
    Kind(23, "IQ4_XS", 256, 136),
    Kind(29, "IQ1_M", 256, 56),
    Kind(30, "BF16", 1, 2),
    Kind(34, "TQ1_0", 256, 54),
    Kind(35, "TQ2_0", 256, 66),
    Kind(39, "MXFP4", 32, 17),
    Kind(40, "NVFP4", 64, 36),
)
KINDS: dict[int, Kind] = {kind.number: kind for kind in _TABLE}
#: Formats of single numbers: torch's name.
_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
#: What llama.cpp does to values on top of reordering them; undone when they are read.
Change = Literal["as stored", "minus one", "log of negative"]


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Where rows of a matrix are stored, or its columns.

    Attributes:
        size: rows of a head.
        heads: for each head, which of the stored ones it is; () if they are in order.
        pairs: inside a head the first half of the rows is stored in the even places, the second in the odd.
            Not of columns.
    """

    size: int
    heads: tuple[int, ...] = ()
    pairs: bool = False


@dataclass(frozen=True, slots=True)
class Blocks:
    """A tensor of a GGUF file.

    Attributes:
        kind: of its numbers.
        width: elements of a row.
        rows: None if they are in order.
        columns: None if they are in order.
        change: what is still to be done with the numbers.
        files: none besides its own.
    """

    kind: Kind
    width: int
    rows: RowOrder | None = None
    columns: RowOrder | None = None
    change: Change = "as stored"
    files: Sequence[Path] = ()

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The tensor's values."""
        return _Tiles(files, info, self)


class _Tiles:
    """The numbers of a tensor that is stored in blocks."""

    def __init__(self, files: OpenFiles, info: TensorInfo, encoding: Blocks) -> None:
        self._files = files
        self._info = info
        self._kind = encoding.kind
        self._rows = encoding.rows
        self._columns = encoding.columns
        self._change = encoding.change
        self._width = encoding.width

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        """Fill `out` with elements [start, stop)."""
        # What is read at once: a block, or a row where something is out of order.
        unit = self._width if self._rows or self._columns else self._kind.block
        first, last = start // unit, -(-stop // unit)
        numel = (last - first) * unit
        raw = scratch.take(numel // self._kind.block * self._kind.nbytes)
        if self._rows:
            self._read_rows(self._rows, first, last, raw)
        else:
            self._read(first * unit // self._kind.block * self._kind.nbytes, raw)
        raw = raw.view(-1, self._kind.nbytes)
        if numel == stop - start and not self._columns:
            decode(self._kind, raw, out.view(-1, self._kind.block))
        else:
            whole = torch.empty(numel)
            decode(self._kind, raw, whole.view(-1, self._kind.block))
            if self._columns:
                heads = whole.view(last - first, -1, self._columns.size)
                whole = heads[:, list(self._columns.heads)].view(-1)
            out.copy_(whole[start - first * unit : stop - first * unit])
        if self._change == "minus one":
            out.sub_(1)
        elif self._change == "log of negative":
            out.neg_().log_()

    def _read(self, offset: int, raw: Tensor) -> None:
        self._files.read_into(self._info.file, self._info.offset + offset, raw.numpy().data)

    def _read_rows(self, order: RowOrder, first: int, last: int, raw: Tensor) -> None:
        """Fill `raw` with the bytes of rows [first, last)."""
        row = self._width // self._kind.block * self._kind.nbytes
        done = first
        while done < last:
            head, inside = divmod(done, order.size)
            until = min(last, (head + 1) * order.size)
            target = raw[(done - first) * row : (until - first) * row]
            stored = (order.heads[head] if order.heads else head) * order.size
            if order.pairs:
                whole = torch.empty(order.size * row, dtype=torch.uint8)
                self._read(stored * row, whole)
                halves = whole.view(-1, 2, row).transpose(0, 1).reshape(-1, row)
                target.view(-1, row).copy_(halves[inside : inside + until - done])
            else:
                self._read((stored + inside) * row, target)
            done = until


def decode(kind: Kind, raw: Tensor, out: Tensor) -> None:
    """Numbers out of blocks.

    Args:
        kind: of the numbers.
        raw: [blocks, bytes], uint8.
        out: [blocks, elements], float32; filled.
    """
    if kind.name in _PLAIN:
        out.copy_(raw.view(getattr(torch, _PLAIN[kind.name])))
    elif kind.name in _DECODERS:
        _DECODERS[kind.name](raw, out)
    else:
        _decode_rare(kind, raw, out)


def check_decodable(kind: Kind) -> None:
    """Check that the numbers can be read here.

    Raises:
        FormatError: the gguf package is needed and not there, or does not know them either.
    """
    if kind.name in _PLAIN or kind.name in _DECODERS:
        return
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as e:
        raise FormatError(
            f"numbers of type {kind.name} are decoded by the gguf package, which is not installed",
            hint="pip install 'meldkit[gguf]'",
        ) from e
    known = getattr(GGMLQuantizationType, kind.name, None)
    if known is None or GGML_QUANT_SIZES[known] != (kind.block, kind.nbytes):
        raise FormatError(
            f"numbers of type {kind.name} are not known to the gguf package that is installed",
            hint="pip install --upgrade gguf",
        )


def _decode_rare(kind: Kind, raw: Tensor, out: Tensor) -> None:
    from gguf import GGMLQuantizationType, dequantize

    with np.errstate(all="ignore"):  # scales may be infinite; what is not finite is reported by the engine
        values = dequantize(raw.numpy(), GGMLQuantizationType[kind.name])
    out.copy_(torch.from_numpy(values))


def _half(raw: Tensor, at: int) -> Tensor:
    """[blocks, 1]: the float16 at a byte of each block."""
    return raw[:, at : at + 2].contiguous().view(torch.float16).float()


def _fields(packed: Tensor, bits: int) -> Tensor:
    """[blocks, groups, 8 // bits, n]: bit fields of bytes [blocks, groups, n], lowest ones first."""
    blocks, groups, n = packed.shape
    packed = packed.contiguous()
    fields = torch.empty(blocks, groups, 8 // bits, n, dtype=torch.uint8)
    for i in range(8 // bits):  # shifting by a tensor is many times slower
        fields[:, :, i] = (packed >> (bits * i)).bitwise_and_((1 << bits) - 1)
    return fields


def _q4_0(raw: Tensor, out: Tensor) -> None:
    out.copy_(_fields(raw[:, None, 2:], 4).flatten(1))
    out.sub_(8).mul_(_half(raw, 0))


def _q4_1(raw: Tensor, out: Tensor) -> None:
    out.copy_(_fields(raw[:, None, 4:], 4).flatten(1))
    out.mul_(_half(raw, 0)).add_(_half(raw, 2))


@cache
def _fifth_bits() -> Tensor:
    """The bits of each byte, lowest first, as fifth bits of eight bytes in a row: int64 [256]."""
    bits = torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1
    return bits.mul_(16).to(torch.uint8).view(torch.int64).view(-1)


def _five_bits(raw: Tensor, at: int) -> Tensor:
    """[blocks, 32]: fifth bits in four bytes, then the other four bits in sixteen."""
    high = torch.index_select(_fifth_bits(), 0, raw[:, at : at + 4].int().view(-1))
    return _fields(raw[:, None, at + 4 :], 4).flatten(1).bitwise_or_(high.view(torch.uint8).view(-1, 32))


def _q5_0(raw: Tensor, out: Tensor) -> None:
    out.copy_(_five_bits(raw, 2))
    out.sub_(16).mul_(_half(raw, 0))


def _q5_1(raw: Tensor, out: Tensor) -> None:
    out.copy_(_five_bits(raw, 4))
    out.mul_(_half(raw, 0)).add_(_half(raw, 2))


def _q8_0(raw: Tensor, out: Tensor) -> None:
    out.copy_(raw[:, 2:].view(torch.int8))
    out.mul_(_half(raw, 0))


def _scaled(out: Tensor, values: Tensor, scales: Tensor, mins: Tensor | None = None) -> None:
    """Blocks whose groups have scales, and minima below them: scale · value - minimum."""
    groups = out.view(*scales.shape, -1)
    groups.copy_(values.view(groups.shape))
    groups.mul_(scales.unsqueeze(2))
    if mins is not None:
        groups.sub_(mins.unsqueeze(2))


def _q2_k(raw: Tensor, out: Tensor) -> None:
    scales = raw[:, :16]
    values = _fields(raw[:, 16:80].view(-1, 2, 32), 2)
    _scaled(out, values, _half(raw, 80) * (scales & 15), _half(raw, 82) * (scales >> 4))


def _q3_k(raw: Tensor, out: Tensor) -> None:
    low = _fields(raw[:, None, 96:104], 4).flatten(1)
    high = _fields(raw[:, None, 104:108], 2).flatten(1)
    scales = (low | (high << 4)).view(torch.int8) - 32
    values = _fields(raw[:, 32:96].view(-1, 2, 32), 2).flatten(1).view(torch.int8)
    # The third bit, where it is not set, takes four away.
    values.add_(_fields(raw[:, None, :32], 1).flatten(1).view(torch.int8) << 2).sub_(4)
    _scaled(out, values, _half(raw, 108) * scales)


def _six_bit_scales(raw: Tensor) -> tuple[Tensor, Tensor]:
    """[blocks, 8] each: the scales and minima of Q4_K and Q5_K, in bytes 4 to 16."""
    a, b, both = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = torch.cat([a & 63, (both & 15) | ((a >> 2) & 48)], 1)
    mins = torch.cat([b & 63, (both >> 4) | ((b >> 2) & 48)], 1)
    return _half(raw, 0) * scales, _half(raw, 2) * mins


def _q4_k(raw: Tensor, out: Tensor) -> None:
    _scaled(out, _fields(raw[:, 16:].view(-1, 4, 32), 4), *_six_bit_scales(raw))


def _q5_k(raw: Tensor, out: Tensor) -> None:
    values = _fields(raw[:, None, 16:48], 1).bitwise_left_shift_(4).flatten(1)
    values.bitwise_or_(_fields(raw[:, 48:].view(-1, 4, 32), 4).flatten(1))
    _scaled(out, values, *_six_bit_scales(raw))


def _q6_k(raw: Tensor, out: Tensor) -> None:
    values = _fields(raw[:, 128:192].view(-1, 2, 32), 2).bitwise_left_shift_(4).flatten(1)
    values.bitwise_or_(_fields(raw[:, :128].view(-1, 2, 64), 4).flatten(1))
    scales = raw[:, 192:208].view(torch.int8)
    _scaled(out, values.view(torch.int8).sub_(32), _half(raw, 208) * scales)


#: The values that the four bits of IQ4_NL and IQ4_XS stand for.
_UNEVEN = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
#: Twice the values of four-bit floats (E2M1), sign last. Source: OCP Microscaling Formats (MX) v1.0.
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _looked_up(table: tuple[int, ...], packed: Tensor, out: Tensor) -> None:
    """Fill `out` with the values that four bits stand for."""
    torch.index_select(
        torch.tensor(table, dtype=torch.float32), 0, _fields(packed, 4).flatten().int(), out=out.view(-1)
    )


def _iq4_nl(raw: Tensor, out: Tensor) -> None:
    _looked_up(_UNEVEN, raw[:, None, 2:], out)
    out.mul_(_half(raw, 0))


def _iq4_xs(raw: Tensor, out: Tensor) -> None:
    low = _fields(raw[:, 4:8].unsqueeze(2), 4).flatten(1)
    high = _fields(raw[:, 2:4].unsqueeze(2), 2).flatten(1)
    scales = (low | (high << 4)).view(torch.int8) - 32
    _looked_up(_UNEVEN, raw[:, 8:].view(-1, 8, 16), out)
    out.view(-1, 8, 32).mul_((_half(raw, 0) * scales).unsqueeze(2))


def _mxfp4(raw: Tensor, out: Tensor) -> None:
    exponents = raw[:, :1].to(torch.int32)
    # Half of two to the power of (exponent - 127); the two smallest are subnormal numbers.
    bits = torch.where(exponents < 2, 0x00200000 << exponents.clamp_max(1), (exponents - 1) << 23)
    _looked_up(_E2M1, raw[:, None, 1:], out)
    out.mul_(bits.view(torch.float32))


_DECODERS: dict[str, Callable[[Tensor, Tensor], None]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
