"""What statistics say of their memory and passes is what they take, for every method that measures."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from meldkit.methods import METHODS, Method, Noise, Whole
from meldkit.methods._kept import KeptL1
from meldkit.methods.statistics import (
    CHUNK,
    Chain,
    ColumnGram,
    Derived,
    Gram,
    Known,
    KthMagnitude,
    Statistic,
    Sums,
)

#: A tensor large enough that what does not grow with it is little: rows of 1024.
SHAPE = (1 << 11, 1 << 10)
NUMEL = SHAPE[0] * SHAPE[1]
#: Of which parts an estimate may consist.
PARTS = 0.2

#: Parameters with which a method measures most.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("slerp", {"t": 0.5}),
    ("karcher", {}),
    ("multislerp", {}),
    ("nuslerp", {}),
    ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("ties", {"density": 0.5}),
    ("ties", {"density": 0.5, "rescale": True}),
    ("breadcrumbs", {"density": 0.5, "gamma": 0.1}),
    ("breadcrumbs_ties", {"density": 0.5, "gamma": 0.1, "rescale": True}),
    ("dare_ties", {"density": 0.5}),
    ("della", {"density": 0.5}),
    ("sce", {"select_topk": 0.3}),
    ("sce", {}),
    ("ramplus_tl", {}),
    ("model_stock", {}),
    ("arcee_fusion", {}),
]


def values_of(method: Method, m: int, given: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for p in method.parameters:
        value = given.get(p.name, 1.0 if p.required else p.default)
        values[p.name] = (value,) * m if p.per_model else value
    return values


def size(thing: Any, seen: set[int]) -> int:
    """Bytes of the numbers that an object of ours leads to, each once."""
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        return size(thing.base, seen) if isinstance(thing.base, np.ndarray) else thing.nbytes
    if isinstance(thing, float | int):
        return sys.getsizeof(thing)
    if isinstance(thing, list | tuple):
        return sys.getsizeof(thing) + sum(size(x, seen) for x in thing)
    if isinstance(thing, dict):
        return sys.getsizeof(thing) + sum(size(x, seen) for x in thing.values())
    if type(thing).__module__.startswith("meldkit.methods") and hasattr(thing, "__dict__"):
        return sum(size(x, seen) for x in vars(thing).values())
    return 0


def most_held(statistic: Statistic, x: torch.Tensor, grain: int) -> tuple[int, int]:
    """Bytes that a statistic holds at most, carried through its passes; and how many of these read all."""
    tile = 4 * max(grain, CHUNK // grain * grain)
    most = passes = 0
    for _ in range(20):
        ranges = statistic.ranges()
        if not ranges:
            return most, passes
        passes += list(ranges) == [(0, x.shape[1])]
        cuts = [(a, min(a + tile, stop)) for start, stop in ranges for a in range(start, stop, tile)]
        for start, stop in cuts:
            statistic.absorb(statistic.update(x[:, start:stop].clone(), start))
            if (start, stop) in (cuts[0], cuts[-1]):
                most = max(most, size(statistic, set()))
        statistic.finish_pass()
    raise AssertionError("not finished")


@pytest.mark.parametrize(("name", "given"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
def test_a_method_holds_and_reads_what_its_statistic_says(name: str, given: dict[str, Any]) -> None:
    method = METHODS[name]
    low, high = method.num_models
    m = min(max(low, 3), high or 3)
    x = torch.randn(m, NUMEL, generator=torch.Generator().manual_seed(0))
    whole = Whole(m, SHAPE, Noise(0, "w"))
    values = values_of(method, m, given)
    statistic = method.statistic(whole, values)
    assert statistic is not None
    held = statistic.held
    expected = statistic.passes
    most, passes = most_held(statistic, x, method.grain(whole, values))
    assert passes == expected
    # A few lists and numbers that do not grow with the tensor are not counted.
    assert PARTS * held <= most + 4096
    assert most <= 1.02 * held + 16384


def test_rows_that_wait_for_their_turn_are_counted_once() -> None:
    columns = 1 << 14
    statistic = ColumnGram(2, 4 * columns, columns)
    x = torch.randn(2, 4 * columns)
    held = statistic.held
    assert held == 2 * 3 * columns * 8
    statistic.absorb(statistic.update(x[:, columns : 2 * columns], columns))
    assert 0.9 * held <= size(statistic, set()) <= 1.02 * held
    statistic.absorb(statistic.update(x[:, :columns], 0))
    assert size(statistic, set()) <= 0.55 * held


def test_what_is_put_together_holds_its_parts() -> None:
    gram = Gram(3, NUMEL)
    kth = KthMagnitude([[1]], NUMEL)
    assert Known(3).held == Known(3).passes == 0
    assert Derived(lambda x, _: x, kth).held == kth.held
    assert Chain(gram, lambda _: None).held == gram.held
    assert Chain(gram, lambda _: None, held=7).held == gram.held + 7
    assert Chain(gram, lambda _: None, passes=2).passes == gram.passes + 2 == 3
    assert Derived(lambda x, _: x, kth).passes == kth.passes == 1


def test_nothing_to_select_holds_next_to_nothing() -> None:
    assert KthMagnitude([[], []], CHUNK).held == KthMagnitude([[], []], CHUNK).passes == 0
    assert KthMagnitude([[1], []], CHUNK).held == 4 * 3 * CHUNK


def few(n: int) -> torch.Tensor:
    return torch.arange(n).remainder(7).float() - 3


@pytest.mark.parametrize("numbers", [torch.ones, few, torch.zeros], ids=["constant", "few", "zeros"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_numbers_that_are_often_the_same_are_counted_and_not_kept(numbers: Any, share: float) -> None:
    """What lies on the ends of the bracket needs no place: far less is held than was said."""
    statistic = KthMagnitude([[int(share * NUMEL)]], NUMEL)
    sampled = 4 * (1 << 15)
    most, _ = most_held(statistic, numbers(NUMEL)[None], CHUNK)
    assert most <= 2 * sampled + 16384


@pytest.mark.parametrize("kind", ["beyond the sample", "within the sample"])
def test_bracket_that_misses_by_one(kind: str) -> None:
    """A sample of zeros puts all that is not 0 above its bracket: its last one, and the first of the rest."""
    x = torch.randn(NUMEL, generator=torch.Generator().manual_seed(1))
    x[torch.arange(NUMEL) % (NUMEL // 8) < 9000] = 0
    if kind == "within the sample":
        x[::2] = 0
    num_varied = int(x.count_nonzero())
    check_ranks(x, [num_varied - 1, num_varied, num_varied + 1])


def test_bracket_of_one_number_that_misses_by_one() -> None:
    """All of the sample is the same, and what is larger or smaller lies elsewhere."""
    x = torch.randn(NUMEL, generator=torch.Generator().manual_seed(1))
    x[torch.arange(NUMEL) % (NUMEL // 8) < 9000] = 0.5
    above, at_least = int((x.abs() > 0.5).sum()), int((x.abs() >= 0.5).sum())
    check_ranks(x, [above - 1, above, above + 1, at_least - 1, at_least, at_least + 1])


def test_bracket_of_two_numbers_that_misses_by_one() -> None:
    """All of the sample is one of two numbers, in halves; half of everything is less than both."""
    x = torch.rand(NUMEL, generator=torch.Generator().manual_seed(1)) - 0.02
    place = torch.arange(NUMEL)
    x = torch.where(place % (NUMEL // 8) < 9000, torch.where(place % 2 == 0, 0.5, 0.7), x)
    at_least = int((x >= 0.5).sum())
    check_ranks(x, [at_least - 1, at_least, at_least + 1])


def test_ranks_whose_bracket_ends_where_the_sample_does() -> None:
    """Five standard errors from its first or last number, and next to that."""
    x = torch.randn(NUMEL, generator=torch.Generator().manual_seed(2))
    steps = [i * NUMEL // (1 << 16) for i in range(-4, 5)]
    edges = [round(share * NUMEL) for share in (0.014, 1 - 0.014)]
    check_ranks(x, [edge + step for edge in edges for step in steps])


def check_ranks(x: torch.Tensor, ranks: list[int]) -> None:
    """The statistic against sorting, all ranks at once."""
    ordered = x.abs().sort(descending=True).values
    statistic = KthMagnitude([ranks], NUMEL)
    most_held(statistic, x[None], CHUNK)
    assert statistic.result == [tuple(ordered[k - 1].item() for k in ranks)]


@pytest.mark.parametrize("numel", [1 << 14, (1 << 14) - 3])
def test_many_short_chunks(numel: int) -> None:
    """Where a number is kept for every few elements, the numbers are what counts."""
    x = torch.randn(2, numel)
    sums = Sums(lambda x: [[float(a[0, 0]), float(a[1, 0]), 0.5] for a in x.split(8, dim=1)], 3, numel, 8)
    held = sums.held
    most, _ = most_held(sums, x, 8)
    assert 0.8 * held <= most <= 1.1 * held
    kept = KeptL1(lambda x, _: np.full((2, -(-x.shape[1] // 8)), 255, np.uint8), 2, numel, 8)
    held = kept.held
    # At the end they are joined, and become lists for one model at a time.
    arrays = 2 * numel // 8 * 2 * 8 + 2 * numel // 8
    lists = numel // 8 * (sys.getsizeof([1.0, 2.0]) + 2 * sys.getsizeof(1.0))
    assert 0.9 * (arrays + lists) <= held <= 1.2 * (arrays + lists)
    assert most_held(kept, x, 8)[0] <= held
