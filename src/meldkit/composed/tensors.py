"""Tensors that stand in no file: values in memory, and others changed as they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from meldkit.checkpoint import DTYPES, HeldTensor, OpenFiles, Scratch, TensorInfo, TileSource
from meldkit.checkpoint.gguf.joined import Constant
from meldkit.shapes import Float32, Tensor

#: Elements of which random numbers are drawn at once.
_DRAWN = 1 << 16


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor whose values are in memory.

    Attributes:
        values: float32, in the tensor's shape.
        digest: of them.
    """

    values: np.ndarray = field(compare=False, repr=False)
    digest: str

    @property
    def files(self) -> Sequence[Path]:
        return ()

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The tensor's values."""
        del files, info
        return HeldTensor(torch.from_numpy(self.values))


def held(name: str, values: np.ndarray, dtype: str, beside: Path) -> TensorInfo:
    """A tensor of values in memory.

    Args:
        name: of the tensor.
        values: float32, in its shape.
        dtype: that it is written in, safetensors spelling.
        beside: a file of the model.
    """
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    nbytes = values.size * DTYPES[dtype].itemsize
    return TensorInfo(name, dtype, values.shape, beside, 0, nbytes, Held(values, digest))


def zeros(name: str, shape: tuple[int, ...], beside: Path) -> TensorInfo:
    """A tensor of nothing but 0.

    Args:
        name, shape: of the tensor.
        beside: a file of the model.
    """
    return TensorInfo(name, "F32", shape, beside, 0, 0, Constant(0.0))


@dataclass(frozen=True, slots=True)
class Altered:
    """A tensor with (x + noise N(0, 1)) · scale + shift in place of each x.

    Attributes:
        tensor: the x.
        noise, scale, shift: as above.
        key: of the random numbers, with which others are drawn.
    """

    tensor: TensorInfo
    noise: float = 0.0
    scale: float = 1.0
    shift: float = 0.0
    key: str = ""

    @property
    def files(self) -> Sequence[Path]:
        return self.tensor.files

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The tensor's values."""
        del info
        return _AlteredTensor(self, self.tensor.open(files))


def altered(info: TensorInfo, changes: Altered) -> TensorInfo:
    """The tensor with changes; itself if there are none."""
    if not changes.noise and changes.scale == 1 and not changes.shift:
        return info
    return replace(info, encoding=replace(changes, tensor=info))


def cast_to(dtype: str, info: TensorInfo) -> TensorInfo:
    """The tensor with another type (safetensors spelling); its values are rounded when they are written."""
    return info if info.dtype == dtype else replace(info, dtype=dtype, encoding=Altered(info))


class _AlteredTensor:
    def __init__(self, changes: Altered, under: TileSource) -> None:
        self._changes = changes
        self._under = under

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        """Fill `out` with elements [start, stop)."""
        self._under.read(start, stop, out, scratch)
        if self._changes.noise:
            out.add_(torch.from_numpy(normal(self._changes.key, start, stop)), alpha=self._changes.noise)
        if self._changes.scale != 1:
            out.mul_(self._changes.scale)
        if self._changes.shift:
            out.add_(self._changes.shift)


def normal(key: str, start: int, stop: int) -> np.ndarray:
    """Numbers [start, stop) of an endless row from N(0, 1) that the key decides: float32."""
    digest = hashlib.sha256(key.encode()).digest()
    first, last = start // _DRAWN, -(-stop // _DRAWN)
    seed = np.frombuffer(digest[:16], "<u8").astype(np.uint64)
    parts = [
        # Far apart: no block takes as many numbers as lie between their counters.
        np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, block, 0])).standard_normal(
            _DRAWN, dtype=np.float32
        )
        for block in range(first, last)
    ]
    return np.concatenate(parts)[start - first * _DRAWN : stop - first * _DRAWN]
