"""dare_linear: drop elements of task vectors at random, rescale the rest."""

from __future__ import annotations

from typing import Any

from meldkit.kernels import Numbers, Rows
from meldkit.methods._dare import KEPT, RESCALE, Kept, dare, measure
from meldkit.methods._task_vectors import LAMBDA, WEIGHT, normalize_parameter
from meldkit.methods.base import Base, Measured, TileNoise, always
from meldkit.methods.linear import check_weights


def dare_linear(x: Rows, kept: Kept | None, *, noise: TileNoise, **parameters: Any) -> Numbers:
    """Randomly dropped and rescaled task vectors, summed and added to the base.

        τ̂_ij = τ_ij with probability density_i, else 0
        θ     = θ_0 + λ Σ w_i r_i τ̂_i                 (normalize: true divides by Σ w_i)

    r_i makes up for what was dropped: ‖τ_i‖₁ / ‖τ̂_i‖₁ (rescale: l1), 1 / density_i (inverse_density) or 1.

    Paper: Language models are super Mario, https://arxiv.org/abs/2311.03099, which rescales by 1 / density;
    like mergekit, the default restores the L1 norm instead. Which elements are kept depends on the seed, the
    tensor's name and the model's position only (see `meldkit.methods.noise`).
    """
    return dare(x, kept, noise, elect=None, **parameters)


METHOD = Measured(
    name="dare_linear",
    function=dare_linear,
    measure=measure,
    parameters=(WEIGHT, KEPT, normalize_parameter(default=False), LAMBDA, RESCALE),
    base=Base.DELTA,
    fuses=always,
    paper="2311.03099",
    random=True,
    check_values=check_weights,
)
