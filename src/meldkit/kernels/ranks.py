"""Ranks of the elements of rows by magnitude, ties by position; and what is kept by levels of ranks."""

from __future__ import annotations

import numpy as np

from meldkit.kernels import draws, elsewhere, library
from meldkit.kernels.library import address, rooms
from meldkit.shapes import Tensor

#: Of the counts in ranks.c, and per element of a row: words of 64 bits that its functions need as room.
_ROOM, _ROOM_PER_ELEMENT = 81 << 8, 4
#: Shorter rows are ranked first: counting would cost more than it saves.
_LONG = 256


def by_rank(rows: np.ndarray | Tensor, values: np.ndarray) -> np.ndarray:
    """Give each element what stands in `values` at its rank in its row.

    Args:
        rows: float32 `[rows, columns]`, an array if they are in main memory.
        values: uint16 `[columns]`.

    Returns:
        uint16 `[rows · columns]`.
    """
    if not isinstance(rows, np.ndarray):
        return elsewhere.by_rank(rows, values)
    result = np.empty(rows.size, np.uint16)
    if not rows.size:
        return result
    if library.FUNCTIONS is not None and rows.flags.c_contiguous:
        library.FUNCTIONS.by_rank(
            address(rows), *rows.shape, address(values), _room(rows.shape[1]), address(result)
        )
        return result
    order = np.argsort(np.abs(rows).view(np.uint32), axis=1, kind="stable")
    np.put_along_axis(result.reshape(rows.shape), order, values[None], axis=1)
    return result


def below(rows: np.ndarray | Tensor, values: np.ndarray, key: np.ndarray, start: int) -> np.ndarray:
    """Bits of the elements whose random number is below what `by_rank` gives them.

    Args:
        rows, values: as in `by_rank`; the values do not fall, or do not rise.
        key: of the numbers, as in `meldkit.kernels.draws`.
        start: the number of the rows' first element.

    Returns:
        uint8 `[rows · columns / 8]`, the highest bit of a byte first.
    """
    if (
        library.FUNCTIONS is not None
        and isinstance(rows, np.ndarray)
        and rows.flags.c_contiguous
        and rows.shape[1] >= _LONG
    ):
        bits = np.empty(-(-rows.size // 8), np.uint8)
        library.FUNCTIONS.draw_by_rank(
            address(rows),
            *rows.shape,
            address(values),
            address(key),
            start,
            _room(rows.shape[1]),
            address(bits),
        )
        return bits
    return draws.below(key, start, by_rank(rows, values))


def _room(num_columns: int) -> int:
    return address(rooms.take("ranks", np.uint64, _ROOM + _ROOM_PER_ELEMENT * num_columns + 8))
