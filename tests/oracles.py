"""Every method once more, straight from its formula: whole tensors in float64, no tiles.

Written from the papers, not from `meldkit.methods`, so that a mistake has to be made twice to go unseen.
An oracle takes flat float64 vectors and the parameters of the method, by their Python names; where rows
matter also the shape, where numbers are drawn the seed and the tensor's name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
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
        absolute: whether a number was compared with a constant such as 1e-7 and was so small that it, or
            half of it, fell below: then nothing scales with the inputs.
    """

    value: Vector
    size: Vector
    doubt: bool | Vector = False
    absolute: bool = False


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


def sparsified(
    models: Sequence[Vector],
    base: Vector,
    sparsify: Callable[[Vector, int], tuple[Vector, Vector]],
    *,
    weight: Sequence[float],
    normalize: bool,
    lambda_: float,
    elect: str | None,
    l1: bool = False,
    ratios: Sequence[float] | None = None,
) -> Answer:
    """θ_0 + λ Σ w_i r_i τ̂_i, where `sparsify` gives τ̂ of a task vector and of its position, and doubt.

    `l1` restores each task vector's norm, else r_i are `ratios`; `elect` names the votes that elect a sign.
    """
    doubt = np.zeros(base.shape, bool)
    absolute = False
    trimmed = []
    factors = []
    for model, x in enumerate(models):
        delta = x - base
        kept, near = sparsify(delta, model)
        doubt |= near
        ratio = 1.0 if ratios is None else ratios[model]
        if l1 and kept is not delta:
            ratio, small = l1_ratio(delta, kept)
            absolute |= small
            doubt |= near.any()  # the ratio depends on what was kept
        trimmed.append(kept * ratio)
        factors.append(ratio * (1.0 if elect == "unweighted" else weight[model]))
    if elect is None:
        divisor = math.fsum(weight) if normalize else 1.0
        terms = [w / divisor * kept for w, kept in zip(weight, trimmed, strict=True)]
        answer = Answer(np.sum(terms, 0), np.abs(terms).sum(0))
    else:
        votes = weight if elect == "weighted" else [1.0] * len(models)
        plain = bool(exact(np.array(factors)).all())
        answer = elected(trimmed, weight, normalize=normalize, votes=votes, plain=plain)
    return Answer(base + lambda_ * answer.value, abs(lambda_) * answer.size, doubt | answer.doubt, absolute)


def ties(
    models: Sequence[Vector],
    base: Vector,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    lambda_: float,
    rescale: bool,
    elect: str,
    trim_scope: str,
) -> Answer:
    """Trim each task vector by magnitude, elect a sign per element, average those that have it."""
    del trim_scope  # of one tensor, the same
    return sparsified(
        models,
        base,
        lambda delta, model: magnitude(delta, density[model]),
        weight=weight,
        normalize=normalize,
        lambda_=lambda_,
        l1=rescale,
        elect=elect,
    )


def breadcrumbs(
    models: Sequence[Vector],
    base: Vector,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    normalize: bool,
    lambda_: float,
    rescale: bool,
    elect: str | None = None,
) -> Answer:
    """Drop both tails of the magnitudes."""
    return sparsified(
        models,
        base,
        lambda delta, model: outliers(delta, density[model], gamma[model]),
        weight=weight,
        normalize=normalize,
        lambda_=lambda_,
        l1=rescale,
        elect=elect,
    )


def breadcrumbs_ties(models: Sequence[Vector], base: Vector, **parameters: Any) -> Answer:
    """The same with sign election."""
    return breadcrumbs(models, base, **parameters, elect="weighted")


def dare_linear(
    models: Sequence[Vector],
    base: Vector,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    lambda_: float,
    rescale: str,
    seed: int,
    tensor: str,
    elect: str | None = None,
) -> Answer:
    """Keep each element with probability density."""

    def drop(delta: Vector, model: int) -> tuple[Vector, Vector]:
        d = density[model]
        near = np.zeros(delta.shape, bool)
        if d >= 1:
            return delta, near
        if d == 0:
            return np.zeros_like(delta), near
        levels = max(1, round(d * 65536))
        return np.where(numbers(seed, tensor, model, delta.size) < levels, delta, 0.0), near

    ratios = [65536 / max(1, round(d * 65536)) for d in density]
    return sparsified(
        models,
        base,
        drop,
        ratios=ratios if rescale == "inverse_density" else None,
        weight=weight,
        normalize=normalize,
        lambda_=lambda_,
        l1=rescale == "l1",
        elect=elect,
    )


def dare_ties(models: Sequence[Vector], base: Vector, **parameters: Any) -> Answer:
    """The same with sign election."""
    return dare_linear(models, base, **parameters, elect="weighted")


def della_linear(
    models: Sequence[Vector],
    base: Vector,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    normalize: bool,
    lambda_: float,
    rescale: str,
    seed: int,
    tensor: str,
    shape: tuple[int, ...],
    elect: str | None = None,
) -> Answer:
    """Keep each element with a probability that grows with the rank of its magnitude in its row."""

    def drop(delta: Vector, model: int) -> tuple[Vector, Vector]:
        near = np.zeros(delta.shape, bool)
        if density[model] >= 1:
            return delta, near
        if density[model] == 0:
            return np.zeros_like(delta), near
        exact_levels = 65536 * keep_probability(delta, density[model], epsilon[model], shape)
        levels = np.rint(exact_levels).clip(1, 65535)
        drawn = numbers(seed, tensor, model, delta.size)
        # Halfway between two levels the last bits of p choose one.
        near = np.abs(exact_levels % 1 - 0.5) < 1e-6
        if rescale == "keep_probability":
            return np.where(drawn < levels, delta * 65536 / levels, 0.0), near
        return np.where(drawn < levels, delta, 0.0), near & (np.abs(drawn - exact_levels) < 1)

    return sparsified(
        models,
        base,
        drop,
        weight=weight,
        normalize=normalize,
        lambda_=lambda_,
        l1=rescale == "l1",
        elect=elect,
    )


def della(models: Sequence[Vector], base: Vector, **parameters: Any) -> Answer:
    """The same with sign election."""
    return della_linear(models, base, **parameters, elect="weighted")


def keep_probability(delta: Vector, density: float, epsilon: float, shape: tuple[int, ...]) -> Vector:
    """(density − ε) + 2 ε rank / (n − 1), ranks from 0 by magnitude in float32, ties by position."""
    table = np.abs(rows(delta, shape).astype(np.float32))
    n = table.shape[1]
    if n == 1:
        return np.full(delta.size, density)
    rank = np.empty(table.shape)
    np.put_along_axis(rank, np.argsort(table, axis=1, kind="stable"), np.arange(n)[None, :], axis=1)
    return ((density - epsilon) + 2 * epsilon * rank / (n - 1)).reshape(-1)


def numbers(seed: int, tensor: str, model: int, n: int) -> np.ndarray:
    """The documented 16-bit numbers of a tensor's first n elements, as int64."""
    key = hashlib.sha256(f"{seed}\0{tensor}\0{model}".encode()).digest()[:16]
    raw = np.random.Philox(key=np.frombuffer(key, "<u8"), counter=0).random_raw(-(-n // 16) * 4)
    return raw.astype("<u8").view("<u2")[:n].astype(np.int64)


def rows(x: Vector, shape: tuple[int, ...]) -> Vector:
    """A matrix of the rows of the last dimension; a tensor of one dimension or none is one row."""
    return x.reshape(-1, shape[-1] if shape else 1)


def norm(x: Vector) -> float:
    """‖x‖."""
    return math.sqrt(math.fsum(x * x))


def nuslerp(
    models: Sequence[Vector],
    base: Vector | None,
    *,
    weight: Sequence[float],
    nuslerp_flatten: bool,
    nuslerp_row_wise: bool,
    shape: tuple[int, ...],
) -> Answer:
    """slerp at t = w_2 / (w_1 + w_2) of tensors, rows, or (row_wise) columns."""
    total = weight[0] + weight[1]
    t = weight[1] / total if abs(total) >= 1e-6 else 0.5
    a, b = models if base is None else [x - base for x in models]
    if nuslerp_flatten:
        pairs = [(a, b)]
    elif nuslerp_row_wise and len(shape) > 1:
        pairs = list(zip(rows(a, shape).T, rows(b, shape).T, strict=True))
    else:
        pairs = list(zip(rows(a, shape), rows(b, shape), strict=True))
    arcs = [arc(first, second, t) for first, second in pairs]

    def whole(parts: list[Vector]) -> Vector:
        table = np.array(parts)
        return (table.T if nuslerp_row_wise and not nuslerp_flatten else table).reshape(-1)

    value = whole([part.value for part in arcs])
    doubt = whole([np.broadcast_to(part.doubt, part.value.shape) for part in arcs])
    if nuslerp_row_wise and not nuslerp_flatten and len(shape) > 2:
        # What a column is has not been said.
        doubt = np.ones(value.shape, bool)
    return Answer(
        value if base is None else base + value,
        whole([part.size for part in arcs]),
        doubt,
        any(part.absolute for part in arcs),
    )


def arc(a: Vector, b: Vector, t: float) -> Answer:
    """Point t of the arc between two vectors; of the line if they are parallel or opposite."""
    lengths = [norm(a), norm(b)]
    first, second = (max(length, 1e-7) for length in lengths)
    cosine = min(1.0, max(-1.0, math.fsum(a * b) / (first * second)))
    omega = math.acos(cosine)
    if abs(math.sin(omega)) < 1e-8 or cosine < -1 + 1e-6:
        start, end, steep = 1 - t, t, 1.0
    else:
        start, end = math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)
        # Next to opposite, the arc turns fast with the inputs.
        steep = 1.0 if cosine > 0 else 1 / math.sin(omega)
    return Answer(
        start * a + end * b,
        steep * (abs(start) * np.abs(a) + abs(end) * np.abs(b)),
        abs(cosine + 1 - 1e-6) < 1e-8,
        any(0 < length < 2e-7 for length in lengths),
    )


def multislerp(
    models: Sequence[Vector],
    base: Vector | None,
    *,
    weight: Sequence[float],
    normalize_weights: bool,
    eps: float,
) -> Answer:
    """(Σ w_i ‖x_i‖) normalize(Σ w_i x_i / (‖x_i‖ + ε)): what is left of its step on the sphere."""
    vectors = models if base is None else [x - base for x in models]
    start = np.zeros_like(models[0]) if base is None else base
    if len(vectors) == 1:
        return Answer(models[0], np.abs(vectors[0]))
    divisor = math.fsum(weight) if normalize_weights else 1.0
    share = [w / divisor for w in weight]
    lengths = [norm(x) for x in vectors]
    terms = [w * x / (length + eps or 1) for w, x, length in zip(share, vectors, lengths, strict=True)]
    mean = np.sum(terms, 0)
    short = norm(mean)
    # What cancels out in the mean is known to a few float32 roundings only.
    known = 1e-4 * math.fsum(map(abs, share))
    if short < max(eps, 1e-7 * math.fsum(map(abs, share))):
        straight = [w * x for w, x in zip(share, vectors, strict=True)]
        return Answer(
            start + np.sum(straight, 0),
            np.abs(straight).sum(0),
            any(length != 0 for length in lengths) and not all(exact_sum(np.array(terms))),
            absolute=True,
        )
    factor = math.fsum(w * length for w, length in zip(share, lengths, strict=True)) / short
    value = factor * mean
    size = abs(factor) * np.abs(terms).sum(0) + np.abs(value) * math.fsum(map(abs, share)) / short
    return Answer(start + value, size, short < known, absolute=short < 4 * eps)


def karcher(
    models: Sequence[Vector],
    base: None,
    *,
    weight: Sequence[float],
    max_iter: float,
    tol: float,
    compat: bool,
) -> Answer:
    """Mean of directions on the sphere by gradient descent, at the mean length."""
    assert base is None
    weights = [1.0] * len(models) if compat else list(weight)
    alpha = np.array(weights) / math.fsum(weights)
    lengths = np.array([norm(x) for x in models])
    length = float(alpha @ lengths)
    directed = lengths > tol
    doubt = bool((np.abs(lengths - tol) < 1e-6 * tol).any())
    absolute = bool(((lengths > 0) & (lengths <= tol)).any())
    largest = np.abs(models).max(0)
    if not directed.any():
        return Answer(np.zeros_like(models[0]), largest, doubt, absolute)
    units = [x / n for x, n, has in zip(models, lengths, directed, strict=True) if has]
    alpha = alpha[directed]
    doubt |= abs(alpha.sum()) < 1e-3 * np.abs(alpha).sum()
    alpha = alpha / (alpha.sum() or 1.0)
    u = np.sum([a * x for a, x in zip(alpha, units, strict=True)], 0)
    doubt |= norm(u) < 1e-3 * np.abs(alpha).sum()
    u = units[0] if norm(u) < tol else u / norm(u)
    for _ in range(int(max_iter)):
        step = np.zeros_like(u)
        for a, x in zip(alpha, units, strict=True):
            cosine = min(1.0, max(-1.0, math.fsum(u * x)))
            angle = math.acos(cosine)
            doubt |= abs(angle - tol) < 0.02 * tol + 3e-8 or 1e-12 < cosine + 1 < 1e-6
            if angle >= tol and math.sin(angle) > 1e-8:
                step = step + a * angle / math.sin(angle) * (x - cosine * u)
        size = norm(step)
        doubt |= abs(size - tol) < 0.02 * tol + 1e-9
        if size < tol:
            break
        doubt |= size > 1  # so far from the mean, steps may grow
        u = math.cos(size) * u + math.sin(size) * step / size
        u = u / norm(u)
    amplified = np.abs(alpha).sum()
    return Answer(length * u, amplified * np.maximum(np.abs(length * u), largest), doubt, absolute)


def sce(models: Sequence[Vector], base: Vector, *, select_topk: float, fuse: str, compat: bool) -> Answer:
    """Select elements of large variance, weigh by energy, erase disagreeing signs."""
    deltas = np.array([x - base for x in models])
    m, n = deltas.shape
    doubt = np.zeros(n, bool)
    selected = deltas
    if select_topk < 1:
        mean = deltas.sum(0) / m
        variance = np.where(np.ptp(deltas, 0) == 0, 0.0, ((deltas - mean) ** 2).sum(0) / m)
        plain = exact_sum(deltas) & exact(mean) & exact_sum((deltas - mean) ** 2) & exact(variance)
        # A spread this much smaller than the numbers may be a rounding error.
        largest = np.abs(deltas).max(0)
        error = 4e-7 * variance + 4e-7 * largest * np.sqrt(variance) + 1e-14 * largest**2
        k = math.trunc(np.count_nonzero(variance) * select_topk)
        unsure = (variance <= 1e-13 * largest**2) & (largest > 0) & ~plain
        if k == 0:
            keep = np.zeros(n, bool)
        else:
            threshold = np.sort(variance)[::-1][k - 1]
            keep = variance >= threshold
            close = np.abs(variance - threshold) <= error + error[variance == threshold].max()
            if close.sum() > 1 and not plain[close].all():
                unsure |= close
        doubt |= unsure.any()  # the weights depend on what was selected
        selected = np.where(keep, deltas, 0.0)
    energy = [math.fsum(x * x) / n for x in selected]
    total = math.fsum(energy)
    even = total < 1e-6 if compat else total == 0
    doubt |= compat and abs(total - 1e-6) < 1e-11
    share = np.array([1 / m] * m if even else energy) / (1.0 if even else total)
    x = selected if fuse == "selected" else deltas
    vote = x.sum(0)
    spread = np.abs(x).sum(0)
    agree = np.sign(x) == np.where(vote >= 0, 1.0, -1.0)
    doubt |= (np.abs(vote) <= _NEAR * spread) & (spread > 0) & ~exact_sum(x)
    c = np.where(agree, share[:, None], 0.0)
    divisor = np.maximum(c.sum(0), 1e-6)
    value, size = (c * x).sum(0) / divisor, (c * np.abs(x)).sum(0) / divisor
    return Answer(base + value, size, doubt, compat and total < 1e-6)


def active(models: Sequence[Vector], base: Vector, epsilon: float) -> tuple[Vector, Vector, Vector]:
    """Task vectors [m, n], where they are larger than ε, and doubt."""
    deltas = np.array([x - base for x in models])
    close = np.abs(np.abs(deltas) - epsilon) <= 3e-7 * epsilon
    near = close & ~(exact(deltas) & exact(np.array(epsilon)))
    return deltas, np.abs(deltas) > epsilon, near


def ram(models: Sequence[Vector], base: Vector, *, epsilon: float) -> Answer:
    """Mean over the models that changed an element."""
    deltas, on, near = active(models, base, epsilon)
    terms = np.where(on, deltas, 0.0) / np.maximum(on.sum(0), 1)
    return Answer(base + terms.sum(0), np.abs(terms).sum(0), near.any(0))


def ramplus_tl(models: Sequence[Vector], base: Vector, *, r: float, alpha: float, epsilon: float) -> Answer:
    """The same with each model's own changes times 1 + r · clip(shared / unique, 0, α)."""
    deltas, on, near = active(models, base, epsilon)
    alone = on & (on.sum(0) == 1)
    unique, shared = alone.sum(1), (on & ~alone).sum(1)
    ratio = shared / np.where(unique == 0, 1, unique)  # without own changes it matters to none
    factor = 1 + r * np.clip(ratio, 0, alpha)
    terms = np.where(alone, factor[:, None], on / np.maximum(on.sum(0), 1)) * deltas
    size = np.where(alone, 1 + np.abs(factor - 1)[:, None], on) * np.abs(deltas)
    return Answer(base + terms.sum(0), size.sum(0), near.any())


def model_stock(
    models: Sequence[Vector],
    base: Vector,
    *,
    filter_wise: bool,
    compat: bool,
    shape: tuple[int, ...],
) -> Answer:
    """θ_0 + t mean τ, t from the mean cosine of the task vectors, of tensors or rows."""
    m = len(models)
    tables = [rows(x - base, shape) if filter_wise else (x - base)[None, :] for x in models]
    value, size = np.zeros(tables[0].shape), np.zeros(tables[0].shape)
    doubt, absolute = np.zeros(tables[0].shape, bool), False
    for row, vectors in enumerate(zip(*tables, strict=True)):
        cosines = []
        for a, b in combinations(vectors, 2):
            product = norm(a) * norm(b)
            absolute |= 0 < product < 4e-6
            cosines.append(min(1.0, max(-1.0, math.fsum(a * b) / max(product, 1e-6))))
        c = math.fsum(cosines) / len(cosines)
        if not compat:
            c = max(0.0, c)
        below = 1 + (m - 1) * c
        doubt[row] = abs(below) < 1e-3
        below = below or 1.0
        t = m * c / below
        mean = np.sum(vectors, 0) / m
        value[row] = t * mean
        size[row] = abs(t) * np.abs(vectors).sum(0) / m + m / below**2 * np.abs(mean)
    return Answer(base + value.reshape(-1), size.reshape(-1), doubt.reshape(-1), absolute)


def nearswap(models: Sequence[Vector], base: Vector, *, t: float) -> Answer:
    """A step towards the other model, no longer than t."""
    step = np.clip(models[0] - base, -t, t)
    return Answer(base + step, np.abs(step))


def arcee_fusion(models: Sequence[Vector], base: None, *, shape: tuple[int, ...]) -> Answer:
    """Elements of the second model whose importance |Δ| · KL_row is far above the median."""
    assert base is None
    start, other = models

    def softmax(table: Vector) -> Vector:
        powers = np.exp(table - table.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True) + 1e-8

    p, q = softmax(rows(other, shape)), softmax(rows(start, shape))
    terms = p * np.log(p / q)
    divergence = terms.sum(1, keepdims=True)
    # A small sum of larger terms, which is then rounded to float32; of one column it is exactly 0.
    reach = max(np.ptp(rows(x, shape), 1).max() for x in models)
    vague = 3e-7 * np.abs(divergence) + (1e-14 * (1 + reach) if terms.shape[1] > 1 else 0.0)
    delta = rows(other - start, shape)
    importance = (np.abs(delta) * divergence).reshape(-1)
    error = (np.abs(delta) * vague).reshape(-1)

    def quartiles(values: Vector) -> Vector:
        return np.sort(values)[[math.floor(q * (values.size - 1)) for q in (0.25, 0.5, 0.75)]]

    q25, q50, q75 = quartiles(importance)
    low, high = quartiles(importance - error), quartiles(importance + error)
    keep = importance >= q50 + 1.5 * (q75 - q25)
    surely = importance - error >= high[1] + 1.5 * (high[2] - low[0])
    surely |= importance + error < low[1] + 1.5 * (low[2] - high[0])
    doubt = ~surely & (start != other)
    return Answer(np.where(keep, other, start), np.maximum(np.abs(start), np.abs(other)), doubt)


def magnitude(delta: Vector, density: float) -> tuple[Vector, Vector]:
    """The trunc(density · n) largest elements, at least one and all that tie with the last; and doubt."""
    near = np.zeros(delta.shape, bool)
    if density >= 1 or delta.size == 0:
        return delta, near
    if density == 0:
        return np.zeros_like(delta), near
    k = max(1, math.trunc(density * delta.size))
    size = np.abs(delta)
    threshold = np.sort(size)[::-1][k - 1]
    close = np.abs(size - threshold) <= 3e-7 * threshold
    if close.sum() > 1 and not exact(delta[close]).all():
        near = close
    return np.where(size >= threshold, delta, 0.0), near


def outliers(delta: Vector, density: float, gamma: float) -> tuple[Vector, Vector]:
    """Without the largest trunc(γ n), of the rest the largest trunc(density · n) and what ties; and doubt."""
    near = np.zeros(delta.shape, bool)
    n = delta.size
    if density >= 1 or n == 0:
        return delta, near
    if density == 0:
        return np.zeros_like(delta), near
    keep = max(1, math.trunc(density * n))
    top = math.trunc(gamma * n)
    bottom = n - keep - top
    if bottom < 0:
        top, bottom = top + bottom, 0
    size = np.abs(delta)
    ascending = np.sort(size)
    low, high = ascending[bottom], ascending[n - top - 1]
    for threshold in (low, high):
        close = np.abs(size - threshold) <= 3e-7 * threshold
        if close.sum() > 1 and not exact(delta[close]).all():
            near = near | close
    return np.where((size >= low) & (size <= high), delta, 0.0), near


def l1_ratio(before: Vector, after: Vector) -> tuple[float, bool]:
    """Σ|before| / Σ|after|, 1 where one of them vanishes; and whether one nearly does."""
    whole, rest = math.fsum(np.abs(before)), math.fsum(np.abs(after))
    absolute = 0 < min(whole, rest) < 2e-7
    return (whole / rest if min(whole, rest) >= 1e-7 else 1.0), absolute


def elected(
    deltas: Sequence[Vector],
    weight: Sequence[float],
    *,
    normalize: bool,
    votes: Sequence[float],
    plain: bool,
) -> Answer:
    """Sign election on deltas with these votes, and the weighted sum of those that agree.

    A vote of 0 is positive; `plain` says that float32 holds what the deltas were multiplied by.
    """
    w = np.array(weight)[:, None]
    ballots = np.array(votes)[:, None] * np.stack(deltas)
    x = w * np.stack(deltas)
    vote, spread = ballots.sum(0), np.abs(ballots).sum(0)
    agree = np.sign(ballots) == np.where(vote >= 0, 1.0, -1.0)
    total, size = np.where(agree, x, 0.0).sum(0), np.abs(x).sum(0)
    doubt = (np.abs(vote) <= _NEAR * spread) & (spread > 0) & ~(plain & exact_sum(ballots))
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
