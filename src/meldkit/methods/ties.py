"""ties: trim, elect signs, and average what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from meldkit import kernels
from meldkit.kernels import Numbers, Rows
from meldkit.methods._task_vectors import (
    DENSITY,
    ELECT,
    LAMBDA,
    WEIGHT,
    merge_task_vectors,
    normalize_parameter,
    num_kept,
)
from meldkit.methods.base import Base, Measured, Whole, always
from meldkit.methods.parameter import Parameter
from meldkit.methods.statistics import Chain, Known, KthMagnitude, L1Ratio, Statistic


def measure(
    whole: Whole, *, density: Sequence[float], rescale: bool, trim_scope: str, **_: object
) -> Statistic | None:
    """The magnitude of the last element kept in each task vector; with `rescale` also the L1 ratios."""
    ranks = _ranks(density, whole)
    if not any(ranks):
        return None

    def ratios(kept: Sequence[tuple[float, ...]]) -> Statistic | None:
        return L1Ratio(lambda x: trim(x, kept), whole.num_models, whole.numel) if rescale else None

    kth = Known(whole.of_model) if trim_scope == "model" else KthMagnitude(ranks, whole.numel)
    return Chain(kth, ratios, passes=int(rescale))


def measure_model(
    whole: Whole, *, density: Sequence[float], trim_scope: str, **_: object
) -> Statistic | None:
    """The same over all tensors together."""
    ranks = _ranks(density, whole)
    return KthMagnitude(ranks, whole.numel, num_blocks=256) if trim_scope == "model" and any(ranks) else None


def _ranks(density: Sequence[float], whole: Whole) -> list[list[int]]:
    return [[num_kept(d, whole.numel)] if d < 1 else [] for d in density]


def ties(
    x: Rows,
    measured: tuple[Sequence[tuple[float, ...]], Sequence[float] | None] | None,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    lambda_: float,
    rescale: bool,
    elect: str,
    trim_scope: str,
) -> Numbers:
    """Keep each task vector's largest elements, elect a sign per element, average those that agree.

        τ̂_i = τ_i where |τ_i| is among the density·n largest of the tensor, else 0        (trim)
        e    = + where Σ w_i τ̂_i ≥ 0, else −                                              (elect)
        A    = {i : sign(w_i τ̂_i) = e}                                                    (agree)
        θ    = θ_0 + λ Σ_A w_i τ̂_i / Σ_A w_i              (normalize: false leaves out the division)

    With `trim_scope: model`, trimming keeps the largest of all tensors' elements together.
    With `elect: unweighted`, e is the sign of Σ τ̂_i and A = {i : sign(τ̂_i) = e}.
    With `rescale`, τ̂_i is multiplied by ‖τ_i‖₁ / ‖τ̂_i‖₁.

    Paper: TIES-Merging, https://arxiv.org/abs/2306.01708. As in mergekit and unlike the paper, trimming
    is per tensor and votes are weighted by default, and a vote of exactly 0 counts as positive. Elements that
    tie with the last one kept are all kept, as in the paper. A density above 0 keeps at least one.
    """
    del density, rescale, trim_scope  # already contained in what was measured
    ratios = None
    if measured is not None:
        smallest, ratios = measured
        trim(x, smallest)
    return merge_task_vectors(x, weight, ratios, elect=elect, normalize=normalize, lambda_=lambda_)


def trim(x: Rows, smallest: Sequence[tuple[float, ...]]) -> None:
    """Zero, in place, elements of smaller magnitude than their model's smallest kept one, if given."""
    for row, kept in zip(x, smallest, strict=True):
        for threshold in kept:
            kernels.zero_below(row, threshold)


METHOD = Measured(
    name="ties",
    function=ties,
    measure=measure,
    parameters=(
        WEIGHT,
        replace(DENSITY, start=0.5, reason="half; the paper keeps 0.2"),
        normalize_parameter(default=True),
        LAMBDA,
        ELECT,
        Parameter(
            "trim_scope",
            "Whether density counts per tensor or, as in the paper, over all tensors together.",
            default="tensor",
            kind=str,
            choices=("tensor", "model"),
        ),
        Parameter("rescale", "Restore each trimmed task vector's L1 norm.", default=False, kind=bool),
    ),
    base=Base.DELTA,
    measure_model=measure_model,
    model_parameters=("density", "trim_scope"),
    paper="2306.01708",
    fuses=always,
)
