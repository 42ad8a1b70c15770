"""breadcrumbs: drop the smallest and the largest elements of task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meldkit.kernels import Numbers, Rows
from meldkit.methods._breadcrumbs import PARAMETERS, measure
from meldkit.methods._breadcrumbs import breadcrumbs as merge_breadcrumbs
from meldkit.methods.base import Base, Measured, always
from meldkit.methods.linear import check_weights


def breadcrumbs(
    x: Rows,
    measured: tuple[Sequence[tuple[float, ...]], Sequence[float] | None] | None,
    **parameters: Any,
) -> Numbers:
    """Task vectors without their smallest and largest elements, summed and added to the base.

        τ̂_i = τ_i without the γ·n largest magnitudes and without the (1 − density − γ)·n smallest
        θ    = θ_0 + λ Σ w_i τ̂_i                      (normalize: true divides by Σ w_i)

    If density + γ > 1, fewer of the largest are dropped; density 1 drops nothing, whatever γ is. At least one
    element is kept. With `rescale`, τ̂_i is multiplied by ‖τ_i‖₁ / ‖τ̂_i‖₁.

    Paper: Model breadcrumbs, https://arxiv.org/abs/2312.06795 (γ is its β).
    """
    return merge_breadcrumbs(x, measured, elect=None, **parameters)


METHOD = Measured(
    name="breadcrumbs",
    function=breadcrumbs,
    measure=measure,
    parameters=PARAMETERS,
    base=Base.DELTA,
    fuses=always,
    paper="2312.06795",
    check_values=check_weights,
)
