"""Random numbers that do not depend on who draws them when.

Every element of every model's tensor has its own 16-bit number, a function of the seed, the output
tensor's name, the model's index and the element's index alone:

    key      = first 16 bytes of SHA-256(b"{seed}\\0{name}\\0{model}"), as two little-endian uint64
    numbers  = numpy.random.Philox(key=key, counter=0).random_raw(…), each uint64 cut into four uint16,
               lowest bits first; element i takes number i

Philox is counter-based (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011), so that a
tile in the middle is reached without drawing what lies before it.
"""

from __future__ import annotations

import hashlib

import numpy as np

#: 16-bit numbers per step of Philox's counter: four uint64.
_PER_STEP = 16
_LEVELS = 1 << 16


class Noise:
    """The numbers of one output tensor.

    Args:
        seed: of the merge.
        name: of the output tensor.
    """

    def __init__(self, seed: int, name: str) -> None:
        self._prefix = f"{seed}\0{name}\0"

    def uniform(self, model: int, start: int, n: int) -> np.ndarray:
        """Numbers of elements [start, start + n) of a model's tensor: uint16 `[n]`, uniform on 0 to 65535."""
        digest = hashlib.sha256(f"{self._prefix}{model}".encode()).digest()
        first, skip = divmod(start, _PER_STEP)
        generator = np.random.Philox(key=np.frombuffer(digest[:16], "<u8"), counter=[first, 0, 0, 0])
        steps = -(-(skip + n) // _PER_STEP)
        return generator.random_raw(4 * steps).astype("<u8", copy=False).view("<u2")[skip : skip + n]

    def keep(self, model: int, start: int, n: int, density: float) -> np.ndarray:
        """Which of the elements [start, start + n) to keep, each with that probability: bool `[n]`."""
        below = _threshold(density)
        if below in (0, _LEVELS):
            return np.full(n, below > 0)
        return self.uniform(model, start, n) <= np.uint16(below - 1)


def quantised(density: float) -> float:
    """The probability that `Noise.keep` realises: `density` as a multiple of 1/65536, but not 0."""
    return _threshold(density) / _LEVELS


def _threshold(density: float) -> int:
    return max(1, round(density * _LEVELS)) if density > 0 else 0
