"""Tiles whose numbers are not there yet.

What methods do with such a tile is written down, and carried out by one call of the compiled library: block
by block, from the bytes of files to what is measured or to the bytes of the output. So a number is read from
main memory once, whatever is done with it, and PyTorch is not needed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import c_float, c_int, c_long, c_void_p
from typing import Any

import numpy as np

from meldkit.kernels import library
from meldkit.kernels.library import address, rooms

#: What the library calls the types of numbers that it reads and writes, by their names in safetensors.
TYPES = {"F32": 0, "BF16": 1, "F16": 2}
#: Numbers of a block, of lanes and of what is read at once in the library.
BLOCK, LANES, PIECE = 1024, 16, 16 * 1024
#: Numbers of a source that are mapped at once, and count as memory of the process meanwhile.
WINDOW = 32 * PIECE
#: Numbers of the widest vector.
VECTOR = 16
#: Numbers from one register to the next, and from one piece.
STRIDE, PIECE_STRIDE = BLOCK + 32, PIECE + 32
#: In the order of tiles.c.
_OPERATIONS = (
    *(
        "combine",
        "elect",
        "zero_below",
        "zero_above",
        "clamp",
        "keep_bits",
        "variance",
        "changed",
        "average",
        "divide",
    ),
    *("importance", "take", "store", "at_least", "count", "alone", "norm", "gram"),
)
_CODES = {name: code for code, name in enumerate(_OPERATIONS)}


class Failed(Exception):
    """A number is not finite, or cannot be read; going another way says which."""


class Source(ctypes.Structure):
    """Where the numbers of a row are: in memory, or from an offset of a file on."""

    _fields_ = (
        ("memory", c_void_p),
        ("offset", c_long),
        ("file", c_int),
        ("type", c_int),
        ("first", c_long),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("operation", c_int),
        ("row", c_int),
        ("other", c_int),
        ("a", c_float),
        ("b", c_float),
        ("in_", c_void_p),
        ("out", c_void_p),
        ("room", c_void_p),
        ("found", c_long),
    )


class _Tile(ctypes.Structure):
    _fields_ = (
        ("sources", c_void_p),
        ("steps", c_void_p),
        ("registers", c_void_p),
        ("pieces", c_void_p),
        ("out", c_void_p),
        ("grains", c_void_p),
        ("divergences", c_void_p),
        ("room", c_void_p),
        ("num_models", c_long),
        ("num_steps", c_long),
        ("n", c_long),
        ("grain", c_long),
        ("grain_room", c_long),
        ("has_base", c_int),
        ("check", c_int),
        ("result", c_int),
        ("type", c_int),
        ("failed", c_int),
        ("got", c_long),
    )


def in_file(descriptor: int, offset: int, dtype: str) -> Source:
    """Numbers of a type that lie in a file from a byte on."""
    return Source(None, offset, descriptor, TYPES[dtype])


def in_memory(array: np.ndarray, dtype: str) -> Source:
    """Numbers of a type, given as an array that must live as long as the source is used."""
    return Source(address(array), 0, -1, TYPES[dtype])


def _whole_lanes(n: int) -> int:
    return -(-n // LANES) * LANES


class Row:
    """A row of a tile that is not there yet.

    Attributes:
        tile: it belongs to.
        register: its number among the tile's rows.
    """

    __slots__ = ("register", "tile")

    def __init__(self, tile: Tile, register: int) -> None:
        self.tile = tile
        self.register = register

    def __len__(self) -> int:
        return self.tile.shape[1]


class Tile:
    """Rows of numbers that are not there yet, of one model each.

    Args:
        sources: where they are, those of a base before them.
        n: numbers of a row.
        grain: numbers over which sums are formed, and of a row of the tensor where that matters.
        has_base: whether the first source is a base, which is taken from the others.
        check: whether numbers that are not finite are refused.
        keep: what the sources need to stay alive.

    Attributes:
        shape: (m, n).
    """

    def __init__(
        self,
        sources: Sequence[Source],
        n: int,
        *,
        grain: int,
        has_base: bool = False,
        check: bool = False,
        keep: object = None,
    ) -> None:
        self.shape = (len(sources) - has_base, n)
        self.grain = grain
        self._sources = (Source * len(sources))(*sources)
        self._has_base = has_base
        self._check = check
        self._num_registers = self.shape[0]
        self._steps: list[_Step] = []
        self._alive: list[Any] = [keep]
        self._divergences: np.ndarray | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Row]:
        return (Row(self, i) for i in range(len(self)))

    def __getitem__(self, index: int) -> Row:
        return Row(self, range(len(self))[index])

    def row(self) -> Row:
        """One more, without numbers yet."""
        self._num_registers += 1
        return Row(self, self._num_registers - 1)

    def step(
        self,
        operation: str,
        row: int = 0,
        other: int = 0,
        a: float = 0,
        b: float = 0,
        *,
        given: np.ndarray | None = None,
        out: np.ndarray | None = None,
        room: np.ndarray | None = None,
    ) -> None:
        """Write down what is done next; see tiles.c for what the arguments mean to each operation."""
        places = [None if array is None else address(array) for array in (given, out, room)]
        self._steps.append(_Step(_CODES[operation], row, other, a, b, *places))
        self._alive += [given, out, room]

    def divergences(self) -> np.ndarray:
        """KL(softmax(second) ‖ softmax(first)) of each grain of two models, which steps may use: float32.

        See `meldkit.kernels.divergences`; they are there once the tile has been run.
        """
        self._divergences = np.full(-(-self.shape[1] // self.grain), np.nan, np.float32)
        return self._divergences

    def run(self, result: Row | None = None, dtype: str = "F32", out: np.ndarray | None = None) -> list[int]:
        """Carry out what is written down.

        Args:
            result: the row whose numbers are wanted, to which the base is added if there is one.
            dtype: to which they are rounded.
            out: room for their bytes.

        Returns:
            How many numbers each step found. What was measured is forgotten, as it is not measured again.

        Raises:
            Failed: a number is not finite, or cannot be read.
        """
        num_sources, num_steps = len(self._sources), len(self._steps)
        steps = (_Step * num_steps)(*self._steps)
        registers = rooms.take("registers", np.float32, (self._num_registers + 1) * STRIDE)
        pieces = rooms.take("pieces", np.float32, num_sources * PIECE_STRIDE)
        of_grains: list[int | None] = [None, None, None]
        width = _whole_lanes(self.grain)
        if self._divergences is not None:
            grains = rooms.take("grains", np.float32, num_sources * width)
            room = rooms.take("doubles", np.float64, 2 * width)
            of_grains = [address(array) for array in (grains, self._divergences, room)]
        tile = _Tile(
            ctypes.addressof(self._sources),
            ctypes.addressof(steps),
            address(registers),
            address(pieces),
            None if out is None else address(out),
            *of_grains,
            len(self),
            num_steps,
            self.shape[1],
            self.grain,
            width,
            self._has_base,
            self._check,
            0 if result is None else result.register,
            TYPES[dtype],
        )
        if library.FUNCTIONS.tile(ctypes.byref(tile)) != 0:
            raise Failed
        self._steps = [step for step in self._steps if not step.out]
        self._divergences = None
        return [step.found for step in steps]

    def array(self) -> np.ndarray:
        """The numbers as they are now: float32 `[m, n]`, this thread's until it asks for others."""
        m, n = self.shape
        array = rooms.take("rows", np.float32, m * n)[: m * n].reshape(m, n)
        for row, values in zip(self, array, strict=True):
            self.step("store", row.register, out=values)
        self.run()
        return array
