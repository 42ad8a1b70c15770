"""arcee_fusion: take over only the outstanding changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from meldkit.methods.base import Base, Measured, Whole
from meldkit.methods.statistics import Derived, KthMagnitude, Statistic
from meldkit.shapes import Float32

#: Keeps the logarithm of a probability finite.
_FLOOR = 1e-8
#: How many interquartile ranges above the median a change is outstanding.
_SPREAD = 1.5


def measure(whole: Whole) -> Statistic:
    """The quartiles of the importances: sorted elements number ⌊q (n − 1)⌋, from 0."""
    n = whole.numel
    ranks = [n - math.floor(q * (n - 1)) for q in (0.25, 0.5, 0.75)]
    columns = whole.num_columns
    return Derived(lambda x, _: importance(x, columns).unsqueeze(0), KthMagnitude([ranks], n, grain=columns))


def arcee_fusion(
    x: Float32[Tensor, "2 n"], quartiles: Sequence[tuple[float, float, float]], *, num_columns: int
) -> Float32[Tensor, " n"]:
    """The base, with the elements of the other model whose change is far more important than most.

        importance = |θ_1 − θ_0| · KL(softmax(θ_1) ‖ softmax(θ_0))          softmax and KL per row
        θ          = θ_1 where importance ≥ q_50 + 1.5 (q_75 − q_25), else θ_0

    Quantiles are exact, over the whole tensor; mergekit estimates them from a random sample of large tensors.
    A tensor of one dimension is a single row.
    """
    ((q25, q50, q75),) = quartiles
    threshold = q50 + _SPREAD * (q75 - q25)
    keep = importance(x.clone(), num_columns).ge_(threshold)
    base, other = x
    return base.addcmul_(other.sub_(base), keep)


def importance(x: Float32[Tensor, "2 n"], num_columns: int) -> Float32[Tensor, " n"]:
    """|θ_1 − θ_0| times the divergence of its row; overwrites `x`."""
    base, other = x.view(2, -1, num_columns)
    # The divergence of two fine-tunes is far smaller than what float32 can tell from 0.
    p = torch.softmax(other.double(), dim=1).add_(_FLOOR)
    q = torch.softmax(base.double(), dim=1).add_(_FLOOR)
    divergence = torch.div(p, q, out=q).log_().mul_(p).sum(dim=1, keepdim=True)
    return other.sub_(base).abs_().mul_(divergence.float()).view(-1)


METHOD = Measured(
    name="arcee_fusion",
    function=arcee_fusion,
    measure=measure,
    base=Base.ENDPOINT,
    num_models=(2, 2),
    by_rows=lambda: True,
)
