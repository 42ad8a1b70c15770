"""Numbers as they lie in files: read, combined and looked at by compiled loops, without PyTorch."""

from __future__ import annotations

import os

import numpy as np
import torch

from meldkit.kernels import library
from meldkit.kernels.library import address, fits, rooms
from meldkit.kernels.tile import TYPES
from meldkit.shapes import Float32, Tensor

#: Bytes of a number.
_SIZES = {"F32": 4, "BF16": 2, "F16": 2}


def knows(dtype: str | None) -> bool:
    """Whether compiled loops read and write numbers of a type (safetensors' name)."""
    functions = library.FUNCTIONS
    return functions is not None and dtype in TYPES and (dtype != "F16" or bool(functions.has_half()))


def cached(descriptor: int, offset: int, length: int) -> bool | None:
    """Whether bytes of a file are in the system's page cache; None without the compiled library."""
    if library.FUNCTIONS is None:
        return None
    return bool(library.FUNCTIONS.cached(descriptor, offset, length))


def read_bfloat16(descriptor: int, offset: int, out: Float32[Tensor, " n"]) -> int:
    """Read n bfloat16 numbers from a byte of a file on, as float32.

    Returns:
        How many bytes there were, fewer than 2 n at the end of the file.

    Raises:
        OSError: they cannot be read.
    """
    if library.FUNCTIONS is not None and fits(out):
        return _got(library.FUNCTIONS.read(descriptor, offset, TYPES["BF16"], len(out), out.data_ptr()))
    raw = rooms.take("raw", np.uint8, 2 * len(out))[: 2 * len(out)]
    done = _read_bytes(descriptor, offset, raw.data)
    out.copy_(torch.from_numpy(raw).view(torch.bfloat16))
    return done


def read_floats(descriptor: int, offset: int, dtype: str, out: np.ndarray) -> int:
    """Read n numbers from a byte of a file on, as float32; needs the compiled library.

    Args:
        descriptor, offset: of the file.
        dtype: how they are stored; one that `knows`.
        out: float32 `[n]`, without gaps.

    Returns:
        How many bytes there were, fewer than asked for at the end of the file.

    Raises:
        OSError: they cannot be read.
    """
    return _got(library.FUNCTIONS.read(descriptor, offset, TYPES[dtype], len(out), address(out)))


def _got(result: int) -> int:
    """What reading functions of the library return, which is an error's number if it is negative."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _read_bytes(descriptor: int, offset: int, room: memoryview) -> int:
    done = 0
    while done < len(room) and (got := os.preadv(descriptor, [room[done:]], offset + done)):
        done += got
    return done


def read_runs(descriptor: int, offsets: np.ndarray, out: Tensor) -> int:
    """Read runs of bytes of a file, one after the other into `out`.

    Args:
        descriptor: of the file.
        offsets: where each run begins, `[n]`.
        out: uint8 `[n, bytes of a run]`, without gaps.

    Returns:
        How many bytes there were, fewer than asked for where a run reaches past the end of the file.

    Raises:
        OSError: they cannot be read.
    """
    length = out.shape[1]
    if library.FUNCTIONS is not None:
        offsets = np.ascontiguousarray(offsets, np.int64)
        return _got(
            library.FUNCTIONS.read_runs(descriptor, address(offsets), len(offsets), length, out.data_ptr())
        )
    for i, (offset, room) in enumerate(zip(offsets.tolist(), out.numpy(), strict=True)):
        got = _read_bytes(descriptor, offset, room.data)
        if got < length:
            return i * length + got
    return out.numel()


def finite(dtype: str, raw: np.ndarray) -> bool:
    """Whether numbers of a type that `knows`, given as bytes, are all finite; needs the library."""
    return bool(library.FUNCTIONS.finite(TYPES[dtype], address(raw), raw.nbytes // _SIZES[dtype]))
