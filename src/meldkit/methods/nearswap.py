"""nearswap: take the other model's value where it is near the base's."""

from __future__ import annotations

from meldkit import kernels
from meldkit.kernels import Numbers, Rows
from meldkit.methods.base import Base, Elementwise, always
from meldkit.methods.parameter import Parameter

#: Weights of fine-tunes rarely differ by as much: a step of that size is the other model.
_LARGEST_STEP = 0.1


def nearswap(x: Rows, *, t: float) -> Numbers:
    """The other model where it is within t of the base, else a step of t from the base towards it.

        θ = θ_0 + clip(θ_1 − θ_0, −t, t)

    Source: the interpolation weight min(1, t / |θ_1 − θ_0|) of alchemonaut's nearswap, written out.
    """
    return kernels.clamp(x[0], -t, t)


METHOD = Elementwise(
    name="nearswap",
    function=nearswap,
    parameters=(
        Parameter(
            "t",
            "Largest step away from the base.",
            low=0,
            usual=(0, _LARGEST_STEP),
            start=0.0001,
            reason="a fine-tune changes most weights by about as much",
        ),
    ),
    base=Base.DELTA,
    fuses=always,
    num_models=(1, 1),
)
