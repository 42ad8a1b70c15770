"""Methods where one case ends and another begins: shares, thresholds, probabilities, nothing to measure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meldkit import merge_tensors
from meldkit.kernels.ranks import by_rank
from meldkit.methods import METHODS, Method, Noise, Whole, get_method
from meldkit.methods._della import levels_by_rank
from meldkit.methods._task_vectors import combine_weighted
from meldkit.methods.karcher import karcher
from meldkit.methods.linear import normalized
from meldkit.methods.slerp import COLLINEAR, slerp
from meldkit.methods.statistics import CHUNK, Sums, l1_ratio
from meldkit.recipe import parse_recipe

#: Methods that add task vectors up, without an election of signs.
SUMS = ("task_arithmetic", "dare_linear", "della_linear", "breadcrumbs")
WHOLE = Whole(2, (8, 16), Noise(0, "w"))


def values_of(name: str, **given: Any) -> tuple[Method, dict[str, Any]]:
    """A method, and its parameters for two models; those that have no default are 1."""
    method = METHODS[name]
    values: dict[str, Any] = {}
    for p in method.parameters:
        value = given.get(p.name, 1.0 if p.required else p.default)
        values[p.name] = (value,) * 2 if p.per_model and not isinstance(value, tuple) else value
    return method, values


def coefficients(method: Method, values: dict[str, Any], measured: Any) -> list[float]:
    """What two models are multiplied by."""
    whole = Whole(2, (2,), Noise(0, "w"))
    merged = method.apply(torch.eye(2), values, measured, whole, 0)
    assert isinstance(merged, torch.Tensor)
    return merged.tolist()


# shares


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.integers(-12, 12))
def test_only_proportions_of_weights_count(weights: list[float], power: int) -> None:
    shares = normalized(weights)
    assert math.fsum(shares) == pytest.approx(1)
    assert normalized([10.0**power * w for w in weights]) == pytest.approx(shares)
    assert normalized([-w for w in weights]) == shares


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize(
    ("rest", "cancels"), [(0.0, True), (0.9, True), (1.1, False), (1.9, False), (5, False)]
)
def test_weights_cancel_below_a_hundred_millionth_of_their_sizes(
    scale: float, rest: float, cancels: bool
) -> None:
    weights = [scale * (1 + 2e-8 * rest), -scale]
    if cancels:
        with pytest.raises(ValueError, match="sum to 0, which cannot be normalized"):
            normalized(weights)
    else:
        assert math.fsum(normalized(weights)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "weight", "more", "valid"),
    [
        ("linear", (1.0, -1.0), {}, False),
        ("linear", (0.0, 0.0), {}, False),
        ("linear", (1.0, -1.0), {"normalize": False}, True),
        ("multislerp", (1.0, -1.0), {}, False),
        ("multislerp", (1.0, -1.0), {"normalize_weights": False}, True),
        ("multislerp", (0.0,), {}, True),
        *((name, (1.0, -1.0), {"normalize": True}, False) for name in SUMS),
        *((name, (1.0, -1.0), {"normalize": False}, True) for name in SUMS),
        ("karcher", (1.0, -1.0), {}, False),
        ("karcher", (1.0, -1.0), {"compat": True}, True),
    ],
)
def test_weights_that_sum_to_0_are_refused_where_they_are_divided_by_it(
    name: str, weight: tuple[float, ...], more: dict[str, Any], valid: bool
) -> None:
    method, values = values_of(name, weight=weight, **more)
    if valid:
        method.check(values)
    else:
        with pytest.raises(ValueError, match="sum to 0"):
            method.check(values)


# arcs


def test_slerp_follows_the_arc_up_to_its_threshold() -> None:
    for cosine in (COLLINEAR, -COLLINEAR):
        first, second = slerp(np.array([[1.0, cosine], [cosine, 1.0]]), t=0.5)
        assert first == second == pytest.approx(0.5 / math.cos(math.acos(cosine) / 2), rel=1e-12)
    line = slerp(np.array([[1.0, 0.9996], [0.9996, 1.0]]), t=0.25)
    assert line == (0.75, 0.25)


@pytest.mark.parametrize(("cosine", "on_arc"), [(-1 + 1.5e-6, True), (-1 + 0.5e-6, False), (-0.9996, True)])
def test_nuslerp_follows_the_arc_almost_up_to_opposite_vectors(cosine: float, on_arc: bool) -> None:
    method, values = values_of("nuslerp")
    found = coefficients(method, values, np.array([[1.0, cosine], [cosine, 1.0]]))
    want = 0.5 / math.cos(math.acos(cosine) / 2) if on_arc else 0.5
    assert found == pytest.approx([want, want])


@pytest.mark.parametrize(("length", "cosine"), [(1.5e-8, 0.5), (0.9e-8, 0.0)])
def test_slerp_of_next_to_nothing_has_no_angle(length: float, cosine: float) -> None:
    """From 1e-8 on a vector has a direction; shorter ones are at right angles to all others."""
    for gram in ([[1, length / 2], [length / 2, length**2]], [[length**2, length / 2], [length / 2, 1]]):
        first, second = slerp(np.array(gram), t=0.5)
        assert first == second == pytest.approx(0.5 / math.cos(math.acos(cosine) / 2))


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 9), min_size=2, max_size=4), st.integers(0, 99))
def test_mean_of_parallel_models_is_on_their_line(lengths: list[float], seed: int) -> None:
    """Where cosines are 1 but for rounding, which may go either way."""
    x = torch.randn(37, generator=torch.Generator().manual_seed(seed))
    models = [length * x for length in lengths]
    mean = sum(lengths) / len(lengths) * x
    for name in ("karcher", "multislerp", "nuslerp", "slerp"):
        if len(models) == 2 or name in ("karcher", "multislerp"):
            parameters = {"t": 0.5} if name == "slerp" else {"weight": 1}
            torch.testing.assert_close(merge_tensors(models, name, **parameters), mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_cosines_beyond_1_are_1(sign: int) -> None:
    """Rounding makes one in twenty of these larger than 1, or smaller than −1."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        lengths = rng.uniform(0.1, 9, 3)
        lengths[1] *= sign
        x = rng.standard_normal(37)
        models = np.outer(lengths, x).astype(np.float32).astype(np.float64)
        gram = models @ models.T
        # An opposite model has no direction to the mean, and a share of the length.
        mean = np.array(karcher(gram, weight=[1.0] * 3, max_iter=9, tol=1e-9, compat=False)) @ models
        np.testing.assert_allclose(mean, np.abs(lengths).mean() * x, rtol=1e-5, atol=1e-5)
        method, values = values_of("nuslerp")
        middle = np.array(coefficients(method, values, gram[:2, :2])) @ models[:2]
        np.testing.assert_allclose(middle, models[:2].mean(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("models", "parameters", "result"),
    [
        # A model without length has no direction, but a share of the length, also a negative one.
        (([0, 0], [0, 2]), {"weight": [3, -1]}, [0, -1]),
        (([0, 0], [0, 2]), {"weight": [1, 1.5e-8]}, [0, 3e-8]),
        (([0, 0], [0, 2]), {"weight": [1, 0.5e-8]}, [0, 0]),
        (([0.5, 0], [0, 2]), {"tol": 0.5}, [0, 1.25]),
        (([1, 0], [0, 0.5]), {"tol": 1}, [0, 0]),
    ],
)
def test_karcher_of_models_without_direction(
    models: tuple[list[float], ...], parameters: dict[str, Any], result: list[float]
) -> None:
    merged = merge_tensors([torch.tensor(m, dtype=torch.float32) for m in models], "karcher", **parameters)
    np.testing.assert_allclose(merged.numpy(), result, rtol=1e-5, atol=1e-12)


def test_karcher_begins_with_the_first_direction_where_the_sum_is_shorter_than_tol() -> None:
    models = [torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])]
    for tol, want in ((0.01, [1, 0]), (0.001, [-1, 0])):
        merged = merge_tensors(models, "karcher", weight=[0.499, 0.501], tol=tol, max_iter=0)
        np.testing.assert_allclose(merged.numpy(), want, rtol=1e-6, atol=1e-12)


def test_multislerp_shortens_directions_by_eps() -> None:
    merged = merge_tensors(
        [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])], "multislerp", weight=1, eps=0.5
    )
    direction = np.array([1 / 1.5, 2 / 2.5])
    np.testing.assert_allclose(merged.numpy(), 1.5 * direction / np.linalg.norm(direction), rtol=1e-6)


def test_a_sum_of_weights_that_is_0_is_never_divided_by() -> None:
    with pytest.raises(ValueError, match="sum to 0"):
        combine_weighted(torch.ones(2, 1), [1.0, -1.0], [1.0, -1.0], normalize=True, lambda_=1)
    x = torch.tensor([[3.0], [1.0]])
    assert combine_weighted(x, [1.0, -1.0], [1.0, -1.0], normalize=False, lambda_=2) == 4


def test_opposite_models_have_no_mean_and_the_first_one_gives_the_direction() -> None:
    merged = merge_tensors([torch.tensor([1.0, 0.0]), torch.tensor([-3.0, 0.0])], "karcher")
    np.testing.assert_allclose(merged.numpy(), [2, 0])


@pytest.mark.parametrize(
    ("weight", "t"),
    [((1e-6, 0.0), 0.0), ((0.0, 1e-6), 1.0), ((1e-7, 0.0), 0.5), ((0.0, 0.0), 0.5), ((-2.0, 0.0), 0.0)],
)
def test_nuslerp_of_weights_that_sum_to_next_to_nothing_is_half_way(
    weight: tuple[float, float], t: float
) -> None:
    models = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    merged = merge_tensors(models, "nuslerp", weight=list(weight))
    np.testing.assert_allclose(
        merged.numpy(), [math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)], atol=1e-6
    )


def test_a_model_without_direction_changes_only_the_length_of_the_mean() -> None:
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for max_iter in (1, 2, 9):
        two = merge_tensors([first, second], "karcher", weight=[1, 2], max_iter=max_iter)
        three = [first, second, torch.zeros(2)]
        merged = merge_tensors(three, "karcher", weight=[1, 2, 3], max_iter=max_iter)
        torch.testing.assert_close(merged, two / 2)


@given(st.integers(0, 99))
@settings(deadline=None)
def test_directions_that_cancel_out_in_large_numbers_are_a_line(seed: int) -> None:
    """Rounding leaves something of them, the more the larger the weights."""
    x = torch.randn(37, generator=torch.Generator().manual_seed(seed))
    merged = merge_tensors([x, 3 * x], "multislerp", weight=[1e6, -1e6], normalize_weights=False)
    torch.testing.assert_close(merged, -2e6 * x, rtol=1e-5, atol=1)


def test_weights_of_both_signs_are_divided_by_their_sum() -> None:
    """Two votes against: θ = (−1 − 1) / (−1 − 1)."""
    models = [torch.tensor([x]) for x in (0.0, 1.0, 1.0)]
    assert merge_tensors(models, "ties", base=torch.zeros(1), weight=[2, -1, -1]).item() == 1


# probabilities


@pytest.mark.parametrize("num_columns", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("density", "epsilon"), [(0.5, 0.25), (0.3, 0.0), (1e-7, 0.0), (1 - 1e-7, 0.0), (0.5, 0.4999999)]
)
def test_probabilities_rise_evenly_with_the_rank(num_columns: int, density: float, epsilon: float) -> None:
    """From d − ε to d + ε, in 65536ths, and never 0 or 1; the largest of a row has the last rank."""
    rows = np.random.default_rng(num_columns).standard_normal((5, num_columns)).astype(np.float32)
    levels = by_rank(rows, levels_by_rank(num_columns, density, epsilon)).reshape(rows.shape)
    ranks = np.abs(rows).argsort(axis=1).argsort(axis=1)
    share = ranks / (num_columns - 1) if num_columns > 1 else np.full(rows.shape, 0.5)
    want = np.clip(np.round(65536 * (density - epsilon + 2 * epsilon * share)), 1, 65535)
    np.testing.assert_array_equal(levels, want)


@pytest.mark.parametrize("name", ["della", "della_linear"])
@pytest.mark.parametrize(
    ("density", "epsilon", "valid"),
    [
        (0.5, 0.25, True),
        (0.5, 0.5, False),
        (0.25, 0.25, False),
        (0.75, 0.25, False),
        (0.25, 0.2499, True),
        (0.75, 0.2499, True),
        (0.3, 0.4, False),
        (0.7, 0.4, False),
        # All, or nothing: there is nothing to draw.
        (0.0, 0.5, True),
        (1.0, 0.5, True),
    ],
)
def test_window_of_probabilities_is_open(name: str, density: float, epsilon: float, valid: bool) -> None:
    method, values = values_of(name, density=(0.5, density), epsilon=(0.1, epsilon))
    if valid:
        method.check(values)
    else:
        with pytest.raises(ValueError, match=f"density {density:g} with epsilon {epsilon:g}: "):
            method.check(values)


def test_a_density_of_0_is_no_small_one() -> None:
    noise = Noise(5, "w")
    assert not noise.keep(0, 0, 1 << 20, 0.0).any()
    assert noise.keep(0, 0, 1 << 20, 1e-9).any()
    assert noise.keep(0, 0, 1 << 20, 1.0).all()


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_nothing_is_kept_of_a_density_of_0(name: str) -> None:
    """However it is made up for; the other model counts alone."""
    base = torch.zeros(4, 64)
    first, second = torch.ones(4, 64), torch.full((4, 64), 3.0)
    (rescale,) = (p for p in METHODS[name].parameters if p.name == "rescale")
    for word in rescale.choices:
        parameters = {"weight": 1, "normalize": False, "density": [0, 1], "rescale": word}
        merged = merge_tensors([first, second], name, base=base, **parameters)
        assert torch.equal(merged, second), word


@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_what_is_kept_does_not_depend_on_how_the_rest_is_made_up_for(name: str) -> None:
    """Of so many elements some have the very number of their probability."""
    base = torch.zeros(64, 1 << 13)
    model = torch.randn(base.shape, generator=torch.Generator().manual_seed(5))
    kept = {
        word: merge_tensors([model], name, base=base, weight=1, density=0.4, epsilon=0.2, rescale=word) != 0
        for word in ("none", "l1", "keep_probability")
    }
    assert torch.equal(kept["none"], kept["l1"])
    assert torch.equal(kept["none"], kept["keep_probability"])


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_all_is_kept_of_a_density_of_1(name: str) -> None:
    """Also of so many elements that a probability next to 1 would drop some, beside one that is thinned."""
    base = torch.zeros(16, 1 << 14)
    (rescale,) = (p for p in METHODS[name].parameters if p.name == "rescale")
    for word in rescale.choices:
        parameters = {"weight": [1, 0], "normalize": False, "density": [1, 0.5], "rescale": word}
        merged = merge_tensors([torch.ones_like(base), torch.ones_like(base)], name, base=base, **parameters)
        assert torch.equal(merged, torch.ones_like(base)), word


@pytest.mark.parametrize(
    ("before", "after", "ratio"),
    [
        (2e-7, 1e-7, 2.0),
        (2e-7, 0.9e-7, 1.0),
        (1e-7, 1e-7, 1.0),
        (0.5e-7, 1e-6, 1.0),
        (6.0, 3.0, 2.0),
        (1.0, 0.0, 1.0),
    ],
)
def test_a_norm_is_restored_where_there_is_one(before: float, after: float, ratio: float) -> None:
    assert l1_ratio(before, after) == ratio


def test_ramplus_amplifies_by_what_is_shared_of_what_is_own() -> None:
    """The first model changes three elements, one of them with the second: f = 1 + r · 1/2."""
    models = [torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 2.0, 0.0])]
    merged = merge_tensors(models, "ramplus_tl", base=torch.zeros(4), r=1, alpha=3)
    torch.testing.assert_close(merged, torch.tensor([1.5, 1.5, 1.5, 0.0]))


# nothing to do


@pytest.mark.parametrize(
    ("name", "given", "measures"),
    [
        ("ties", {"density": 1.0, "rescale": True}, False),
        ("ties", {"density": (1.0, 0.5)}, True),
        ("breadcrumbs", {"density": 1.0, "rescale": True}, False),
        ("breadcrumbs", {"density": (0.5, 1.0)}, True),
        ("dare_ties", {"density": 1.0}, False),
        ("dare_ties", {"density": (1.0, 0.5)}, True),
        ("dare_ties", {"density": 0.5, "rescale": "none"}, False),
        ("dare_ties", {"density": 0.5, "rescale": "inverse_density"}, False),
        ("della", {"density": 1.0}, False),
        ("della", {"density": (1.0, 0.5)}, True),
        ("della", {"density": 0.5, "rescale": "none"}, False),
        ("della", {"density": 0.5, "rescale": "keep_probability"}, False),
        ("model_stock", {}, True),
        ("model_stock", {"filter_wise": True}, False),
        ("nuslerp", {}, True),
        ("nuslerp", {"nuslerp_flatten": False}, False),
        ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}, True),
        ("linear", {}, False),
        ("ram", {}, False),
    ],
)
def test_weights_are_read_before_only_where_that_decides_something(
    name: str, given: dict[str, Any], measures: bool
) -> None:
    method, values = values_of(name, **given)
    statistic = method.statistic(WHOLE, values)
    assert (statistic is not None and bool(statistic.ranges())) is measures
    assert method.model_statistic(WHOLE, values) is None


@pytest.mark.parametrize(
    ("density", "scope", "measures"),
    [(0.5, "model", True), (1.0, "model", False), (0.5, "tensor", False), (1.0, "tensor", False)],
)
def test_the_whole_model_is_measured_only_for_its_own_trim(
    density: float, scope: str, measures: bool
) -> None:
    method, values = values_of("ties", density=density, trim_scope=scope)
    assert (method.model_statistic(WHOLE, values) is not None) is measures


@pytest.mark.parametrize("scale", [None, 1.0, 0.0, 2.0, -1.0, 0.5])
def test_passthrough_is_a_copy_where_it_changes_nothing(scale: float | None) -> None:
    method = METHODS["passthrough"]
    x = torch.tensor([1.5, -2.0, 0.25])
    parameters = {} if scale is None else {"scale": scale}
    unchanged = torch.equal(merge_tensors([x], "passthrough", **parameters), x)
    assert method.copies({"scale": (scale,)}) is unchanged
    assert not METHODS["linear"].copies(values_of("linear")[1])


@pytest.mark.parametrize(
    ("name", "given", "by_rows"),
    [
        ("della", {}, True),
        ("ties", {}, False),
        ("nuslerp", {}, False),
        ("nuslerp", {"nuslerp_flatten": False}, True),
        ("model_stock", {}, False),
        ("model_stock", {"filter_wise": True}, True),
        ("arcee_fusion", {}, True),
    ],
)
def test_tiles_are_rows_or_chunks(name: str, given: dict[str, Any], by_rows: bool) -> None:
    method, values = values_of(name, **given)
    assert method.grain(WHOLE, values) == (16 if by_rows else CHUNK)
    # One dimension is one row, and a number a row of one.
    assert method.grain(Whole(2, (5,), Noise(0, "w")), values) == (5 if by_rows else CHUNK)
    assert method.grain(Whole(2, (), Noise(0, "w")), values) == (1 if by_rows else CHUNK)


# sums


@pytest.mark.parametrize("grain", [1, 5, 8])
@pytest.mark.parametrize("tile", [1, 3])
def test_terms_are_those_of_chunks(grain: int, tile: int) -> None:
    """In tiles of several chunks, which arrive in any order."""
    n = 8 * grain + grain // 2
    x = torch.arange(1.0, n + 1)[None]

    def terms(x: torch.Tensor) -> list[list[float]]:
        return [[float(chunk.sum()), float(len(chunk))] for chunk in x[0].split(grain)]

    sums = Sums(terms, 2, n, grain)
    for start in reversed(range(0, n, tile * grain)):
        sums.absorb(sums.update(x[:, start : start + tile * grain], start))
    assert sums.ranges() == [(0, n)]
    sums.finish_pass()
    assert not sums.ranges()
    assert sums.result == [n * (n + 1) / 2, n]


# methods of others


def test_method_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far_away.py").write_text(
        "from meldkit.methods.base import Elementwise\n"
        "METHOD = Elementwise(name='far_away', function=lambda x: x[0])\n"
    )
    info = tmp_path / "far_away-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: far-away\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[meldkit.methods]\nfar_away = far_away:METHOD\nbroken = absent_module:METHOD\n"
        "[of.another.program]\nfar_away = absent_module:METHOD\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    # What else the package declares is not loaded.
    assert get_method("far_away").name == "far_away"
    assert "far_away" in METHODS
    x = torch.ones(3)
    assert torch.equal(merge_tensors([x], "far_away"), x)
    assert parse_recipe("merge_method: far_away\nmodels: [{model: a}]").merge_method == "far_away"
