"""sce: select varied elements, weigh models by energy, erase disagreeing signs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from meldkit.methods._task_vectors import elect_and_sum, sum_rows
from meldkit.methods.base import COMPAT, Base, Measured, Parameter, Whole
from meldkit.methods.statistics import Chain, Derived, Known, KthMagnitude, Statistic, Sums
from meldkit.shapes import Float32

#: Below this sum of mean squares mergekit weighs all models equally: nearly always, for language models.
_COMPAT_MIN_ENERGY = 1e-6
#: The sum of agreeing weights is taken to be at least this much.
_MIN_SHARE = 1e-6


def measure(whole: Whole, *, select_topk: float, **_: object) -> Statistic:
    """The smallest selected variance (None if none is), and each model's mean square of what is selected."""

    def kth(counts: Sequence[float]) -> Statistic | None:
        k = math.trunc(counts[0] * select_topk)
        if k == 0:
            return None
        return Derived(lambda x, _: variance(x).unsqueeze(0), KthMagnitude([[k]], whole.numel))

    def energies(threshold: float | None) -> Statistic:
        def squares(x: Tensor, start: int) -> Sequence[float]:
            del start
            select(x, threshold)
            return [torch.sum(row.square_(), dtype=torch.float64).item() / whole.numel for row in x]

        return Sums(squares, whole.num_models, whole.numel)

    num_varied = Sums(lambda x, _: [int(torch.count_nonzero(variance(x)))], 1, whole.numel)
    selection: Statistic = Known(0.0)
    if select_topk < 1:
        selection = Chain(num_varied, kth, lambda _, found: None if found is None else found[0][0])
    return Chain(selection, energies)


def variance(x: Float32[Tensor, "m n"]) -> Float32[Tensor, " n"]:
    """Population variance over the models, at each element."""
    # Differences from the first model are 0 where all agree, which rounding the mean would hide.
    differences = x - x[0]
    mean = sum_rows(differences).div_(len(x))
    total = torch.zeros_like(mean)
    for row in differences.sub_(mean):
        total.addcmul_(row, row)
    return total.div_(len(x))


def select(x: Float32[Tensor, "m n"], threshold: float | None) -> None:
    """Zero, in place, the elements of smaller variance than the threshold; all if it is None."""
    if threshold is None:
        x.zero_()
    elif threshold > 0:
        keep = variance(x).ge_(threshold)
        for row in x:
            row.mul_(keep)


def sce(
    x: Float32[Tensor, "m n"],
    measured: tuple[float | None, Sequence[float]],
    *,
    select_topk: float,
    fuse: str,
    compat: bool,
) -> Float32[Tensor, " n"]:
    """Task vectors weighed by their energy, where they vary most and agree in sign.

        S    = the select_topk share of the elements of τ that vary (at all), by variance over the models
        c_i  = mean_j (S τ_ij)², over their sum over the models
        A    = {i : sign(τ_i) = sign(Σ τ_i)}, a sum of 0 counting as positive
        θ    = θ_0 + Σ_A c_i S τ_i / Σ_A c_i                  (fuse: all uses τ_i in place of S τ_i here)

    Paper: FuseChat, https://arxiv.org/abs/2408.07990. With `fuse: all`, selection only decides the weights,
    as in the authors' code. If all energies are 0, models weigh the same; `compat: mergekit` also weighs
    them the same when their sum is below 1e-6, as mergekit does.
    """
    del select_topk  # already contained in the threshold
    threshold, energies = measured
    total = math.fsum(energies)
    negligible = total < _COMPAT_MIN_ENERGY if compat else total == 0
    share = [1 / len(x)] * len(x) if negligible else [e / total for e in energies]
    if fuse == "selected":
        select(x, threshold)
    merged, agreeing = elect_and_sum(x, share, share)
    return merged.div_(agreeing.clamp_min_(_MIN_SHARE))


METHOD = Measured(
    name="sce",
    function=sce,
    measure=measure,
    parameters=(
        Parameter("select_topk", "Share of the varying elements to select.", default=1.0, low=0, high=1),
        Parameter(
            "fuse",
            "Whether only selected elements are merged, or all.",
            default="selected",
            kind=str,
            choices=("selected", "all"),
        ),
        COMPAT,
    ),
    base=Base.DELTA,
    paper="2408.07990",
)
