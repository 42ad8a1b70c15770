"""sce: select varied elements, weigh models by energy, erase disagreeing signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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


def measure(whole: Whole, *, select_topk: float, fuse: str, **_: object) -> Statistic:
    """What is selected (None for all), and each model's mean square of it."""

    def rank(num_varied: int) -> int:
        return math.trunc(num_varied * select_topk)

    def energies(found: Sequence[tuple[float, ...]] | None) -> Statistic:
        return _Energies(0.0 if found is None else found[0][0], whole, remember=fuse == "selected")

    selection: Statistic = Known(None)
    if select_topk < 1:
        selection = Derived(lambda x, _: variance(x).unsqueeze(0), KthMagnitude([[rank]], whole.numel))
    return Chain(selection, energies, lambda _, measured: measured)


class _Energies(Sums):
    """Each model's mean square of what is selected; and what that is, one bit per element.

    Variances cost more than remembering a bit, so the pass that applies does not compute them again.
    """

    def __init__(self, threshold: float, whole: Whole, *, remember: bool) -> None:
        super().__init__(_squares, whole.num_models, whole.numel)
        self._threshold = threshold
        self._remember = remember and threshold > 0
        self._bits: dict[int, np.ndarray] = {}

    def update(self, x: Float32[Tensor, "m n"], start: int) -> Any:
        bits = None
        if self._threshold > 0:
            keep = np.greater_equal(variance(x).numpy(), self._threshold)
            np.multiply(x.numpy(), keep, out=x.numpy())
            bits = np.packbits(keep) if self._remember else None
        return start, bits, super().update(x, start)

    def absorb(self, partial: Any) -> None:
        start, bits, squares = partial
        if bits is not None:
            self._bits[start] = bits
        super().absorb(squares)

    @property
    def result(self) -> Measurement:
        energies = [total / self._numel for total in super().result]
        return Measurement(self._bits if self._remember else None, energies)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured.

    Attributes:
        selected: bits of each tile, by its first element; None if everything is merged.
        energies: mean square of each model's selected elements.
    """

    selected: dict[int, np.ndarray] | None
    energies: list[float]


def _squares(x: Float32[Tensor, "m n"], start: int) -> list[float]:
    del start
    return [torch.sum(row.square_(), dtype=torch.float64).item() for row in x]


def variance(x: Float32[Tensor, "m n"]) -> Float32[Tensor, " n"]:
    """Population variance over the models, at each element."""
    if len(x) == 1:
        return torch.zeros_like(x[0])
    # Differences from the first model are 0 where all agree, which rounding the mean would hide.
    differences = x[1:] - x[0]
    mean = sum_rows(differences).div_(len(x))
    total = mean.square()  # of the first model, whose difference is 0
    for row in differences.sub_(mean):
        total.addcmul_(row, row)
    return total.div_(len(x))


def sce(
    x: Float32[Tensor, "m n"],
    measured: Measurement,
    *,
    select_topk: float,
    fuse: str,
    compat: bool,
    start: int,
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
    del select_topk, fuse  # already contained in what was measured
    total = math.fsum(measured.energies)
    negligible = total < _COMPAT_MIN_ENERGY if compat else total == 0
    share = [1 / len(x)] * len(x) if negligible else [e / total for e in measured.energies]
    if measured.selected is not None:
        keep = np.unpackbits(measured.selected[start], count=x.shape[1]).view(bool)
        np.multiply(x.numpy(), keep, out=x.numpy())
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
    positional=True,
    paper="2408.07990",
)
