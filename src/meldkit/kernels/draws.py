"""Random numbers and what is kept by them, as bits: the highest bit of a byte first.

`meldkit.methods.noise` says what the numbers are. A key is uint64 `[2]`.
"""

from __future__ import annotations

import numpy as np

from meldkit.kernels import library
from meldkit.kernels.library import address

#: 16-bit numbers per step of Philox's counter: four uint64.
_PER_STEP = 16


def numbers(key: np.ndarray, start: int, n: int) -> np.ndarray:
    """The numbers of elements [start, start + n): uint16 `[n]`."""
    if library.FUNCTIONS is not None:
        result = np.empty(n, np.uint16)
        library.FUNCTIONS.draw(address(key), start, n, address(result))
        return result
    first, skip = divmod(start, _PER_STEP)
    generator = np.random.Philox(key=key, counter=[first, 0, 0, 0])
    steps = -(-(skip + n) // _PER_STEP)
    return generator.random_raw(4 * steps).astype("<u8", copy=False).view("<u2")[skip : skip + n]


def at_most(key: np.ndarray, start: int, n: int, most: int) -> np.ndarray:
    """Bits of the numbers that are at most `most`, which is one itself: uint8 `[n / 8]`."""
    if library.FUNCTIONS is not None:
        bits = np.empty(-(-n // 8), np.uint8)
        library.FUNCTIONS.draw_at_most(address(key), start, n, most, address(bits))
        return bits
    return np.packbits(numbers(key, start, n) <= np.uint16(most))


def below(key: np.ndarray, start: int, levels: np.ndarray) -> np.ndarray:
    """Bits of the numbers of elements from `start` on that are below these uint16 `[n]`: uint8 `[n / 8]`."""
    if library.FUNCTIONS is not None and levels.flags.c_contiguous:
        bits = np.empty(-(-len(levels) // 8), np.uint8)
        library.FUNCTIONS.draw_below(address(key), start, len(levels), address(levels), address(bits))
        return bits
    return np.packbits(numbers(key, start, len(levels)) < levels)
