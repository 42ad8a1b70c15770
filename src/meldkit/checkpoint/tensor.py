"""One tensor of a checkpoint: what it is, how it is stored, and how its values are read tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from meldkit.checkpoint.dtypes import DTYPES
from meldkit.checkpoint.files import OpenFiles
from meldkit.shapes import Float32, Tensor


class Encoding(Protocol):
    """How a tensor is stored that is not just its elements one after the other, such as a quantised one.

    Immutable; equal encodings of equal bytes give equal values.
    """

    @property
    def files(self) -> Sequence[Path]:
        """Files that are read besides the tensor's own."""
        ...

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The tensor's values; the source is read from many threads at once."""
        ...


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What one tensor is and where it lies.

    Attributes:
        name: name inside the checkpoint.
        dtype: of its values, safetensors spelling, e.g. "BF16".
        shape: sizes, outermost first; () for a scalar.
        file: file that holds the bytes.
        offset: first byte, from the start of the file.
        nbytes: length of what is stored in bytes.
        encoding: how its values follow from the bytes; None if they are an array of `dtype`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    encoding: Encoding | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def floating(self) -> bool:
        """Whether the elements are real numbers (as opposed to integers or booleans)."""
        return DTYPES[self.dtype].floating

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read for its values."""
        return (self.file, *(self.encoding.files if self.encoding else ()))

    def open(self, files: OpenFiles) -> TileSource:
        """The tensor's values."""
        return self.encoding.open(files, self) if self.encoding else StoredTensor(files, self)


@dataclass(frozen=True, slots=True)
class Header:
    """What a weight file holds.

    Attributes:
        tensors: in the order of their bytes.
        metadata: whatever else it says.
        digest: hex hash of all this.
        config: what config.json would say, if the file tells that too.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    digest: str
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Scratch:
    """A byte buffer that one worker reuses for everything it reads; it grows to the largest need.

    It begins at a multiple of `ALIGNMENT` bytes.

    Args:
        allocate: from a number of bytes to room for them, uint8.
    """

    ALIGNMENT = 64

    def __init__(self, allocate: Callable[[int], np.ndarray] | None = None) -> None:
        self._allocate = allocate
        # Of something: of nothing, numpy's arrays have steps that torch refuses.
        self._buffer = np.empty(1, np.uint8)[:0]

    def array(self, nbytes: int) -> np.ndarray:
        """The first `nbytes` of the buffer, uint8; valid until more is asked for."""
        if len(self._buffer) < nbytes:
            size = nbytes + self.ALIGNMENT
            room = self._allocate(size) if self._allocate else np.empty(size, np.uint8)
            self._buffer = room[-room.ctypes.data % self.ALIGNMENT :][:nbytes]
        return self._buffer[:nbytes]

    def take(self, nbytes: int) -> Tensor:
        """The same as a tensor."""
        return torch.from_numpy(self.array(nbytes))


class TileSource(Protocol):
    """The elements of one tensor, flattened."""

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        """Fill `out` with elements [start, stop) as float32."""
        ...


class StoredTensor:
    """Elements as they lie in a file."""

    def __init__(self, files: OpenFiles, info: TensorInfo) -> None:
        self._files = files
        self._info = info
        self._itemsize = DTYPES[info.dtype].itemsize

    @property
    def dtype(self) -> str:
        """How the elements are stored, in safetensors' spelling."""
        return self._info.dtype

    @property
    def _torch_dtype(self) -> torch.dtype:
        return getattr(torch, DTYPES[self.dtype].torch)

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        if self.dtype == "F32":
            self.read_bytes(start, out.view(torch.uint8).numpy().data)
            return
        if self.dtype == "BF16":
            self._files.read_bfloat16(self._info.file, self._info.offset + start * self._itemsize, out)
            return
        raw = scratch.take((stop - start) * self._itemsize)
        self.read_bytes(start, raw.numpy().data)
        out.copy_(raw.view(self._torch_dtype))

    def place(self, start: int) -> tuple[int, int]:
        """Where element `start` lies: a descriptor, and the byte in its file."""
        return self._files.descriptor(self._info.file), self._info.offset + start * self._itemsize

    def will_read(self, start: int, stop: int) -> None:
        """Somebody who goes through the tensor is about to read elements [start, stop)."""
        self._files.ahead(self._info.file).read(self.place(start)[1], (stop - start) * self._itemsize)

    def let_go(self, start: int, stop: int) -> None:
        """Nobody will read elements [start, stop) again."""
        self._files.ahead(self._info.file).let_go(self.place(start)[1], (stop - start) * self._itemsize)

    def was_read(self, start: int, n: int) -> None:
        """Somebody has read n elements from their place."""
        nbytes = n * self._itemsize
        self._files.account(self._info.file, self._info.offset + start * self._itemsize, nbytes, nbytes)

    def read_floats(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, float32 `[n]`, from element `start` on; of the types that compiled kernels know."""
        offset = self._info.offset + start * self._itemsize
        self._files.read_floats(self._info.file, offset, self.dtype, out)

    def read_rows(self, rows: np.ndarray, out: Float32[Tensor, "rows columns"], scratch: Scratch) -> None:
        """Fill `out` with rows of a matrix, as float32; `rows` says which, int64."""
        length = out.shape[1] * self._itemsize
        exact = self.dtype == "F32"
        raw = (out.view(torch.uint8) if exact else scratch.take(len(out) * length)).view(-1, length)
        self._files.read_runs(self._info.file, self._info.offset + rows * length, raw)
        if not exact:
            out.copy_(raw.view(self._torch_dtype))

    def read_bytes(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the stored bytes from element `start` on.

        Args:
            start: the first element.
            buffer: room for bytes.
        """
        self._files.read_into(self._info.file, self._info.offset + start * self._itemsize, buffer)


class HeldTensor:
    """A tensor in memory."""

    def __init__(self, values: Tensor) -> None:
        self._flat = values.detach().reshape(-1)

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        """Fill `out` with elements [start, stop)."""
        del scratch
        out.copy_(self._flat[start:stop])


class HeldBytes(HeldTensor):
    """A tensor in memory as it is stored, whose bytes can be copied.

    Args:
        values: the tensor.
        dtype: of it, safetensors spelling.
    """

    def __init__(self, values: Tensor, dtype: str) -> None:
        # Bytes can be looked at where elements lie one after the other.
        super().__init__(values.contiguous())
        self.dtype = dtype

    def read_bytes(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from element `start` on."""
        first = start * self._flat.element_size()
        np.asarray(buffer)[:] = self._flat.view(torch.uint8).numpy()[first : first + len(buffer)]


def read_all(files: OpenFiles, info: TensorInfo) -> Tensor:
    """A whole tensor as float32, in its shape; for small ones."""
    out = torch.empty(info.numel, dtype=torch.float32)
    info.open(files).read(0, info.numel, out, Scratch())
    return out.view(info.shape)
