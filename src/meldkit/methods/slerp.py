"""slerp: spherical interpolation of two models."""

from __future__ import annotations

import math

import numpy as np

from meldkit.methods.base import Base, Spanned
from meldkit.methods.parameter import Parameter
from meldkit.shapes import Float64

#: Beyond this |cosine| the arc is a line; the customary threshold of slerp implementations.
COLLINEAR = 0.9995
#: A vector shorter than this has no direction.
_MIN_NORM = 1e-8


def slerp(gram: Float64[np.ndarray, "2 2"], *, t: float) -> tuple[float, float]:
    """Interpolation along the arc between two models; the base model is the start (t = 0).

        θ = sin((1−t)Ω)/sin Ω · θ_0 + sin(tΩ)/sin Ω · θ_1      cos Ω = ⟨θ_0, θ_1⟩ / (‖θ_0‖ ‖θ_1‖)

    Angles are those of whole tensors, taken as one vector each; lengths are not normalised. Where
    |cos Ω| > 0.9995 (nearly all tensors of two fine-tunes of one model) or one tensor is zero, it is
    the straight line (1−t) θ_0 + t θ_1.

    Source: K. Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
    """
    first, second = math.sqrt(gram[0, 0]), math.sqrt(gram[1, 1])
    # A vector without direction stays unnormalised, as its product with anything is then 0.
    scale = (first if first > _MIN_NORM else 1.0) * (second if second > _MIN_NORM else 1.0)
    cosine = float(gram[0, 1]) / scale
    if abs(cosine) > COLLINEAR:
        return 1.0 - t, t
    omega = math.acos(cosine)
    sine = math.sin(omega)
    return math.sin((1.0 - t) * omega) / sine, math.sin(t * omega) / sine


METHOD = Spanned(
    name="slerp",
    function=slerp,
    parameters=(
        Parameter(
            "t",
            "Position on the arc: 0 is the base model, 1 the other one.",
            usual=(0, 1),
            start=0.5,
            reason="half way",
        ),
    ),
    base=Base.ENDPOINT,
    num_models=(2, 2),
)
