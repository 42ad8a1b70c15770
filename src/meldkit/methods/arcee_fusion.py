"""arcee_fusion: take over only the outstanding changes."""

from __future__ import annotations

import math

import numpy as np
import torch

from meldkit.kernels.divergences import FLOOR, softmax_divergences
from meldkit.kernels.elsewhere import has_float64, in_memory, row_sums
from meldkit.methods.base import Base, Measured, Whole
from meldkit.methods.statistics import Chain, Derived, KthMagnitude, Statistic
from meldkit.shapes import Float32, Tensor

#: How many interquartile ranges above the median a change is outstanding.
_SPREAD = 1.5


def measure(whole: Whole) -> Statistic:
    """The quartiles of the importances: sorted elements number ⌊q (n − 1)⌋, from 0; and the divergences."""
    n = whole.numel
    ranks = [n - math.floor(q * (n - 1)) for q in (0.25, 0.5, 0.75)]
    divergences = Divergences(whole.num_columns)
    importances = Derived(
        lambda x, start: divergences.importance(x, start).unsqueeze(0),
        KthMagnitude([ranks], n, grain=whole.num_columns),
    )
    return Chain(importances, lambda _: None, lambda found, _: (found[0], divergences))


class Divergences:
    """KL(softmax(θ_1) ‖ softmax(θ_0)) of every row, computed once."""

    def __init__(self, num_columns: int) -> None:
        self._num_columns = num_columns
        self._known: dict[tuple[int, int], np.ndarray] = {}

    def importance(self, x: Float32[Tensor, "2 n"], start: int) -> Float32[Tensor, " n"]:
        """|θ_1 − θ_0| times the divergence of its row, of the tile that begins at element `start`."""
        base, other = x.view(2, -1, self._num_columns)
        tile = start, x.shape[1]
        if tile not in self._known:
            self._known[tile] = _divergences(other, base)
        known = torch.from_numpy(self._known[tile]).to(x.device)
        return torch.sub(other, base).abs_().mul_(known).view(-1)


def _divergences(first: Tensor, second: Tensor) -> np.ndarray:
    """Of rows `[rows, columns]`, as float32 `[rows, 1]`."""
    if not in_memory(first):
        if has_float64(first.device):
            p, q = (softmax.add_(FLOOR) for softmax in map(_softmax_elsewhere, (first, second)))
            return row_sums(torch.log(p / q).mul_(p)).float().cpu().numpy()[:, None]
        first, second = first.cpu(), second.cpu()
    # The divergence of two fine-tunes is far smaller than what float32 can tell from 0.
    return softmax_divergences(first.numpy(), second.numpy()).astype(np.float32)[:, None]


def _softmax_elsewhere(rows: Tensor) -> Tensor:
    values = (rows.double() - rows.amax(1, keepdim=True)).exp_()
    return values.div_(row_sums(values).unsqueeze(1))


def arcee_fusion(
    x: Float32[Tensor, "2 n"],
    measured: tuple[tuple[float, float, float], Divergences],
    *,
    num_columns: int,
    start: int,
) -> Float32[Tensor, " n"]:
    """The base, with the elements of the other model whose change is far more important than most.

        importance = |θ_1 − θ_0| · KL(softmax(θ_1) ‖ softmax(θ_0))          softmax and KL per row
        θ          = θ_1 where importance ≥ q_50 + 1.5 (q_75 − q_25), else θ_0

    Quantiles are exact, over the whole tensor; mergekit estimates them from a random sample of large tensors.
    A tensor of one dimension is a single row.
    """
    del num_columns
    (q25, q50, q75), divergences = measured
    threshold = q50 + _SPREAD * (q75 - q25)
    keep = divergences.importance(x, start).ge_(threshold)
    base, other = x
    return base.addcmul_(other.sub_(base), keep)


METHOD = Measured(
    name="arcee_fusion",
    function=arcee_fusion,
    measure=measure,
    base=Base.ENDPOINT,
    num_models=(2, 2),
    by_rows=lambda: True,
    positional=True,
)
