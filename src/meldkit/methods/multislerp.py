"""multislerp: normalised average of any number of models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from meldkit.methods.base import Base, Spanned
from meldkit.methods.linear import WEIGHT, normalized
from meldkit.methods.parameter import Parameter
from meldkit.shapes import Float64

#: Directions that cancel out leave this much, relative to their weights, by rounding in the Gram matrix.
_NOISE = 1e-7


def check_values(*, weight: Sequence[float], normalize_weights: bool, **_: object) -> None:
    """Weights that are to be normalized must not sum to 0; the weight of a single model does not count."""
    if normalize_weights and len(weight) > 1:
        normalized(weight)


def multislerp(
    gram: Float64[np.ndarray, "m m"], *, weight: Sequence[float], normalize_weights: bool, eps: float
) -> Sequence[float]:
    """Weighted mean direction of the models, at their weighted mean length.

        u_i = x_i / (‖x_i‖ + ε)       μ = Σ w_i u_i
        θ   = (Σ w_i ‖x_i‖) · μ / ‖μ‖

    x_i are task vectors if there is a base, else weights. As in mergekit; its step along the sphere from μ is
    zero, because μ is the mean with the same weights, so that this is a normalised average and not slerp for
    two models. For a mean on the sphere take karcher. Where directions cancel out (‖μ‖ < ε), it is Σ w_i x_i.
    """
    if len(weight) == 1:
        return [1.0]
    shares = np.array(normalized(weight) if normalize_weights else weight)
    norms = np.sqrt(np.diag(gram))
    lengths = norms + eps
    direction = np.where(lengths > 0, shares / np.where(lengths > 0, lengths, 1), 0)
    length = math.sqrt(max(0.0, float(direction @ gram @ direction)))
    if length < max(eps, _NOISE * float(np.abs(shares).sum())):
        return shares.tolist()
    return (direction * float(shares @ norms) / length).tolist()


METHOD = Spanned(
    name="multislerp",
    function=multislerp,
    parameters=(
        WEIGHT,
        Parameter("normalize_weights", "Divide the weights by their sum.", default=True, kind=bool),
        Parameter("eps", "Length below which there is no direction.", default=1e-8, low=0),
    ),
    base=Base.OPTIONAL_DELTA,
    num_models=(1, None),
    check_values=check_values,
)
