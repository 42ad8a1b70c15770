"""ramplus_tl: ram, with a model's own changes amplified by how much it shares."""

from __future__ import annotations

from collections.abc import Sequence

from meldkit import kernels
from meldkit.kernels import Numbers, Rows
from meldkit.methods.base import Base, Measured, Whole, always
from meldkit.methods.parameter import Parameter
from meldkit.methods.ram import EPSILON
from meldkit.methods.statistics import Statistic, Sums


def measure(whole: Whole, *, epsilon: float, **_: object) -> Statistic:
    """For each model, how many elements it alone changed; then for each, how many it shares."""

    def counts(x: Rows) -> list[list[float]]:
        changed, alone = kernels.count_changed(x, epsilon)
        return [[*alone, *(c - a for c, a in zip(changed, alone, strict=True))]]

    return Sums(counts, 2 * whole.num_models, whole.numel)


def ramplus_tl(x: Rows, counts: Sequence[float], *, r: float, alpha: float, epsilon: float) -> Numbers:
    """As ram, with each model's unshared changes amplified by how much of what it changed is shared.

        ρ_i = shared_i / unique_i               numbers of changed elements of this tensor
        f_i = 1 + r · clip(ρ_i, 0, α)
        θ   = θ_0 + f_i τ_i                     where only model i changed the element
        θ   = θ_0 + Σ_A τ_i / |A|               elsewhere

    Paper: Reinforced Agent Merging, https://arxiv.org/abs/2601.13572 (RAM+); ratios are per tensor, as in
    mergekit. Where a model has no change of its own, ρ_i is shared_i / ε.
    """
    m = len(x)
    unique, shared = counts[:m], counts[m:]
    ratios = [
        common / max(own, epsilon) if own or epsilon else 0.0
        for own, common in zip(unique, shared, strict=True)
    ]
    return kernels.average_changed(x, epsilon, [r * min(max(ratio, 0.0), alpha) for ratio in ratios])


METHOD = Measured(
    name="ramplus_tl",
    function=ramplus_tl,
    measure=measure,
    parameters=(
        Parameter("r", "Strength of the amplification.", default=0.1),
        Parameter("alpha", "Largest ratio of shared to own changes that counts.", default=0.2, low=0),
        EPSILON,
    ),
    base=Base.DELTA,
    fuses=always,
    paper="2601.13572",
)
