"""Every method once more, straight from its formula: whole tensors in float64, no tiles.

Written from the papers, not from `meldkit.methods`, so that a mistake has to be made twice to go unseen.
An oracle takes flat float64 vectors and the parameters of the method, by their Python names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Vector = np.ndarray

#: Relative size below which float32 arithmetic cannot be trusted to give the right sign.
_NEAR = 1e-6


@dataclass(frozen=True)
class Answer:
    """What a method should give.

    Attributes:
        value: the merged vector, float64.
        size: largest magnitude that is met on the way, per element: Σ|c_i x_i|. Rounding errors are
            measured against it and against the inputs.
        doubt: elements that would jump if an input changed by less than float32 resolves (an election
            that is nearly a tie, a magnitude next to a threshold). They are not compared.
    """

    value: Vector
    size: Vector
    doubt: bool | Vector = False


def linear(models: Sequence[Vector], base: None, *, weight: Sequence[float], normalize: bool) -> Answer:
    """Σ w_i θ_i, divided by Σ w_i."""
    assert base is None
    divisor = math.fsum(weight) if normalize else 1.0
    terms = [w / divisor * x for w, x in zip(weight, models, strict=True)]
    return Answer(np.sum(terms, 0), np.abs(terms).sum(0))


def passthrough(models: Sequence[Vector], base: None, *, scale: Sequence[float]) -> Answer:
    """scale · θ_1."""
    assert base is None
    return Answer(scale[0] * models[0], np.abs(scale[0] * models[0]))


def task_arithmetic(
    models: Sequence[Vector], base: Vector, *, weight: Sequence[float], normalize: bool, lambda_: float
) -> Answer:
    """θ_0 + λ Σ w_i τ_i, divided by Σ w_i."""
    divisor = math.fsum(weight) if normalize else 1.0
    terms = [lambda_ * w / divisor * (x - base) for w, x in zip(weight, models, strict=True)]
    return Answer(base + np.sum(terms, 0), np.abs(terms).sum(0))


def slerp(models: Sequence[Vector], base: None, *, t: float) -> Answer:
    """sin((1−t)Ω)/sin Ω a + sin(tΩ)/sin Ω b; the straight line where |cos Ω| > 0.9995."""
    assert base is None
    a, b = models
    units = []
    for x in models:
        norm = math.sqrt(math.fsum(x * x))
        units.append(x / norm if norm > 1e-8 else x)
    cosine = math.fsum(units[0] * units[1])
    if abs(cosine) > 0.9995:
        start, end = 1 - t, t
    else:
        omega = math.acos(cosine)
        start, end = math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)
    doubt = abs(abs(cosine) - 0.9995) < 1e-12
    return Answer(start * a + end * b, abs(start) * np.abs(a) + abs(end) * np.abs(b), doubt)


def ties(
    models: Sequence[Vector],
    base: Vector,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    lambda_: float,
    rescale: bool,
) -> Answer:
    """Trim each task vector by magnitude, elect a sign per element, average those that have it."""
    doubt = np.zeros(base.shape, bool)
    trimmed = []
    for x, d in zip(models, density, strict=True):
        delta = x - base
        kept, near = magnitude(delta, d)
        doubt |= near
        if rescale:
            kept = kept * l1_ratio(delta, kept)
            doubt |= near.any()  # the ratio depends on what was kept
        trimmed.append(kept)
    answer = elect(trimmed, weight, normalize=normalize)
    return Answer(base + lambda_ * answer.value, abs(lambda_) * answer.size, doubt | answer.doubt)


def magnitude(delta: Vector, density: float) -> tuple[Vector, Vector]:
    """The trunc(density · n) largest elements, at least one and all that tie with the last; and doubt."""
    near = np.zeros(delta.shape, bool)
    if density >= 1 or delta.size == 0:
        return delta, near
    k = max(1, math.trunc(density * delta.size))
    size = np.abs(delta)
    threshold = np.sort(size)[::-1][k - 1]
    close = np.abs(size - threshold) <= 3e-7 * threshold
    if close.sum() > 1 and not exact(delta[close]).all():
        near = close
    return np.where(size >= threshold, delta, 0.0), near


def l1_ratio(before: Vector, after: Vector) -> float:
    """Σ|before| / Σ|after|, 1 where one of them vanishes."""
    whole, rest = math.fsum(np.abs(before)), math.fsum(np.abs(after))
    return whole / rest if min(whole, rest) >= 1e-7 else 1.0


def elect(deltas: Sequence[Vector], weight: Sequence[float], *, normalize: bool) -> Answer:
    """Sign election on weighted deltas (a vote of 0 is positive), and the sum of those that agree."""
    x = np.stack([w * delta for w, delta in zip(weight, deltas, strict=True)])
    w = np.array(weight)[:, None]
    vote, spread = x.sum(0), np.abs(x).sum(0)
    elected = np.where(vote >= 0, 1.0, -1.0)
    agree = np.sign(x) == elected
    total, size = np.where(agree, x, 0.0).sum(0), spread
    doubt = (np.abs(vote) <= _NEAR * spread) & (spread > 0) & ~exact_sum(x)
    if normalize:
        shares = np.where(agree, w, 0.0)
        divisor, largest = shares.sum(0), np.abs(shares).sum(0)
        doubt |= (np.abs(divisor) <= 1e-4 * largest) & ~exact_sum(shares)
        divisor = np.where(divisor == 0, 1.0, divisor)
        # A divisor in which weights cancel is itself known less well.
        size = np.abs(total / divisor) * np.maximum(1.0, largest / np.abs(divisor)) + size / np.abs(divisor)
        total = total / divisor
    return Answer(total, size, doubt)


def exact(x: Vector) -> Vector:
    """Which numbers float32 can hold."""
    return x.astype(np.float32).astype(np.float64) == x


def exact_sum(x: Vector) -> Vector:
    """Along axis 0: whether float32 makes no error in the terms and in the partial sums."""
    return exact(x).all(0) & exact(np.cumsum(x, axis=0)).all(0)


def rounded(x: Vector, dtype: str) -> Vector:
    """The nearest number of a dtype, ties to even, rounded once from float64; given as float64."""
    if dtype == "bfloat16":
        mantissa, exponent = np.frexp(x)
        return np.ldexp(np.rint(mantissa * 256), exponent - 8)
    return x.astype(dtype).astype(np.float64)


#: Any parameters of a method, by Python names; per-model ones are lists.
Parameters = dict[str, Any]
