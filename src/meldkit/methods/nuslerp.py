"""nuslerp: spherical interpolation with weights, of weights or of task vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from meldkit import kernels
from meldkit.kernels import Numbers, Rows, Tile
from meldkit.kernels.elsewhere import row_products
from meldkit.methods.base import Base, Measured, Whole
from meldkit.methods.linear import WEIGHT
from meldkit.methods.parameter import Parameter
from meldkit.methods.statistics import ColumnGram, Gram, Statistic

#: A vector is taken to be at least this long.
_MIN_NORM = 1e-7
#: Below this sine two directions are one; so close to opposite they have no arc between them.
_MIN_SINE = 1e-8
_OPPOSITE = -1 + 1e-6


def measure(whole: Whole, *, nuslerp_flatten: bool, nuslerp_row_wise: bool, **_: object) -> Statistic | None:
    """Inner products of the vectors that are interpolated; a tile of whole rows gives those of rows."""
    if nuslerp_flatten:
        return Gram(2, whole.numel)
    return (
        ColumnGram(2, whole.numel, whole.num_columns) if nuslerp_row_wise and len(whole.shape) > 1 else None
    )


def fuses(*, nuslerp_flatten: bool, **_: object) -> bool:
    """Where whole tensors count."""
    return nuslerp_flatten


def by_rows(*, nuslerp_flatten: bool, **_: object) -> bool:
    """Vectors along rows or columns need whole rows."""
    return not nuslerp_flatten


def nuslerp(
    x: Rows,
    gram: np.ndarray | None,
    *,
    weight: Sequence[float],
    nuslerp_flatten: bool,
    nuslerp_row_wise: bool,
    num_columns: int = 0,
) -> Numbers:
    """Interpolation along the arc between two models at t = w_2 / (w_1 + w_2).

        θ = sin((1−t)Ω)/sin Ω · x_1 + sin(tΩ)/sin Ω · x_2        cos Ω = ⟨x_1, x_2⟩ / (‖x_1‖ ‖x_2‖)

    x_i are task vectors if there is a base, to which the result is added; else weights. Vectors are whole
    tensors (nuslerp_flatten), else rows of their last dimension, or with `nuslerp_row_wise` columns: the name
    is mergekit's and says the opposite of what it does. Weights that sum to 0 give t = ½. Parallel and
    exactly opposite vectors are interpolated along the line.
    """
    t = _position(weight)
    if nuslerp_flatten:
        assert gram is not None
        first, second = _coefficients(gram, t)
        return kernels.combine(x, [float(first), float(second)])
    assert not isinstance(x, Tile)
    del nuslerp_row_wise  # decided what was measured
    a, b = x.view(2, -1, num_columns)
    if gram is None:
        products = [row_products(left, right) for left, right in ((a, a), (a, b), (b, b))]
        first, second = _coefficients(_matrix(*(p.cpu().numpy() for p in products)), t)
        shape = (-1, 1)
    else:
        first, second = _coefficients(gram, t)
        shape = (1, -1)
    factors = [torch.from_numpy(c.astype(np.float32)).view(shape).to(x.device) for c in (first, second)]
    return a.mul_(factors[0]).addcmul_(b, factors[1]).view(-1)


def _position(weight: Sequence[float]) -> float:
    """t."""
    total = weight[0] + weight[1]
    return weight[1] / total if abs(total) >= 1e-6 else 0.5


def _matrix(aa: np.ndarray, ab: np.ndarray, bb: np.ndarray) -> np.ndarray:
    """Gram matrices `[2, 2, vectors]`."""
    return np.array([[aa, ab], [ab, bb]])


def _coefficients(gram: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of both vectors, for one Gram matrix `[2, 2]` or many `[2, 2, vectors]`."""
    norms = np.maximum(np.sqrt([gram[0, 0], gram[1, 1]]), _MIN_NORM)
    cosine = np.clip(gram[0, 1] / (norms[0] * norms[1]), -1, 1)
    omega = np.arccos(cosine)
    sine = np.sin(omega)
    straight = (np.abs(sine) < _MIN_SINE) | (cosine < _OPPOSITE)
    divisor = np.where(straight, 1, sine)
    first = np.where(straight, 1 - t, np.sin((1 - t) * omega) / divisor)
    second = np.where(straight, t, np.sin(t * omega) / divisor)
    return first, second


METHOD = Measured(
    name="nuslerp",
    function=nuslerp,
    measure=measure,
    parameters=(
        WEIGHT,
        Parameter("nuslerp_flatten", "Interpolate whole tensors.", default=True, kind=bool),
        Parameter(
            "nuslerp_row_wise",
            "Without flattening, interpolate columns instead of rows.",
            default=False,
            kind=bool,
        ),
    ),
    base=Base.OPTIONAL_DELTA,
    num_models=(2, 2),
    by_rows=by_rows,
    fuses=fuses,
)
