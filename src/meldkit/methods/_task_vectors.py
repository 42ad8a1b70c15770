"""What the methods on task vectors share: parameters, sign election, and the weighted sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

from meldkit import kernels
from meldkit.kernels import Numbers, Rows
from meldkit.methods.linear import normalized
from meldkit.methods.parameter import Parameter

WEIGHT = Parameter(
    "weight",
    "Factor on the model's task vector; negative removes a skill.",
    per_model=True,
    start=1.0,
    shared=True,
    reason="equal shares of 1; without normalize, more, up to 1 each, keeps more of a skill",
)
LAMBDA = Parameter("lambda", "Factor on the merged task vector.", default=1.0)
DENSITY = Parameter(
    "density", "Fraction of each task vector's elements to keep.", default=1.0, per_model=True, low=0, high=1
)


ELECT = Parameter(
    "elect",
    "Whether the sign is that of the weighted sum or of the plain one, as in the paper.",
    default="weighted",
    kind=str,
    choices=("weighted", "unweighted"),
)


def normalize_parameter(*, default: bool) -> Parameter:
    """The parameter `normalize`."""
    return Parameter("normalize", "Divide by the sum of the (agreeing) weights.", default=default, kind=bool)


def num_kept(density: float, numel: int) -> int:
    """How many elements a density keeps: the integer part, but at least one unless it is 0."""
    return max(1, math.trunc(density * numel)) if density > 0 else 0


def merge_task_vectors(
    x: Rows,
    weight: Sequence[float],
    ratios: Sequence[float] | None,
    *,
    elect: str | None,
    normalize: bool,
    lambda_: float,
) -> Numbers:
    """λ Σ w_i r_i τ_i, of all models or of those that have the elected sign, perhaps over the sum of weights.

    Args:
        x: task vectors τ_i; overwritten.
        weight: w_i.
        ratios: r_i, factors that restore what sparsifying took away; None for 1.
        elect: count only elements with the sign of Σ w_i r_i τ_i ("weighted") or Σ r_i τ_i ("unweighted").
        normalize: divide by Σ w_i of what was counted.
        lambda_: factor on the result.
    """
    ones = [1.0] * len(x)
    restored = list(ratios or ones)
    factors = [w * r for w, r in zip(weight, restored, strict=True)]
    if elect is None:
        return combine_weighted(x, factors, weight, normalize=normalize, lambda_=lambda_)
    before, factors = (factors, ones) if elect == "weighted" else (restored, list(weight))
    if not normalize:
        return kernels.elect(x, before, factors, [0.0] * len(x), least=0, lambda_=lambda_)
    # The sum of some positive weights is not below the smallest of them, however it is rounded.
    least = min(weight) if min(weight) > 0 else -math.inf
    return kernels.elect(x, before, factors, weight, least=least, lambda_=lambda_)


def combine_weighted(
    x: Rows, factors: Sequence[float], weight: Sequence[float], *, normalize: bool, lambda_: float
) -> Numbers:
    """λ Σ f_i τ_i, perhaps over Σ w_i."""
    divisor = 1.0
    if normalize:
        normalized(weight)  # a sum of 0 is refused with the weights shown
        divisor = math.fsum(weight)
    return kernels.combine(x, [lambda_ * f / divisor for f in factors])
