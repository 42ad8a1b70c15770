"""What the methods on task vectors share: parameters, sign election, and the weighted sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from meldkit.methods.base import Parameter, combine, scale
from meldkit.methods.linear import normalized
from meldkit.shapes import Float32

WEIGHT = Parameter("weight", "Factor on the model's task vector; negative removes a skill.", per_model=True)
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
    x: Float32[Tensor, "m n"],
    weight: Sequence[float],
    ratios: Sequence[float] | None,
    *,
    elect: str | None,
    normalize: bool,
    lambda_: float,
) -> Float32[Tensor, " n"]:
    """λ Σ w_i r_i τ_i, of all models or of those that have the elected sign, perhaps over the sum of weights.

    Args:
        x: task vectors τ_i; overwritten.
        weight: w_i.
        ratios: r_i, factors that restore what sparsifying took away; None for 1.
        elect: count only elements with the sign of Σ w_i r_i τ_i ("weighted") or Σ r_i τ_i ("unweighted").
        normalize: divide by Σ w_i of what was counted.
        lambda_: factor on the result.
    """
    factors = list(weight) if ratios is None else [w * r for w, r in zip(weight, ratios, strict=True)]
    if elect == "unweighted" and ratios is not None:
        for row, ratio in zip(x, ratios, strict=True):
            scale(row, ratio)
        factors = list(weight)
    if elect is None:
        divisor = 1.0
        if normalize:
            normalized(weight)  # a sum of 0 is refused with the weights shown
            divisor = math.fsum(weight)
        return combine(x, [lambda_ * f / divisor for f in factors])
    if elect == "weighted":
        for row, factor in zip(x, factors, strict=True):
            scale(row, factor)
        factors = [1.0] * len(x)
    total, agreeing = elect_and_sum(x, factors, weight)
    if normalize:
        # Where nothing agrees the sum is 0 and stays 0.
        smallest = min(weight)
        if smallest > 0:
            agreeing.clamp_(min=smallest)
        else:
            agreeing.add_(torch.eq(agreeing, 0))
        total.div_(agreeing)
    return scale(total, lambda_)


def elect_and_sum(
    x: Float32[Tensor, "m n"], factors: Sequence[float], weight: Sequence[float]
) -> tuple[Float32[Tensor, " n"], Float32[Tensor, " n"]]:
    """Sum f_i x_i over the models that have the sign of Σ x_i, and the sum of their weights.

    Args:
        x: task vectors; overwritten. A sum of 0 counts as positive; an element of 0 has no sign.
        factors: f_i.
        weight: what each model counts in the second sum.

    Returns:
        Both sums; the first one is a view of `x[0]`.
    """
    sign = sum_rows(x).ge_(0).mul_(2).sub_(1)
    x.mul_(sign).relu_()
    agreeing = scale(torch.sign(x[0]), weight[0])
    total = scale(x[0], factors[0])
    for row, factor, share in zip(x[1:], factors[1:], weight[1:], strict=True):
        total.add_(row, alpha=factor)
        agreeing.add_(row.sign_(), alpha=share)
    return total.mul_(sign), agreeing


def sum_rows(x: Float32[Tensor, "m n"]) -> Float32[Tensor, " n"]:
    """Σ x_i in the order of the models: `x.sum(dim=0)` adds in an order that depends on n."""
    total = x[0].clone() if len(x) == 1 else torch.add(x[0], x[1])
    for row in x[2:]:
        total.add_(row)
    return total
