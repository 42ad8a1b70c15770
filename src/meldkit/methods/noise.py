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

from meldkit.kernels import draws

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
        return draws.numbers(self.key(model), start, n)

    def keep(self, model: int, start: int, n: int, density: float) -> np.ndarray:
        """Which of the elements [start, start + n) to keep, each with that probability: bool `[n]`."""
        return np.unpackbits(self.keep_bits(model, start, n, density), count=n).view(bool)

    def keep_bits(self, model: int, start: int, n: int, density: float) -> np.ndarray:
        """The same as bits: uint8 `[n / 8]`, the highest bit of a byte first."""
        below = _threshold(density)
        if below in (0, _LEVELS):
            return all_or_nothing(n, below > 0)
        return draws.at_most(self.key(model), start, n, below - 1)

    def key(self, model: int) -> np.ndarray:
        """Of a model's numbers: uint64 `[2]`."""
        digest = hashlib.sha256(f"{self._prefix}{model}".encode()).digest()
        return np.frombuffer(digest[:16], "<u8").astype(np.uint64)


def all_or_nothing(n: int, kept: bool) -> np.ndarray:
    """Bits that are all alike: uint8 `[n / 8]`."""
    return np.full(-(-n // 8), 255 * kept, np.uint8)


def quantised(density: float) -> float:
    """The probability that `Noise.keep` realises: `density` as a multiple of 1/65536, but not 0."""
    return _threshold(density) / _LEVELS


def _threshold(density: float) -> int:
    return max(1, round(density * _LEVELS)) if density > 0 else 0
