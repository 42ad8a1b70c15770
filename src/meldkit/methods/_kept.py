"""What is kept of task vectors, drawn once and remembered as one bit per element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meldkit.methods.statistics import CHUNK, Range, exact_sum, l1_ratio
from meldkit.shapes import Float32


class Kept:
    """Which elements of each tile are kept; and the L1 ratios.

    Attributes:
        bits: by the tile's first element, uint8 `[m, n / 8]`.
        ratios: per model, Σ|x| / Σ|kept x|.
    """

    def __init__(self) -> None:
        self.bits: dict[int, np.ndarray] = {}
        self.ratios: list[float] = []

    def drop(self, x: Float32[Tensor, "m n"], start: int) -> None:
        """Zero, in place, what is not kept of the tile that begins at element `start`."""
        keep = np.unpackbits(self.bits[start], axis=1, count=x.shape[1]).view(bool)
        np.multiply(x.numpy(), keep, out=x.numpy())


class KeptL1:
    """Draws what is kept and measures how much that shrank each task vector.

    Drawing costs far more than remembering, so that the pass that applies does not draw again.

    Args:
        draw: from a tile `[m, n]` and its first element to what to keep of it, bool `[m, n]`.
        num_models: m.
        numel: elements of the tensor.
        grain: elements over which sums are formed before they are added exactly.
    """

    def __init__(
        self,
        draw: Callable[[Tensor, int], np.ndarray],
        num_models: int,
        numel: int,
        grain: int = CHUNK,
    ) -> None:
        self._draw = draw
        self._numel = numel
        self._grain = grain
        self._norms: list[list[float]] = [[] for _ in range(2 * num_models)]
        self._kept = Kept()
        self._done = False

    def ranges(self) -> Sequence[Range]:
        return [] if self._done else [(0, self._numel)]

    def update(self, x: Float32[Tensor, "m n"], start: int) -> Any:
        keep = self._draw(x, start)
        before = self._sums(x.abs_())
        np.multiply(x.numpy(), keep, out=x.numpy())
        return start, before + self._sums(x), np.packbits(keep, axis=1)

    def _sums(self, x: Float32[Tensor, "m n"]) -> list[list[float]]:
        whole = x.shape[1] // self._grain * self._grain
        parts = [x[:, :whole].view(len(x), -1, self._grain), x[:, None, whole:]]
        sums = torch.cat([part.sum(dim=2) for part in parts], dim=1)
        return sums.numpy().tolist()

    def absorb(self, partial: tuple[int, list[list[float]], np.ndarray]) -> None:
        start, norms, bits = partial
        for total, part in zip(self._norms, norms, strict=True):
            total.extend(part)
        self._kept.bits[start] = bits

    def finish_pass(self) -> None:
        self._done = True
        sums = [exact_sum(norms) for norms in self._norms]
        m = len(sums) // 2
        self._kept.ratios = [
            l1_ratio(before, after) for before, after in zip(sums[:m], sums[m:], strict=True)
        ]

    @property
    def result(self) -> Kept:
        return self._kept
