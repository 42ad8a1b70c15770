"""nearswap: take the other model's value where it is near the base's."""

from __future__ import annotations

from meldkit.methods.base import Base, Elementwise
from meldkit.methods.parameter import Parameter
from meldkit.shapes import Float32, Tensor

#: Weights of fine-tunes rarely differ by as much: a step of that size is the other model.
_LARGEST_STEP = 0.1


def nearswap(x: Float32[Tensor, "1 n"], *, t: float) -> Float32[Tensor, " n"]:
    """The other model where it is within t of the base, else a step of t from the base towards it.

        θ = θ_0 + clip(θ_1 − θ_0, −t, t)

    Source: the interpolation weight min(1, t / |θ_1 − θ_0|) of alchemonaut's nearswap, written out.
    """
    return x[0].clamp_(-t, t)


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
    num_models=(1, 1),
)
