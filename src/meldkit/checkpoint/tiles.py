"""Reading a tensor tile by tile as float32, whatever it is stored as."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from meldkit.checkpoint.dtypes import DTYPES
from meldkit.checkpoint.files import OpenFiles
from meldkit.checkpoint.safetensors import TensorInfo
from meldkit.shapes import Float32


class Scratch:
    """A byte buffer that one worker reuses for everything it reads; it grows to the largest need."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def take(self, nbytes: int) -> Tensor:
        """The first `nbytes` of the buffer, uint8; valid until the next `take`."""
        if self._buffer.numel() < nbytes:
            self._buffer = torch.empty(nbytes, dtype=torch.uint8)
        return self._buffer[:nbytes]


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
        self._dtype: torch.dtype = getattr(torch, DTYPES[info.dtype].torch)
        self._itemsize = DTYPES[info.dtype].itemsize

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        if self._dtype is torch.float32:
            self.read_bytes(start, out.view(torch.uint8).numpy().data)
            return
        raw = scratch.take((stop - start) * self._itemsize)
        self.read_bytes(start, raw.numpy().data)
        out.copy_(raw.view(self._dtype))

    def read_bytes(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the stored bytes from element `start` on."""
        offset = self._info.offset + start * self._itemsize
        self._files.read_into(self._info.file, offset, buffer)

    def read_all(self) -> Tensor:
        """The whole tensor as float32, in its shape; for small ones."""
        out = torch.empty(self._info.numel, dtype=torch.float32)
        self.read(0, self._info.numel, out, Scratch())
        return out.view(self._info.shape)
