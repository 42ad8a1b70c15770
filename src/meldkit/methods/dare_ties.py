"""dare_ties: drop elements of task vectors at random, rescale the rest, elect signs."""

from __future__ import annotations

from typing import Any

from meldkit.kernels import Numbers, Rows
from meldkit.methods._dare import KEPT, RESCALE, Kept, dare, measure
from meldkit.methods._task_vectors import LAMBDA, WEIGHT, normalize_parameter
from meldkit.methods.base import Base, Measured, TileNoise, always


def dare_ties(x: Rows, kept: Kept | None, *, noise: TileNoise, **parameters: Any) -> Numbers:
    """Randomly dropped and rescaled task vectors, merged by sign election as in ties.

        τ̂_ij = τ_ij with probability density_i, else 0
        θ     = θ_0 + λ Σ_A w_i r_i τ̂_i               A: models that have the sign of Σ w_i r_i τ̂_i
                                                      (normalize: true divides by Σ_A w_i)

    r_i makes up for what was dropped: ‖τ_i‖₁ / ‖τ̂_i‖₁ (rescale: l1), 1 / density_i (inverse_density) or 1.

    Paper: Language models are super Mario, https://arxiv.org/abs/2311.03099, which rescales by 1 / density;
    like mergekit, the default restores the L1 norm instead. Which elements are kept depends on the seed, the
    tensor's name and the model's position only (see `meldkit.methods.noise`).
    """
    return dare(x, kept, noise, elect="weighted", **parameters)


METHOD = Measured(
    name="dare_ties",
    function=dare_ties,
    measure=measure,
    parameters=(WEIGHT, KEPT, normalize_parameter(default=False), LAMBDA, RESCALE),
    base=Base.DELTA,
    fuses=always,
    paper="2311.03099",
    random=True,
)
