"""task_arithmetic: add weighted task vectors to the base."""

from __future__ import annotations

from collections.abc import Sequence

from meldkit.methods._task_vectors import LAMBDA, WEIGHT, normalize_parameter, weighted_sum
from meldkit.methods.base import Base, Combination, Elementwise, combine
from meldkit.methods.linear import check_weights
from meldkit.shapes import Float32, Tensor


def task_arithmetic(
    x: Float32[Tensor, "m n"], *, weight: Sequence[float], normalize: bool, lambda_: float
) -> Float32[Tensor, " n"]:
    """Sum of weighted task vectors, added to the base.

        θ = θ_0 + λ Σ w_i τ_i                     τ_i = θ_i − θ_0
        θ = θ_0 + λ Σ w_i τ_i / Σ w_i             (normalize: true)

    Paper: Editing models with task arithmetic, https://arxiv.org/abs/2212.04089.
    """
    return combine(x, combination(None, len(x), weight=weight, normalize=normalize, lambda_=lambda_))


def combination(_: None, __: int, *, weight: Sequence[float], normalize: bool, lambda_: float) -> Combination:
    """The weighted sum of task vectors."""
    return weighted_sum(weight, weight, normalize=normalize, lambda_=lambda_)


METHOD = Elementwise(
    name="task_arithmetic",
    function=task_arithmetic,
    parameters=(WEIGHT, normalize_parameter(default=False), LAMBDA),
    base=Base.DELTA,
    paper="2212.04089",
    check_values=check_weights,
    shows_nonfinite=True,
    combination=combination,
)
