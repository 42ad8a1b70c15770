"""task_arithmetic: add weighted task vectors to the base."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float32
from torch import Tensor

from meldkit.methods.base import Base, Elementwise, Parameter, combine
from meldkit.methods.linear import check_weights, normalized

WEIGHT = Parameter("weight", "Factor on the model's task vector; negative removes a skill.", per_model=True)
LAMBDA = Parameter("lambda", "Factor on the merged task vector.", default=1.0)


def task_arithmetic(
    x: Float32[Tensor, "m n"], *, weight: Sequence[float], normalize: bool, lambda_: float
) -> Float32[Tensor, " n"]:
    """Sum of weighted task vectors, added to the base.

        θ = θ_0 + λ Σ w_i τ_i                     τ_i = θ_i − θ_0
        θ = θ_0 + λ Σ w_i τ_i / Σ w_i             (normalize: true)

    Paper: Editing models with task arithmetic, https://arxiv.org/abs/2212.04089.
    """
    coefficients = normalized(weight) if normalize else weight
    return combine(x, [lambda_ * c for c in coefficients])


METHOD = Elementwise(
    name="task_arithmetic",
    function=task_arithmetic,
    parameters=(
        WEIGHT,
        Parameter("normalize", "Divide by the sum of the weights.", default=False, kind=bool),
        LAMBDA,
    ),
    base=Base.DELTA,
    paper="2212.04089",
    check_values=check_weights,
)
