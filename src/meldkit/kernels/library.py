"""The compiled library, if there is one for this machine."""

from __future__ import annotations

import ctypes
import platform
from ctypes import POINTER, c_double, c_float, c_int, c_long, c_void_p
from pathlib import Path
from threading import local
from types import SimpleNamespace
from typing import Any

import numpy as np

from meldkit.shapes import Tensor

#: Bytes of a cache line: vectors that lie across two take twice as long to load.
_LINE = 64

#: Where the build puts it; see hatch_build.py.
PATH = Path(__file__).with_name("kernels.so")

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "level": (c_int, []),
    "has_half": (c_int, []),
    "cached": (c_int, [c_int, c_long, c_long]),
    "read": (c_long, [c_int, c_long, c_int, c_long, c_void_p]),
    "finite": (c_int, [c_int, c_void_p, c_long]),
    "tile": (c_int, [c_void_p]),
    "read_runs": (c_long, [c_int, c_void_p, c_long, c_long, c_void_p]),
    "draw": (None, [c_void_p, c_long, c_long, c_void_p]),
    "draw_at_most": (None, [c_void_p, c_long, c_long, c_int, c_void_p]),
    "draw_below": (None, [c_void_p, c_long, c_long, c_void_p, c_void_p]),
    "draw_by_rank": (
        None,
        [c_void_p, c_long, c_long, c_void_p, c_void_p, c_long, c_void_p, c_void_p],
    ),
    "has_divergences": (c_int, []),
    "divergences": (None, [c_void_p, c_void_p, c_long, c_long, c_void_p, c_void_p]),
    "by_rank": (None, [c_void_p, c_long, c_long, c_void_p, c_void_p, c_void_p]),
    "differences": (
        None,
        [c_void_p, c_long, c_long, c_long, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p],
    ),
    "word_sums": (None, [c_void_p, c_long, c_void_p]),
    "pursue": (
        c_long,
        [c_void_p, c_long, c_void_p, c_long, c_double, c_void_p, c_void_p, c_void_p],
    ),
    "conflicts": (None, [c_void_p, c_long, c_long, c_long, POINTER(c_float), c_void_p, c_void_p]),
}


def load() -> Any:
    """The library's functions, under their names without the prefix; None if it is not there or not fit."""
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError:
        return None
    functions = SimpleNamespace()
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, f"meldkit_{name}", None)
        if function is None:
            return None  # built from an older source
        function.restype, function.argtypes = result, arguments
        setattr(functions, name, function)
    return functions


def fits(x: Tensor) -> bool:
    """Whether the library can work on a tensor: in main memory, its last dimension without gaps."""
    return x.device.type == "cpu" and (x.shape[-1] < 2 or x.stride(-1) == 1)


def address(array: np.ndarray) -> int:
    """Where an array's numbers begin; they lie one after the other."""
    return array.ctypes.data


#: The library's functions; None where there are none.
FUNCTIONS: Any = load()


def compiled() -> bool:
    """Whether there is a compiled library."""
    return FUNCTIONS is not None


def processor() -> str:
    """The machine, and of x86-64 the level of the instructions that the loops use."""
    machine = platform.machine()
    level = 0 if FUNCTIONS is None else FUNCTIONS.level()
    return f"{machine}-v{level}" if level else machine


class _Rooms(local):
    """A thread's room for intermediate results: fresh room would cost more in page faults than the work."""

    def __init__(self) -> None:
        self._rooms: dict[str, np.ndarray] = {}

    def take(self, name: str, dtype: type[np.generic], size: int) -> np.ndarray:
        """Room of at least `size` numbers, of the name's own, from the beginning of a cache line on."""
        room = self._rooms.get(name)
        if room is None or len(room) < size:
            itemsize = np.dtype(dtype).itemsize
            raw = np.empty(size * itemsize + _LINE, np.uint8)
            skip = -address(raw) % _LINE
            room = self._rooms[name] = raw[skip : skip + size * itemsize].view(dtype)
        return room


rooms = _Rooms()
