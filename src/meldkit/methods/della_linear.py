"""della_linear: drop elements of task vectors at random by their rank."""

from __future__ import annotations

from typing import Any

from meldkit.kernels import Numbers, Rows
from meldkit.methods._della import PARAMETERS, Kept, check_window, measure, merge_della
from meldkit.methods._task_vectors import normalize_parameter
from meldkit.methods.base import Base, Measured, TileNoise, always
from meldkit.methods.linear import check_weights


def check(**parameters: Any) -> None:
    """Probabilities inside (0, 1), and weights that can be normalized if they are to be."""
    check_window(**parameters)
    check_weights(**parameters)


def della_linear(x: Rows, kept: Kept | None, *, noise: TileNoise, **parameters: Any) -> Numbers:
    """Task vectors dropped at random, small elements likelier, summed and added to the base.

        p_ij  = density_i − ε_i + 2 ε_i (rank of |τ_ij| in its row) / (length of the row − 1)
        τ̂_ij  = τ_ij with probability p_ij, else 0
        θ     = θ_0 + λ Σ w_i r_i τ̂_i                 (normalize: true divides by Σ w_i)

    r_i = ‖τ_i‖₁ / ‖τ̂_i‖₁ (rescale: l1) or 1; with keep_probability τ̂_ij is divided by p_ij instead, as in the
    paper. Rows are those of the last dimension; in a row of one element p is the density. Density 1 keeps
    all.

    Paper: DELLA-Merging, https://arxiv.org/abs/2406.11617. Which elements are kept depends on the seed, the
    tensor's name and the model's position only (see `meldkit.methods.noise`).
    """
    return merge_della(x, kept, noise, elect=None, **parameters)


METHOD = Measured(
    name="della_linear",
    function=della_linear,
    measure=measure,
    parameters=(*PARAMETERS, normalize_parameter(default=False)),
    base=Base.DELTA,
    fuses=always,
    takes_arrays=True,
    paper="2406.11617",
    check_values=check,
    by_rows=always,
    random=True,
)
