"""karcher: mean on the sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from meldkit.methods.base import Base, Spanned
from meldkit.methods.linear import normalized
from meldkit.methods.parameter import COMPAT, Parameter
from meldkit.shapes import Float64

#: Below this sine of its angle to the mean, a model is in line with it or opposite: nothing pulls aside.
_MIN_SINE = 1e-6

#: Lengths of this size come from rounding in the Gram matrix.
_NOISE = 1e-12


def check_values(*, weight: Sequence[float], compat: bool, **_: object) -> None:
    """Weights, where they count, must not sum to 0."""
    if not compat:
        normalized(weight)


def karcher(
    gram: Float64[np.ndarray, "m m"], *, weight: Sequence[float], max_iter: float, tol: float, compat: bool
) -> Sequence[float]:
    """Weighted mean of the models' directions on the sphere, at their weighted mean length.

        u ← normalize(Σ α_i u_i)                        u_i = x_i / ‖x_i‖, α_i = w_i / Σ w
        T = Σ α_i (Ω_i / sin Ω_i) (u_i − cos Ω_i u)     Ω_i = angle between u and u_i
        u ← cos‖T‖ u + sin‖T‖ T / ‖T‖                   until ‖T‖ < tol, at most max_iter times
        θ = (Σ α_i ‖x_i‖) u

    Source: H. Karcher, Riemannian center of mass and mollifier smoothing, 1977. x_i are whole weights. Models
    shorter than tol have no direction and only count in the length. mergekit ignores weights; so does
    `compat: mergekit`. A model opposite to the mean has no direction towards it and is left out of the step.
    """
    m = len(gram)
    weights = np.ones(m) if compat else np.array(weight, float)
    total = weights.sum()
    share = weights / total
    norms = np.sqrt(np.diag(gram))
    length = float(share @ norms)
    directed = norms > tol
    pulling = share[directed].sum()
    if not directed.any() or abs(pulling) < 1e-8:
        return [0.0] * m
    # Everything lives in the span of the inputs: vectors are coefficients, products use the Gram matrix.
    units = np.diag(np.where(directed, 1 / np.where(directed, norms, 1), 0))[directed]
    alpha = share[directed] / pulling

    def norm(v: np.ndarray) -> float:
        return math.sqrt(max(0.0, float(v @ gram @ v)))

    mean = alpha @ units
    mean = units[0] if norm(mean) <= max(tol, _NOISE) else mean / norm(mean)
    for _ in range(int(max_iter)):
        cosines = np.clip(units @ gram @ mean, -1, 1)
        angles = np.arccos(cosines)
        sines = np.sin(angles)
        pulls = np.where((angles < tol) | (sines < _MIN_SINE), 0, angles / np.maximum(sines, _MIN_SINE))
        step = (alpha * pulls) @ (units - cosines[:, None] * mean)
        size = norm(step)
        if size <= max(tol, _NOISE):
            break
        mean = math.cos(size) * mean + math.sin(size) * step / size
        mean = mean / norm(mean)
    return (length * mean).tolist()


METHOD = Spanned(
    name="karcher",
    function=karcher,
    parameters=(
        Parameter("weight", "Share of the model in the mean.", default=1.0, per_model=True),
        Parameter("max_iter", "Most iterations.", default=10.0, low=0),
        Parameter("tol", "Length of a step that ends the iteration.", default=1e-5, low=0),
        COMPAT,
    ),
    base=Base.MEMBER,
    check_values=check_values,
)
