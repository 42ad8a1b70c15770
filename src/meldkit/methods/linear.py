"""linear: weighted sum or average of models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from meldkit import kernels
from meldkit.kernels import Numbers, Rows
from meldkit.methods.base import Elementwise, always
from meldkit.methods.parameter import Parameter

WEIGHT = Parameter(
    "weight",
    "Share of the model in the sum.",
    per_model=True,
    start=1.0,
    shared=True,
    reason="equal shares, as in a uniform soup",
)


def linear(x: Rows, *, weight: Sequence[float], normalize: bool) -> Numbers:
    """Weighted sum of the models, by default divided by the sum of the weights.

        θ = Σ w_i θ_i / Σ w_i          (normalize: true)
        θ = Σ w_i θ_i                  (normalize: false)

    Paper: Model soups, https://arxiv.org/abs/2203.05482 (uniform soup: all weights equal).

    Weights that sum to 0 have no average; with `normalize` they are an error.
    """
    return kernels.combine(x, normalized(weight) if normalize else weight)


def normalized(weight: Sequence[float]) -> list[float]:
    """The weights divided by their sum.

    Raises:
        ValueError: they sum to 0.
    """
    total = math.fsum(weight)
    if abs(total) <= 1e-8 * math.fsum(map(abs, weight)):
        raise ValueError(f"weight: {list(weight)} sum to 0, which cannot be normalized; change one")
    return [w / total for w in weight]


def check_weights(*, weight: Sequence[float], normalize: bool, **_: object) -> None:
    """Weights that are to be normalized must not sum to 0."""
    if normalize:
        normalized(weight)


METHOD = Elementwise(
    name="linear",
    function=linear,
    parameters=(
        WEIGHT,
        Parameter("normalize", "Divide by the sum of the weights.", default=True, kind=bool),
    ),
    paper="2203.05482",
    check_values=check_weights,
    shows_nonfinite=True,
    fuses=always,
)
