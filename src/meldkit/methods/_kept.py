"""What is kept of task vectors, drawn once and remembered as one bit per element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from meldkit import kernels
from meldkit.kernels import Rows
from meldkit.methods.statistics import CHUNK, Bits, Range, exact_sum, l1_ratio

#: Bytes of a list of two numbers.
_PAIR = 136


class Kept:
    """Which elements of each tile are kept; and the L1 ratios.

    Attributes:
        bits: of the elements of each model.
        ratios: per model, Σ|x| / Σ|kept x|.
    """

    def __init__(self) -> None:
        self.bits = Bits()
        self.ratios: list[float] = []

    def drop(self, x: Rows, start: int) -> None:
        """Zero, in place, what is not kept of the tile that begins at element `start`."""
        keep(x, self.bits.of(start, x.shape[1]))


def keep(x: Rows, bits: np.ndarray) -> None:
    """Zero, in place, what is not kept: bits, uint8 `[m, n / 8]`."""
    for row, row_bits in zip(x, bits, strict=True):
        kernels.keep_bits(row, row_bits)


class KeptL1:
    """Draws what is kept and measures how much that shrank each task vector.

    Drawing costs far more than remembering, so that the pass that applies does not draw again.

    Args:
        draw: from a tile `[m, n]` and its first element to bits of what to keep of it, uint8
            `[m, n / 8]`.
        num_models: m.
        numel: elements of the tensor.
        grain: elements over which sums are formed before they are added exactly.
    """

    passes = 1

    def __init__(
        self,
        draw: Callable[[Rows, int], np.ndarray],
        num_models: int,
        numel: int,
        grain: int = CHUNK,
    ) -> None:
        self._draw = draw
        self._numel = numel
        self._grain = grain
        self._norms: list[list[np.ndarray]] = [[] for _ in range(num_models)]
        self._kept = Kept()
        self._done = False
        # A bit per element; two sums per run of elements, which become lists for one model at a time.
        self.held = num_models * (numel // 8) + -(-numel // grain) * (num_models * 16 + _PAIR)

    def ranges(self) -> Sequence[Range]:
        return [] if self._done else [(0, self._numel)]

    def update(self, x: Rows, start: int) -> Any:
        bits = self._draw(x, start)
        norms = np.stack(kernels.norms_around(x, lambda x: keep(x, bits), self._grain), axis=-1)
        return start, x.shape[1], norms, bits

    def absorb(self, partial: tuple[int, int, np.ndarray, np.ndarray]) -> None:
        start, n, norms, bits = partial
        for parts, part in zip(self._norms, norms, strict=True):
            parts.append(part)
        self._kept.bits.remember(start, n, bits)

    def finish_pass(self) -> None:
        self._done = True
        for parts in self._norms:
            norms: list[tuple[float, float]] = np.concatenate(parts).tolist()
            before, after = (exact_sum([pair[side] for pair in norms]) for side in (0, 1))
            self._kept.ratios.append(l1_ratio(before, after))

    @property
    def result(self) -> Kept:
        return self._kept
