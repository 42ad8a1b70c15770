"""ties: trim, elect signs, and average what agrees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from meldkit.methods.base import Base, Measured, Parameter, combine, scale
from meldkit.methods.statistics import Chain, KthMagnitude, L1Ratio, Statistic
from meldkit.methods.task_arithmetic import LAMBDA, WEIGHT

DENSITY = Parameter(
    "density", "Fraction of each task vector's elements to keep.", default=1.0, per_model=True, low=0, high=1
)


def measure(
    num_models: int, numel: int, *, density: Sequence[float], rescale: bool, **_: object
) -> Statistic | None:
    """The magnitude of the last element kept in each task vector; with `rescale` also the L1 ratios."""
    ranks = [num_kept(d, numel) if d < 1 else None for d in density]
    if not any(ranks):
        return None

    def ratios(thresholds: Sequence[float | None]) -> Statistic | None:
        return L1Ratio(partial(trim, thresholds=thresholds), num_models, numel) if rescale else None

    return Chain(KthMagnitude(ranks, numel), ratios)


def num_kept(density: float, numel: int) -> int:
    """How many elements a density keeps: the integer part, but at least one."""
    return max(1, math.trunc(density * numel))


def ties(
    x: Float32[Tensor, "m n"],
    measured: tuple[Sequence[float | None], Sequence[float] | None] | None,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    lambda_: float,
    rescale: bool,
) -> Float32[Tensor, " n"]:
    """Keep each task vector's largest elements, elect a sign per element, average those that agree.

        τ̂_i = τ_i where |τ_i| is among the density·n largest of the tensor, else 0        (trim)
        e    = + where Σ w_i τ̂_i ≥ 0, else −                                              (elect)
        A    = {i : sign(w_i τ̂_i) = e}                                                    (agree)
        θ    = θ_0 + λ Σ_A w_i τ̂_i / Σ_A w_i              (normalize: false leaves out the division)

    With `rescale`, τ̂_i is multiplied by ‖τ_i‖₁ / ‖τ̂_i‖₁.

    Paper: TIES-Merging, https://arxiv.org/abs/2306.01708. As in mergekit and unlike the paper, trimming
    is per tensor, votes are weighted, and a vote of exactly 0 counts as positive. Elements that tie with
    the last one kept are all kept, as in the paper. At least one element is always kept.
    """
    del density, rescale  # already contained in what was measured
    factors = weight
    if measured is not None:
        thresholds, ratios = measured
        trim(x, thresholds)
        if ratios is not None:
            factors = [w * r for w, r in zip(weight, ratios, strict=True)]
    for row, factor in zip(x, factors, strict=True):
        scale(row, factor)
    return scale(elect_and_sum(x, weight, normalize=normalize), lambda_)


def trim(x: Float32[Tensor, "m n"], thresholds: Sequence[float | None]) -> None:
    """Zero, in place, the elements of smaller magnitude than their model's threshold."""
    for row, threshold in zip(x, thresholds, strict=True):
        if threshold is not None and threshold > 0:
            # hardshrink zeroes |x| ≤ λ: with the float below the threshold, ties are kept.
            below = np.nextafter(np.float32(threshold), np.float32(0))
            torch.hardshrink(row, float(below), out=row)


def elect_and_sum(
    x: Float32[Tensor, "m n"], weight: Sequence[float], *, normalize: bool
) -> Float32[Tensor, " n"]:
    """Sum of the weighted elements that have the elected sign, optionally over the sum of their weights.

    Args:
        x: weighted task vectors; overwritten.
        weight: w_i, the weights already contained in `x`.
        normalize: divide by the sum of the weights that agree; where that is 0, by 1.
    """
    sign = _sum(x).ge_(0).mul_(2).sub_(1)
    for row in x:
        row.mul_(sign).relu_()
    total = _sum(x).mul_(sign)
    if normalize:
        agreeing = combine(x.sign_(), weight)
        total.div_(agreeing.add_(torch.eq(agreeing, 0, out=sign)))
    return total


def _sum(x: Float32[Tensor, "m n"]) -> Float32[Tensor, " n"]:
    """Σ x_i in the order of the models: `x.sum(dim=0)` adds in an order that depends on n."""
    total = x[0].clone()
    for row in x[1:]:
        total.add_(row)
    return total


METHOD = Measured(
    name="ties",
    function=ties,
    measure=measure,
    parameters=(
        WEIGHT,
        DENSITY,
        Parameter("normalize", "Divide by the sum of the agreeing weights.", default=True, kind=bool),
        LAMBDA,
        Parameter("rescale", "Restore each trimmed task vector's L1 norm.", default=False, kind=bool),
    ),
    base=Base.DELTA,
    paper="2306.01708",
)
