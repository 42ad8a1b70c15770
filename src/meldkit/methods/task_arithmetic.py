"""task_arithmetic: add weighted task vectors to the base."""

from __future__ import annotations

from collections.abc import Sequence

from meldkit.methods._task_vectors import LAMBDA, WEIGHT, merge_task_vectors, normalize_parameter
from meldkit.methods.base import Base, Elementwise
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
    return merge_task_vectors(x, weight, None, elect=None, normalize=normalize, lambda_=lambda_)


METHOD = Elementwise(
    name="task_arithmetic",
    function=task_arithmetic,
    parameters=(WEIGHT, normalize_parameter(default=False), LAMBDA),
    base=Base.DELTA,
    paper="2212.04089",
    check_values=check_weights,
    shows_nonfinite=True,
)
