"""Statistics are exact, and the same however the tensor was cut, in whatever order and thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from meldkit.methods.statistics import CHUNK, Chain, Gram, KthMagnitude, L1Ratio, Statistic

#: From this size on, order statistics are guessed from a sample first.
SAMPLED = 8 * CHUNK
#: More passes than any statistic has a right to.
MANY_PASSES = 200


class Kth(KthMagnitude):
    """One rank per model, or none."""

    def __init__(self, ranks: Sequence[int | None], numel: int) -> None:
        super().__init__([[] if k is None else [k] for k in ranks], numel)

    @property
    def result(self) -> list[float | None]:
        return [found[0] if found else None for found in super().result]


@pytest.fixture(autouse=True)
def as_in_the_engine() -> Iterator[None]:
    """One thread per operation: the workers are the parallelism."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def measure(
    statistic: Statistic, x: Tensor, *, tiles: int | np.random.Generator = 1, threads: int = 1, seed: int = 0
) -> Any:
    """Carry a statistic through its passes.

    Args:
        statistic: to carry through.
        x: [m, n]; left as it is.
        tiles: chunks per tile, or a generator that draws a different number for each.
        threads: that call `update`.
        seed: of the order in which partial results are absorbed.
    """
    order = np.random.default_rng(seed)
    for _ in range(MANY_PASSES):
        ranges = statistic.ranges()
        if not ranges:
            return statistic.result
        cuts = [cut for start, stop in ranges for cut in cut_up(start, stop, tiles)]
        update = lambda cut: statistic.update(x[:, cut[0] : cut[1]].clone(), cut[0])  # noqa: E731
        if threads == 1:
            partials = [update(cut) for cut in cuts]
        else:
            with ThreadPoolExecutor(threads) as pool:
                partials = list(pool.map(update, cuts))
        for index in order.permutation(len(partials)):
            statistic.absorb(partials[index])
        statistic.finish_pass()
    raise AssertionError(f"not finished after {MANY_PASSES} passes")


def cut_up(start: int, stop: int, tiles: int | np.random.Generator) -> list[tuple[int, int]]:
    """Tiles of a range."""
    edges = [start]
    while edges[-1] < stop:
        chunks = tiles if isinstance(tiles, int) else int(tiles.integers(1, 5))
        edges.append(min(stop, edges[-1] + chunks * CHUNK))
    return list(pairwise(edges))


def bfloat16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).bfloat16().float().numpy()


def normal(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal(n).astype(np.float32)


def bfloat16_differences(n: int) -> np.ndarray:
    """Task vectors as they are: few distinct values, each many times."""
    base = bfloat16(0.02 * normal(n))
    return bfloat16(base + 1e-3 * normal(n)[::-1].copy()) - base


def mostly_zero(n: int) -> np.ndarray:
    return np.where(np.random.default_rng(1).random(n) < 0.7, np.float32(0), normal(n))


def rows_of_different_scale(n: int) -> np.ndarray:
    """A thousand runs whose sizes span 60 orders of magnitude; a sample of a few places is far off."""
    run = np.minimum(np.arange(n) * 1000 // max(n, 1), 999)
    scale = 10.0 ** np.random.default_rng(2).integers(-40, 20, 1000)
    return (scale[run] * normal(n)).astype(np.float32)


def away_from_the_sample(n: int) -> np.ndarray:
    """The beginnings of the eighths of the tensor, where a sample may be taken, are all huge."""
    x = normal(n)
    step = max(1, n // 8 // CHUNK * CHUNK)
    x[np.arange(n) % step < 9000] *= 1e6
    return x


def huge_but_for_the_sample(n: int) -> np.ndarray:
    x = normal(n) * np.float32(1e6)
    step = max(1, n // 8 // CHUNK * CHUNK)
    x[np.arange(n) % step < 9000] = 0
    return x


def with_infinities(n: int) -> np.ndarray:
    x = normal(n)
    x[::3] = np.inf
    x[1::7] = -np.inf
    return x


def two_values(n: int) -> np.ndarray:
    return np.where(normal(n) > 1, np.float32(-2), np.float32(1))


def subnormal(n: int) -> np.ndarray:
    return np.random.default_rng(3).integers(-5, 6, n).astype(np.float32) * np.float32(1e-45)


DATA: dict[str, Callable[[int], np.ndarray]] = {
    "normal": normal,
    "bfloat16 differences": bfloat16_differences,
    "70 % zeros": mostly_zero,
    "constant": lambda n: np.full(n, -0.3, np.float32),
    "all zero": lambda n: np.zeros(n, np.float32),
    "rows of different scale": rows_of_different_scale,
    "ascending": lambda n: np.arange(n, dtype=np.float32),
    "descending": lambda n: -np.arange(n, 0, -1, dtype=np.float32),
    "away from the sample": away_from_the_sample,
    "huge but for the sample": huge_but_for_the_sample,
    "with infinities": with_infinities,
    "all infinite": lambda n: np.full(n, np.inf, np.float32),
    "one infinity": lambda n: np.append(normal(n - 1), np.float32(np.inf)),
    "two values": two_values,
    "subnormal": subnormal,
}


def by_sorting(row: np.ndarray, ranks: list[int]) -> list[float]:
    ordered = np.sort(np.abs(row))[::-1]
    return [float(ordered[k - 1]) for k in ranks]


# KthMagnitude


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 400])
def test_kth_magnitude_for_every_k(kind: str, n: int) -> None:
    row = DATA[kind](n)
    ranks = list(range(1, n + 1))
    got = measure(Kth(ranks, n), torch.from_numpy(row).repeat(n, 1))
    assert got == by_sorting(row, ranks)


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("n", [SAMPLED - 1, SAMPLED + 4321])
def test_kth_magnitude_of_large_tensors(kind: str, n: int) -> None:
    row = DATA[kind](n)
    ranks = [1, 17, n // 100, n // 5, n // 2, n - 100, n]
    got = measure(Kth(ranks, n), torch.from_numpy(row).expand(len(ranks), n), tiles=4)
    assert got == by_sorting(row, ranks)


def test_kth_magnitude_of_different_models() -> None:
    """Each model has its own rank; None needs none."""
    n = SAMPLED + 99
    rows = [normal(n), mostly_zero(n), np.zeros(n, np.float32), bfloat16_differences(n)]
    ranks = [n // 5, n // 5, n // 2, 1]
    x = torch.from_numpy(np.stack([rows[0], rows[0], *rows[1:]]))
    got = measure(Kth([ranks[0], None, *ranks[1:]], n), x)
    assert got[1] is None
    del got[1]
    assert got == [by_sorting(row, [k])[0] for row, k in zip(rows, ranks, strict=True)]


def test_kth_magnitude_of_no_model_needs_no_pass() -> None:
    statistic = Kth([None, None], SAMPLED)
    assert not statistic.ranges()
    assert statistic.result == [None, None]


@pytest.mark.parametrize("kind", ["bfloat16 differences", "rows of different scale", "away from the sample"])
def test_kth_magnitude_does_not_depend_on_tiles(kind: str) -> None:
    n = SAMPLED + CHUNK + 5
    row = DATA[kind](n)
    ranks = [n // 7, n // 2]
    for tiles, threads in ((1, 4), (3, 1), (16, 1), (np.random.default_rng(0), 2)):
        x = torch.from_numpy(row).expand(2, n)
        got = measure(Kth(ranks, n), x, tiles=tiles, threads=threads, seed=threads)
        assert got == by_sorting(row, ranks)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50), st.data())
def test_kth_magnitude_of_any_numbers(numbers: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(numbers)))
    row = np.array(numbers, np.float32)
    assert measure(Kth([k], len(row)), torch.from_numpy(row)[None]) == by_sorting(row, [k])


@pytest.mark.parametrize("n", [1, 50, SAMPLED + 777])
@pytest.mark.parametrize("zeros", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_kth_magnitude_of_a_share_of_what_is_not_zero(n: int, zeros: float, share: float) -> None:
    row = normal(n)
    row[np.random.default_rng(4).random(n) < zeros] = 0
    k = int(np.count_nonzero(row) * share)
    got = measure(KthMagnitude([[lambda varied: int(varied * share)]], n), torch.from_numpy(row)[None])
    assert got == [(np.sort(np.abs(row))[-k],) if k else (np.inf,)]


@pytest.mark.parametrize("n", [1, 50, SAMPLED, SAMPLED + 777])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.98, 1.0])
def test_kth_magnitude_ends_with_nan(n: int, share: float) -> None:
    """NaN has no rank: any answer will do, for the engine stops at the NaN, but there must be one."""
    row = normal(n)
    row[np.random.default_rng(4).random(n) < share] = np.nan
    row[0] = np.nan
    ranks = sorted({max(1, k) for k in (1, n // 100, n // 5, n // 2, 9 * n // 10, n)})
    got = measure(Kth(ranks, n), torch.from_numpy(row).expand(len(ranks), n), tiles=8)
    assert all(value is not None for value in got)


def test_kth_magnitude_ends_when_only_the_sample_is_nan() -> None:
    n = SAMPLED
    row = normal(n)
    row[np.arange(n) % CHUNK < 9000] = np.nan
    ranks = [1, n // 5, n // 2, n]
    got = measure(Kth(ranks, n), torch.from_numpy(row).expand(4, n))
    assert all(value is not None for value in got)


@pytest.mark.parametrize("kind", ["normal", "bfloat16 differences", "70 % zeros", "constant", "all zero"])
def test_kth_magnitude_of_usual_data_takes_two_passes(kind: str) -> None:
    """One look at a sample, one at everything."""
    n = SAMPLED + 4321
    x = torch.from_numpy(DATA[kind](n))[None]
    for k in (n // 10, n // 5, n // 2, 9 * n // 10):
        statistic = Kth([k], n)
        read = 0
        while ranges := statistic.ranges():
            for start, stop in ranges:
                read += stop - start
                statistic.absorb(statistic.update(x[:, start:stop].clone(), start))
            statistic.finish_pass()
        assert read < 1.2 * n


# Gram


@pytest.mark.parametrize("n", [0, 1, 300, CHUNK, CHUNK + 1, 3 * CHUNK + 17])
@pytest.mark.parametrize("m", [1, 2, 5])
def test_gram_is_exact_to_float64(n: int, m: int) -> None:
    rng = np.random.default_rng(n + m)
    # Float32 numbers of very different sizes: their products are exact in float64 and so is their sum here.
    x = (rng.standard_normal((m, n)) * 10.0 ** rng.integers(-6, 4, (m, 1))).astype(np.float32)
    gram = measure(Gram(m, n), torch.from_numpy(x))
    assert gram.dtype == np.float64
    assert gram.shape == (m, m)
    x64 = x.astype(np.float64)
    want = np.array([[math.fsum(a * b) for b in x64] for a in x64])
    lengths = np.sqrt(np.diag(want))
    assert np.all(np.abs(gram - want) <= 5e-14 * np.outer(lengths, lengths))
    assert np.array_equal(gram, gram.T)


@pytest.mark.parametrize("n", [5, CHUNK, 9 * CHUNK, 7 * CHUNK + 12345])
def test_gram_does_not_depend_on_tiles_order_and_threads(n: int) -> None:
    x = torch.from_numpy(
        np.stack([normal(n), bfloat16_differences(n), 1e4 * normal(n)[::-1]]).astype(np.float32)
    )
    grams = [
        measure(Gram(3, n), x, tiles=tiles, threads=threads, seed=seed)
        for seed, (tiles, threads) in enumerate(
            [(1, 1), (1, 4), (2, 1), (2, 2), (16, 1), *((np.random.default_rng(i), 2) for i in range(2))]
        )
    ]
    assert all(np.array_equal(gram, grams[0]) for gram in grams)


def test_gram_does_not_depend_on_memory_layout() -> None:
    """Rows of a worker's buffer lie apart; rows of a tensor lie together."""
    n = CHUNK + 77
    x = torch.from_numpy(np.stack([normal(n), normal(n + 1)[1:]]))
    wide = torch.empty(2, 2 * CHUNK + 3)
    whole = Gram(2, n)
    for start, stop in ((0, CHUNK), (CHUNK, n)):
        rows = wide[:, 3 : 3 + stop - start]
        rows.copy_(x[:, start:stop])
        whole.absorb(whole.update(rows, start))
    whole.finish_pass()
    assert np.array_equal(whole.result, measure(Gram(2, n), x))


def test_gram_of_parallel_vectors_is_singular_to_the_bit() -> None:
    """Of x and 2x, with which float64 makes the same rounding errors."""
    x = torch.from_numpy(normal(3 * CHUNK + 5))
    gram = measure(Gram(2, len(x)), torch.stack([x, 2 * x]))
    assert gram[0, 1] == 2 * gram[0, 0]
    assert gram[1, 1] == 4 * gram[0, 0]


@pytest.mark.parametrize("values", [(np.inf, -np.inf), (np.inf, np.nan), (3e38, 3e38), (np.nan, 1)])
def test_gram_of_anything_has_a_result(values: tuple[float, float]) -> None:
    """The engine stops at what is not finite when it writes it, and then can say where it is."""
    x = torch.ones(2, 3 * CHUNK)
    x[0, 0], x[0, 2 * CHUNK] = values
    gram = measure(Gram(2, 3 * CHUNK), x)
    assert gram[1, 1] == 3 * CHUNK
    assert np.isfinite(gram[0, 1]) == np.isfinite(values).all()


# L1Ratio


def shrink(x: Tensor, *, limit: float) -> None:
    """A trim: zero what is not larger than the limit."""
    x[x.abs() <= limit] = 0


@pytest.mark.parametrize("n", [1, 300, 3 * CHUNK + 17])
def test_l1_ratio(n: int) -> None:
    x = np.stack([normal(n), bfloat16_differences(n), 1e3 * normal(n)]).astype(np.float32)
    got = measure(L1Ratio(partial(shrink, limit=1e-3), 3, n), torch.from_numpy(x))
    size = np.abs(x.astype(np.float64))
    kept = np.where(size > np.float32(1e-3), size, 0)
    want = [math.fsum(a) / math.fsum(b) if b.any() else 1.0 for a, b in zip(size, kept, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-7)


def test_l1_ratio_does_not_depend_on_tiles_order_and_threads() -> None:
    n = 9 * CHUNK + 4321
    x = torch.from_numpy(np.stack([normal(n), bfloat16_differences(n)]))
    ratios = [
        measure(L1Ratio(partial(shrink, limit=1e-3), 2, n), x, tiles=tiles, threads=threads, seed=seed)
        for seed, (tiles, threads) in enumerate(
            [(1, 1), (1, 4), (2, 2), (16, 1), (np.random.default_rng(0), 2), (np.random.default_rng(1), 1)]
        )
    ]
    assert all(ratio == ratios[0] for ratio in ratios)


def test_l1_ratio_of_vanishing_vectors_is_one() -> None:
    """A vector of zeros, one of which nothing is left, and one too short to have a ratio."""
    x = torch.tensor([[0.0, 0.0], [0.5, 0.5], [1e-9, 2e-9], [4.0, 1.0]])
    got = measure(L1Ratio(partial(shrink, limit=1.0), 4, 2), x)
    assert got == [1.0, 1.0, 1.0, 1.25]


# Chain


def test_chain_hands_the_first_result_on() -> None:
    x = torch.from_numpy(mostly_zero(SAMPLED + 5))[None]
    n = x.shape[1]
    seen: list[Any] = []

    def then(thresholds: list[float]) -> Statistic:
        seen.append(thresholds)
        return L1Ratio(partial(shrink, limit=np.nextafter(np.float32(thresholds[0]), np.float32(0))), 1, n)

    chain = Chain(Kth([n // 5], n), then)
    thresholds, ratios = measure(chain, x, tiles=2)
    assert seen == [thresholds]
    assert thresholds == by_sorting(x[0].numpy(), [n // 5])
    size = np.abs(x[0].double().numpy())
    assert ratios[0] == pytest.approx(math.fsum(size) / math.fsum(size[size >= thresholds[0]]), rel=1e-7)


def test_chain_may_end_after_the_first() -> None:
    x = torch.ones(2, 10)
    gram, nothing = measure(Chain(Gram(2, 10), lambda _: None), x)
    assert nothing is None
    assert np.array_equal(gram, np.full((2, 2), 10.0))


def test_chain_of_something_that_needs_no_pass() -> None:
    """The first is finished at once, so the second is asked at once."""
    x = torch.ones(1, 10)
    nothing, gram = measure(Chain(Kth([None], 10), lambda _: Gram(1, 10)), x)
    assert nothing == [None]
    assert np.array_equal(gram, [[10.0]])


def test_chains_chain() -> None:
    x = torch.ones(1, 10)
    inner = Chain(Gram(1, 10), lambda _: Gram(1, 10))
    chain = Chain(inner, lambda results: Kth([int(results[0][0, 0])], 10))
    (first, second), third = measure(chain, x)
    assert first == second == 10.0
    assert third == [1.0]
