"""What breadcrumbs and breadcrumbs_ties share: dropping the smallest and the largest elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from meldkit import kernels
from meldkit.kernels import Numbers, Rows
from meldkit.methods._task_vectors import (
    DENSITY,
    LAMBDA,
    WEIGHT,
    merge_task_vectors,
    normalize_parameter,
    num_kept,
)
from meldkit.methods.base import Whole
from meldkit.methods.parameter import Parameter
from meldkit.methods.statistics import Chain, KthMagnitude, L1Ratio, Statistic

GAMMA = Parameter(
    "gamma", "Fraction of the largest elements to drop.", default=0.01, per_model=True, low=0, high=1
)
PARAMETERS = (
    WEIGHT,
    replace(DENSITY, start=0.9, reason="with gamma 0.01 it drops the largest 1 % and the smallest 9 %"),
    GAMMA,
    normalize_parameter(default=False),
    LAMBDA,
    Parameter("rescale", "Restore each task vector's L1 norm.", default=False, kind=bool),
)


def ranks(density: float, gamma: float, numel: int) -> list[int]:
    """Ranks, from the largest, of the largest and the smallest element kept; empty if all are."""
    if density >= 1:
        return []
    kept = num_kept(density, numel)
    if kept == 0:
        return [0, 0]
    dropped = min(math.trunc(gamma * numel), numel - kept)
    return [dropped + 1, dropped + kept]


def measure(
    whole: Whole, *, density: Sequence[float], gamma: Sequence[float], rescale: bool, **_: object
) -> Statistic | None:
    """The magnitudes of the largest and smallest elements kept; with `rescale` also the L1 ratios."""
    wanted = [ranks(d, g, whole.numel) for d, g in zip(density, gamma, strict=True)]
    if not any(wanted):
        return None

    def ratios(bounds: Sequence[tuple[float, ...]]) -> Statistic | None:
        return L1Ratio(lambda x: keep_between(x, bounds), whole.num_models, whole.numel) if rescale else None

    return Chain(KthMagnitude(wanted, whole.numel), ratios, passes=int(rescale))


def keep_between(x: Rows, bounds: Sequence[tuple[float, ...]]) -> None:
    """Zero, in place, elements whose magnitude lies outside their model's (largest, smallest), if given."""
    for row, bound in zip(x, bounds, strict=True):
        if bound:
            largest, smallest = bound
            kernels.zero_below(row, smallest)
            kernels.zero_above(row, largest)


def breadcrumbs(
    x: Rows,
    measured: tuple[Sequence[tuple[float, ...]], Sequence[float] | None] | None,
    *,
    elect: str | None,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    normalize: bool,
    lambda_: float,
    rescale: bool,
) -> Numbers:
    """Drop both tails and merge with or without sign election."""
    del density, gamma, rescale  # already contained in what was measured
    ratios = None
    if measured is not None:
        bounds, ratios = measured
        keep_between(x, bounds)
    return merge_task_vectors(x, weight, ratios, elect=elect, normalize=normalize, lambda_=lambda_)
