"""What dare_linear and dare_ties share: dropping at random, and rescaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from meldkit import kernels
from meldkit.kernels import Numbers, Rows
from meldkit.methods._kept import Kept, KeptL1
from meldkit.methods._task_vectors import DENSITY, merge_task_vectors
from meldkit.methods.base import TileNoise, Whole
from meldkit.methods.noise import quantised
from meldkit.methods.parameter import Parameter
from meldkit.methods.statistics import Statistic

KEPT = replace(
    DENSITY, start=0.5, reason="half; where models changed little, 0.1 does as well, as the paper found"
)
RESCALE = Parameter(
    "rescale",
    "How what is dropped is made up for: l1 restores each task vector's L1 norm, inverse_density divides "
    "by the density as the paper does, none does not; true is l1, false is none.",
    default="l1",
    kind=str,
    choices=("l1", "inverse_density", "none"),
    aliases={True: "l1", False: "none"},
)


def measure(whole: Whole, *, density: Sequence[float], rescale: str, **_: object) -> Statistic | None:
    """The L1 ratios, where they are asked for and something is dropped."""
    if rescale != "l1" or min(density) >= 1:
        return None

    def drawn(x: Rows, start: int) -> np.ndarray:
        noise = TileNoise(whole.noise, start, x.shape[1])
        return np.stack([noise.keep_bits(model, d) for model, d in enumerate(density)])

    return KeptL1(drawn, whole.num_models, whole.numel)


def drop(x: Rows, noise: TileNoise, density: Sequence[float]) -> None:
    """Zero, in place, each element with probability 1 − density."""
    for model, (row, d) in enumerate(zip(x, density, strict=True)):
        if d < 1:
            kernels.keep_bits(row, noise.keep_bits(model, d))


def dare(
    x: Rows,
    kept: Kept | None,
    noise: TileNoise,
    *,
    elect: str | None,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    lambda_: float,
    rescale: str,
) -> Numbers:
    """Drop, rescale, and merge with or without sign election."""
    ratios = None
    if kept is None:
        drop(x, noise, density)
    else:
        kept.drop(x, noise.start)
        ratios = kept.ratios
    if rescale == "inverse_density":
        ratios = [1 / quantised(d) if 0 < d < 1 else 1.0 for d in density]
    return merge_task_vectors(x, weight, ratios, elect=elect, normalize=normalize, lambda_=lambda_)
