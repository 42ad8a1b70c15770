"""The compiled inner loops do what their twins in PyTorch and NumPy do, to the last bit."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from meldkit import kernels
from meldkit.kernels import draws, elsewhere, library, ranks, stored
from meldkit.kernels.divergences import softmax_divergences
from meldkit.kernels.tile import PIECE, Failed, Row, Tile, in_file, in_memory

SIZES = st.sampled_from([1, 2, 7, 8, 15, 16, 17, 1023, 1024, 1025, 5000])


@st.composite
def tiles(draw: st.DrawFn, max_models: int = 4) -> Tensor:
    """Rows of a wider buffer, as the engine's are: numbers of many sizes, many alike, many zeros."""
    m, n = draw(st.integers(1, max_models)), draw(SIZES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    values = torch.randn(m, n + 64, generator=generator)
    if draw(st.booleans()):
        values = (values * 4).round() / 4
    values *= torch.rand(m, n + 64, generator=generator) < draw(st.sampled_from([0.3, 1.0]))
    values *= 10 ** draw(st.sampled_from([-6.0, 0.0, 3.0]))
    return values[:, :n]


def test_there_is_a_library_where_there_is_a_compiler() -> None:
    assert library.compiled() or shutil.which("cc") is None


def test_it_is_known_what_is_in_the_page_cache(tmp_path: Path) -> None:
    page, num_pages = os.sysconf("SC_PAGESIZE"), 64
    path = tmp_path / "file"
    path.write_bytes(bytes((num_pages - 1) * page + 1))
    # What systems are asked that cannot count pages.
    resident = ctypes.CDLL(str(library.PATH)).meldkit_resident
    resident.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_long]
    with path.open("rb") as file:
        descriptor = file.fileno()
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(descriptor, 4 * page, 16 * page)
        os.pread(descriptor, 1, (num_pages - 1) * page)
        for first, length, known in [
            (16 * page, 4 * page, True),
            (16 * page, 1, True),
            (17 * page + 5, 2 * page, True),
            ((num_pages - 1) * page, 1, True),
            (20 * page - 1, 2, False),
            (16 * page - 1, 2, False),
            (0, num_pages * page, False),
            (2 * page, page, False),
        ]:
            assert stored.cached(descriptor, first, length) == known
            skipped = first % page
            assert resident(descriptor, first - skipped, skipped + length) == known


def both(function: Callable[[Any], Any], x: Tensor) -> tuple[Any, Any]:
    """Results with the compiled library and without it, of the same numbers."""
    first = function(x.clone().as_strided(x.shape, (x.shape[1], 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "FUNCTIONS", None)
        second = function(x.clone())
    return first, second


def same(first: Any, second: Any) -> None:
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def tile_of(x: Tensor, grain: int = 1 << 16, *, base: bool = False) -> Tile:
    """The numbers of a tile in memory, the first row perhaps as a base."""
    rows = [row.clone().numpy() for row in x]
    sources = [in_memory(row, "F32") for row in rows]
    return Tile(sources, x.shape[1], grain=grain, has_base=base, check=True, keep=rows)


def deferred(function: Callable[[Any], Any], x: Tensor, grain: int = 1 << 16) -> tuple[Any, Any]:
    """Results of a tile whose numbers are not there yet, and of PyTorch's operations."""
    tile, x = tile_of(x, grain), x.clone()
    found, expected = function(tile), function(x)
    if isinstance(found, Row):
        out = np.empty(len(found), np.float32)
        tile.run(found, "F32", out)
        return out, expected.numpy()
    return found, expected


@given(tiles(), st.data())
@settings(max_examples=100, deadline=None)
def test_elect(x: Tensor, data: st.DataObject) -> None:
    numbers = st.sampled_from([1.0, 0.5, 0.3, 2.0, -0.7, 0.0])
    before, factor, share = (data.draw(st.lists(numbers, min_size=len(x), max_size=len(x))) for _ in range(3))
    least, lambda_ = data.draw(st.sampled_from([-np.inf, 0.0, 1e-6, 0.3])), data.draw(numbers)
    same(*deferred(lambda x: kernels.elect(x, before, factor, share, least=least, lambda_=lambda_), x))


@given(tiles(), st.lists(st.floats(-2, 2, width=32), min_size=5, max_size=5))
@settings(max_examples=50, deadline=None)
def test_combine(x: Tensor, numbers: list[float]) -> None:
    same(*deferred(lambda x: kernels.combine(x, numbers[: len(x)], numbers[-1]), x))


@given(tiles(), st.floats(0, 2, width=32), st.floats(0, 2, width=32))
@settings(max_examples=100, deadline=None)
def test_what_is_done_with_elements(x: Tensor, low: float, width: float) -> None:
    high = float(np.float32(low + width))
    levels = np.random.default_rng(0).integers(1, 1 << 16, x.shape[1], np.uint16)

    def clamped(x: Any) -> Any:
        return kernels.clamp(x[0], -high, high)

    def cut(x: Any) -> Any:
        kernels.zero_below(x[0], low)
        kernels.zero_above(x[0], high)
        kernels.divide(x[0], levels)
        return x[0]

    for function in (clamped, cut):
        same(*deferred(function, x))


@given(tiles(), st.lists(st.tuples(st.floats(0, 2, width=32), st.floats(0, 2, width=32)), max_size=3))
@settings(max_examples=100, deadline=None)
def test_count_magnitudes(x: Tensor, pairs: list[tuple[float, float]]) -> None:
    brackets = [[(low, float(np.float32(low + width))) for low, width in pairs]] + [[]] * (len(x) - 1)
    found, expected = deferred(lambda x: kernels.count_magnitudes(list(x), brackets), x)
    for row, others in zip(found, expected, strict=True):
        for (counts, inside), (other_counts, others_inside) in zip(row, others, strict=True):
            assert counts == other_counts
            same(inside, others_inside)


@given(tiles(), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_keep_bits(x: Tensor, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 256, -(-x.shape[1] // 8), np.uint8)

    def kept(x: Any) -> Any:
        kernels.keep_bits(x[0], bits)
        return x[0]

    for grain in (1 << 16, 77):
        same(*deferred(kept, x, grain))


@given(tiles(), st.sampled_from([0.0, 0.25, 1e-6, 2.0]))
@settings(max_examples=50, deadline=None)
def test_squares_of_selected(x: Tensor, threshold: float) -> None:
    (bits, sums), (expected, others) = deferred(
        lambda x: kernels.squares_of_selected(x, threshold, 1024), x, 1024
    )
    same(bits, expected)
    np.testing.assert_allclose(sums, others, rtol=1e-12)


@given(tiles(), st.sampled_from([0.0, 0.25, 1e-6]), st.booleans())
@settings(max_examples=50, deadline=None)
def test_changed_elements(x: Tensor, epsilon: float, own: bool) -> None:
    factors = [0.3, 1.0, 0.0, 0.7][: len(x)] if own else None
    same(*deferred(lambda x: kernels.average_changed(x, epsilon, factors), x))
    first, second = deferred(lambda x: kernels.count_changed(x, epsilon), x)
    assert first == second


@given(tiles(max_models=2), st.floats(0, 3, width=32), st.sampled_from([1, 8, 25, 1025]))
@settings(max_examples=50, deadline=None)
def test_importance(x: Tensor, least: float, num_columns: int) -> None:
    x = torch.cat([x, x.flip(1)])[:2, : max(1, x.shape[1] // num_columns) * num_columns]
    num_columns = min(num_columns, x.shape[1])
    factors = np.random.default_rng(0).uniform(0, 2, x.shape[1] // num_columns).astype(np.float32)

    def taken(x: Any) -> Any:
        return kernels.take(x, kernels.importance(x, factors, num_columns), least)

    same(*deferred(taken, x, num_columns))


KEYS = st.integers(0, 2**128 - 1).map(lambda key: np.array([key % 2**64, key >> 64], np.uint64))
#: From the first elements of a tensor to the last that can be numbered.
STARTS = st.one_of(st.integers(0, 70_000), st.just(16 * (2**58 - 3) + 5))
NUMBERS = st.integers(0, 2**16 - 1)


@given(KEYS, STARTS, SIZES, NUMBERS, st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_draws(key: np.ndarray, start: int, n: int, most: int, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(0, 1 << 16, n, np.uint16)
    for function in (
        lambda _: draws.numbers(key, start, n),
        lambda _: draws.at_most(key, start, n, most),
        lambda _: draws.below(key, start, levels),
    ):
        same(*both(function, torch.empty(1, n)))


@st.composite
def ranked(draw: st.DrawFn) -> Tensor:
    """Rows whose ranks are hard to tell: of equal numbers, near ones, far ones, and some that are none."""
    columns = draw(st.sampled_from([1, 2, 24, 25, 255, 256, 1000, 1023, 1024, 4097, 5001, 16384]))
    rows = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    values = rng.standard_normal((rows, columns)).astype(np.float32)
    kind = draw(st.sampled_from(["numbers", "differences", "few", "near", "far", "tiny", "not finite"]))
    if kind in ("differences", "few"):
        scale = 0.05 if kind == "differences" else 0.003
        old = torch.from_numpy(rng.standard_normal(values.shape).astype(np.float32)).bfloat16()
        return (old + scale * torch.from_numpy(values)).bfloat16().float() - old.float()
    if kind == "near":
        values = np.float32(1) + values * np.float32(1e-6)
    if kind == "far":
        values *= np.float32(10) ** rng.uniform(-37, 37, values.shape).astype(np.float32)
    if kind == "tiny":
        values *= np.float32(1e-42)
    if kind == "not finite":
        values[:, columns // 3] = np.nan
        values[:, columns // 2] = -np.inf
    return torch.from_numpy(values)


@given(ranked())
@settings(max_examples=100, deadline=None)
def test_by_rank(x: Tensor) -> None:
    values = np.arange(x.shape[1], dtype=np.uint16) * 7
    same(*both(lambda x: ranks.by_rank(x.contiguous().numpy(), values), x))


@given(ranked(), KEYS, STARTS, NUMBERS, NUMBERS)
@settings(max_examples=200, deadline=None)
def test_draws_by_rank(x: Tensor, key: np.ndarray, start: int, first: int, last: int) -> None:
    levels = np.rint(np.linspace(first, last, x.shape[1])).astype(np.uint16)
    same(*both(lambda x: ranks.below(x.contiguous().numpy(), levels, key, start), x))


@pytest.mark.parametrize("columns", [65_534, 65_535, 70_001])
@pytest.mark.parametrize("step", [0.0, 0.25])
def test_ranks_of_long_rows(columns: int, step: float) -> None:
    x = torch.randn(2, columns, generator=torch.Generator().manual_seed(1))
    x = (x / step).round() * step if step else x
    values, key = (np.arange(columns) // 2).astype(np.uint16), np.array([3, 4], np.uint64)
    same(*both(lambda x: ranks.by_rank(x.numpy(), values), x))
    same(*both(lambda x: ranks.below(x.numpy(), values, key, 5), x))


@given(tiles(), st.sampled_from([1, 40, 77, 1100]))
@settings(max_examples=50, deadline=None)
def test_sums_differ_only_by_their_order(x: Tensor, grain: int) -> None:
    def kept(x: Any) -> None:
        for row in x:
            kernels.zero_below(row, 0.5)

    for function in (
        lambda x: kernels.products(x, grain),
        lambda x: kernels.norms_around(x, kept, grain),
    ):
        first, second = (np.asarray(found, np.float64) for found in deferred(function, x, grain))
        scale = np.abs(second).max(initial=0) + float((x.double() ** 2).sum())
        np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-13 * scale)


@given(tiles(), st.sampled_from([1e-4, 0.1, 100.0]))
@settings(max_examples=100, deadline=None)
def test_divergences(x: Tensor, distance: float) -> None:
    """Of rows nearly alike and of others, whose softmax may have one element; sums are of terms up to 1."""
    other = x + distance * x.flip(1)
    found, expected = both(lambda x: softmax_divergences(x.contiguous().numpy(), other.numpy()), x)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=3e-15)


def test_divergences_of_near_rows_are_those_of_longer_numbers() -> None:
    """Σ p ln(p / q) in numbers of 64 bits of fraction, to more digits than NumPy's float64 gives."""
    rng = np.random.default_rng(0)
    second = rng.standard_normal((4, 5001)).astype(np.float32) * np.float32(0.02)
    first = second + rng.standard_normal(second.shape).astype(np.float32) * np.float32(1e-3)
    p, q = (np.exp(x.astype(np.longdouble)) for x in (first, second))
    p, q = (x / x.sum(axis=1, keepdims=True) + np.longdouble(1e-8) for x in (p, q))
    expected = (p * np.log(p / q)).sum(axis=1).astype(np.float64)
    precise = library.compiled() and np.finfo(np.longdouble).nmant >= 63
    np.testing.assert_allclose(softmax_divergences(first, second), expected, rtol=1e-12 if precise else 1e-8)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_divergences_of_rows_that_are_not_finite(value: float) -> None:
    x = torch.linspace(-1, 1, 2 * 1030).view(2, 1030)
    for which in (0, 1):
        for place in (0, 1029):
            rows = [x.clone().numpy(), x.flip(1).contiguous().numpy()]
            rows[which][1, place] = value
            first, second = both(lambda _, rows=rows: softmax_divergences(*rows), x)
            np.testing.assert_allclose(first, second, rtol=1e-12)
            assert np.isnan(first[1]) == (not value < 0)


@given(tiles())
@settings(max_examples=50, deadline=None)
def test_differences(x: Tensor) -> None:
    first, second = both(kernels.differences, x)
    assert first[2:] == second[2:]
    scale = float((x.double() ** 2).sum())
    for one, other in zip(first[:2], second[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13 * scale)


@given(tiles(), st.sampled_from([0.0, 0.25, 1e-6, 2.0, np.inf]))
@settings(max_examples=50, deadline=None)
def test_count_conflicts(x: Tensor, least: float) -> None:
    first, second = both(lambda x: kernels.count_conflicts(x, [least / (i + 1) for i in range(len(x))]), x)
    assert first == second


@given(tiles())
@settings(max_examples=50, deadline=None)
def test_variance(x: Tensor) -> None:
    same(*deferred(kernels.variance, x))


def test_a_tile_is_read_from_files_block_by_block(tmp_path: Path) -> None:
    """Of all types, with a base, in grains that end within blocks; nothing is measured twice."""
    n, grain = 3 * PIECE + 1234, 5000
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    stored_as = {name: torch.randn(n + 5).to(dtype) for name, dtype in dtypes.items()}
    sources = []
    for name, values in stored_as.items():
        path = tmp_path / name
        path.write_bytes(values.view(torch.uint8).numpy().tobytes())
        sources.append(in_file(os.open(path, os.O_RDONLY), 5 * values.element_size(), name))
    tile = Tile(sources, n, grain=grain, has_base=True, check=True)
    base, *models = (values[5:].float() for values in stored_as.values())
    x = torch.stack(models) - base
    np.testing.assert_allclose(
        kernels.products(tile, grain), elsewhere.products(x, grain), rtol=1e-12, atol=1e-9
    )
    same(tile.array(), x)
    out = np.empty(n, np.uint16)
    tile.run(tile[1], "BF16", out)
    same(out, (x[1] + base).bfloat16().view(torch.int16).numpy().view(np.uint16))
    for source in sources:
        os.close(source.file)
    with pytest.raises(Failed):
        tile.run()


@pytest.mark.parametrize(("bad", "base"), [(0, True), (1, True), (2, False)])
def test_numbers_that_are_not_finite_are_noticed(bad: int, base: bool) -> None:
    x = torch.randn(3, 2000)
    x[bad, 1999] = float("inf")
    with pytest.raises(Failed):
        tile_of(x, base=base).run()
    tile = tile_of(torch.full((1, 10), 3e38))
    kernels.combine(tile, [2.0])
    with pytest.raises(Failed):
        tile.run(tile[0], "F32", np.empty(10, np.float32))


@pytest.mark.parametrize("functions", [library.FUNCTIONS, None])
def test_reading(functions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "FUNCTIONS", functions)
    values = torch.randn(50_000).bfloat16()
    path = tmp_path / "x"
    path.write_bytes(values.view(torch.uint8).numpy().tobytes())
    with path.open("rb") as f:
        out = torch.empty(40_001)
        assert stored.read_bfloat16(f.fileno(), 2 * 3, out) == 2 * len(out)
        assert torch.equal(out, values[3 : 3 + len(out)].float())
        assert stored.read_bfloat16(f.fileno(), 2 * 49_000, out) == 2 * 1000
        with pytest.raises(OSError, match="descriptor"):
            stored.read_bfloat16(10_000, 0, out)


def test_a_library_of_another_version_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, built = tmp_path / "old.c", tmp_path / "old.so"
    source.write_text("int meldkit_level(void) { return 0; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(built), str(source)], check=True)
    monkeypatch.setattr(library, "PATH", built)
    assert library.load() is None
