"""sce: select varied elements, weigh models by energy, erase disagreeing signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meldkit import kernels
from meldkit.kernels import Numbers, Rows
from meldkit.methods.base import Base, Measured, Whole, always
from meldkit.methods.parameter import COMPAT, Parameter
from meldkit.methods.statistics import CHUNK, Bits, Chain, ChunkSums, Derived, Known, KthMagnitude, Statistic

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
        selection = Derived(lambda x, _: [kernels.variance(x)], KthMagnitude([[rank]], whole.numel))
    # Bits of what is selected.
    held = whole.numel // 8 if select_topk < 1 else 0
    return Chain(selection, energies, lambda _, measured: measured, passes=1, held=held)


class _Energies(ChunkSums):
    """Each model's mean square of what is selected; and what that is, one bit per element.

    Variances cost more than remembering a bit, so the pass that applies does not compute them again.
    """

    def __init__(self, threshold: float, whole: Whole, *, remember: bool) -> None:
        super().__init__(whole.num_models, whole.numel)
        self._threshold = threshold
        self._remember = remember and threshold > 0
        self._bits = Bits()

    def update(self, x: Rows, start: int) -> Any:
        return start, x.shape[1], *kernels.squares_of_selected(x, self._threshold, CHUNK)

    def absorb(self, partial: Any) -> None:
        start, n, bits, squares = partial
        if self._remember:
            self._bits.remember(start, n, bits)
        super().absorb(squares)

    @property
    def result(self) -> Measurement:
        energies = [total / self._numel for total in super().result]
        return Measurement(self._bits if self._remember else None, energies)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured.

    Attributes:
        selected: which elements; None if everything is merged.
        energies: mean square of each model's selected elements.
    """

    selected: Bits | None
    energies: list[float]


def sce(
    x: Rows,
    measured: Measurement,
    *,
    select_topk: float,
    fuse: str,
    compat: bool,
    start: int,
) -> Numbers:
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
        bits = measured.selected.of(start, x.shape[1])
        for row in x:
            kernels.keep_bits(row, bits)
    return kernels.elect(x, [1.0] * len(x), share, share, least=_MIN_SHARE, lambda_=1)


METHOD = Measured(
    name="sce",
    function=sce,
    measure=measure,
    parameters=(
        Parameter(
            "select_topk",
            "Share of the varying elements to select.",
            default=1.0,
            low=0,
            high=1,
            start=0.1,
            reason="as in the authors' configurations",
        ),
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
    fuses=always,
    positional=True,
    paper="2408.07990",
)
