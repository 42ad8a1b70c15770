"""task_arithmetic: add weighted task vectors to the base."""

from __future__ import annotations

from collections.abc import Sequence

from meldkit.kernels import Numbers, Rows
from meldkit.methods._task_vectors import LAMBDA, WEIGHT, combine_weighted, normalize_parameter
from meldkit.methods.base import Base, Elementwise, always
from meldkit.methods.linear import check_weights


def task_arithmetic(x: Rows, *, weight: Sequence[float], normalize: bool, lambda_: float) -> Numbers:
    """Sum of weighted task vectors, added to the base.

        θ = θ_0 + λ Σ w_i τ_i                     τ_i = θ_i − θ_0
        θ = θ_0 + λ Σ w_i τ_i / Σ w_i             (normalize: true)

    Paper: Editing models with task arithmetic, https://arxiv.org/abs/2212.04089.
    """
    return combine_weighted(x, weight, weight, normalize=normalize, lambda_=lambda_)


METHOD = Elementwise(
    name="task_arithmetic",
    function=task_arithmetic,
    parameters=(WEIGHT, normalize_parameter(default=False), LAMBDA),
    base=Base.DELTA,
    paper="2212.04089",
    check_values=check_weights,
    shows_nonfinite=True,
    fuses=always,
)
