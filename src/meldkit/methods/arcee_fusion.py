"""arcee_fusion: take over only the outstanding changes."""

from __future__ import annotations

import math

import numpy as np
import torch

from meldkit import kernels
from meldkit.kernels import Numbers, Rows, Tile
from meldkit.kernels.divergences import FLOOR, in_tiles, softmax_divergences
from meldkit.kernels.elsewhere import has_float64, row_sums
from meldkit.methods.base import Base, Measured, Whole, always
from meldkit.methods.statistics import Chain, Derived, KthMagnitude, Statistic
from meldkit.shapes import Tensor

#: How many interquartile ranges above the median a change is outstanding.
_SPREAD = 1.5


def measure(whole: Whole) -> Statistic:
    """The quartiles of the importances: sorted elements number ⌊q (n − 1)⌋, from 0; and the divergences."""
    n = whole.numel
    ranks = [n - math.floor(q * (n - 1)) for q in (0.25, 0.5, 0.75)]
    divergences = Divergences(whole.num_columns)
    importances = Derived(
        lambda x, start: [divergences.importance(x, start)],
        KthMagnitude([ranks], n, grain=whole.num_columns),
    )
    return Chain(importances, lambda _: None, lambda found, _: (found[0], divergences))


class Divergences:
    """KL(softmax(θ_1) ‖ softmax(θ_0)) of every row, computed once."""

    def __init__(self, num_columns: int) -> None:
        self._num_columns = num_columns
        # By first element and length of tiles, and whether they are of compiled loops: where these failed,
        # what they were to find is not there.
        self._known: dict[tuple[int, int, bool], np.ndarray] = {}

    def importance(self, x: Rows, start: int) -> Numbers:
        """|θ_1 − θ_0| times the divergence of its row, of the tile that begins at element `start`."""
        tile = start, x.shape[1], isinstance(x, Tile)
        known = self._known.get(tile)
        # Of a tile that could not be run, they are NaN still.
        wanted = known is None or bool(np.isnan(known).any())
        if wanted and isinstance(x, Tile) and in_tiles():
            self._known[tile] = x.divergences()
        elif known is None:
            base, other = kernels.numbers(x).reshape(2, -1, self._num_columns)
            self._known[tile] = _divergences(other, base)
        return kernels.importance(x, self._known[tile], self._num_columns)


def _divergences(first: np.ndarray | Tensor, second: np.ndarray | Tensor) -> np.ndarray:
    """Of rows `[rows, columns]`, as float32 `[rows]`; in float64: those of fine-tunes are next to 0."""
    if not isinstance(first, np.ndarray) and not isinstance(second, np.ndarray):
        if has_float64(first.device):
            p, q = (softmax.add_(FLOOR) for softmax in map(_softmax_elsewhere, (first, second)))
            return row_sums(torch.log(p / q).mul_(p)).float().cpu().numpy()
        first, second = first.cpu().numpy(), second.cpu().numpy()
    return softmax_divergences(np.asarray(first), np.asarray(second)).astype(np.float32)


def _softmax_elsewhere(rows: Tensor) -> Tensor:
    values = (rows.double() - rows.amax(1, keepdim=True)).exp_()
    return values.div_(row_sums(values).unsqueeze(1))


def arcee_fusion(
    x: Rows,
    measured: tuple[tuple[float, float, float], Divergences],
    *,
    num_columns: int,
    start: int,
) -> Numbers:
    """The base, with the elements of the other model whose change is far more important than most.

        importance = |θ_1 − θ_0| · KL(softmax(θ_1) ‖ softmax(θ_0))          softmax and KL per row
        θ          = θ_1 where importance ≥ q_50 + 1.5 (q_75 − q_25), else θ_0

    Quantiles are exact, over the whole tensor; mergekit estimates them from a random sample of large tensors.
    A tensor of one dimension is a single row.
    """
    del num_columns
    (q25, q50, q75), divergences = measured
    threshold = q50 + _SPREAD * (q75 - q25)
    return kernels.take(x, divergences.importance(x, start), threshold)


METHOD = Measured(
    name="arcee_fusion",
    function=arcee_fusion,
    measure=measure,
    base=Base.ENDPOINT,
    num_models=(2, 2),
    by_rows=always,
    fuses=always,
    positional=True,
)
