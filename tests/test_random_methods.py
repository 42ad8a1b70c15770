"""The random methods: their generator, the statistics of what they keep, and what that depends on.

Bounds are five standard deviations of the binomial law, and the seeds are fixed: these tests pass or fail
for good.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from meldkit import merge_state_dicts, merge_tensors
from meldkit.errors import RecipeError
from meldkit.methods import METHODS
from meldkit.methods.noise import Noise
from meldkit.methods.statistics import CHUNK
from oracles import keep_probability, numbers

DARE = ("dare_linear", "dare_ties")
DELLA = ("della_linear", "della")
#: The same method when nothing is dropped.
PLAIN = {
    "dare_linear": "task_arithmetic",
    "dare_ties": "ties",
    "della_linear": "task_arithmetic",
    "della": "ties",
}
N = 1 << 18


def check_binomial(count: float, n: int, p: float) -> None:
    """A count of n trials, each with probability p."""
    assert abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p)), (count / n, p)


def mask(
    method: str, *, n: int = N, seed: int = 0, name: str = "w", model: int = 0, **parameters: float
) -> np.ndarray:
    """What a method keeps of one model's tensor."""
    models = [torch.zeros(n), torch.zeros(n), torch.zeros(n)]
    models[model].fill_(1.0)
    merged = merge_tensors(
        models,
        method,
        base=torch.zeros(n),
        seed=seed,
        name=name,
        rescale="none",
        weight=1,
        normalize=False,
        **parameters,
    )
    assert set(merged.unique().tolist()) <= {0.0, 1.0}
    return merged.numpy() > 0


def random_case(method: str) -> tuple[list[Tensor], Tensor, dict[str, float | bool]]:
    """Two models and a base of some 200 000 elements, in rows that fill no tile evenly; parameters."""
    rng = np.random.default_rng(3)
    tensors = [torch.from_numpy(rng.standard_normal((203, 1001)).astype(np.float32)) for _ in range(3)]
    parameters: dict[str, float | bool] = {"weight": 0.6, "density": 0.4}
    if method in DELLA:
        parameters["epsilon"] = 0.2
    return tensors[1:], tensors[0], parameters


# The generator


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    name=st.text(max_size=20),
    model=st.integers(0, 12),
    start=st.integers(0, 3000),
    n=st.integers(0, 300),
)
def test_generator_is_the_documented_one(seed: int, name: str, model: int, start: int, n: int) -> None:
    want = numbers(seed, name, model, start + n)[start:]
    np.testing.assert_array_equal(Noise(seed, name).uniform(model, start, n), want)


def test_numbers_never_change() -> None:
    """What a merge was made with must make it again, with any later version."""
    noise = Noise(7, "model.layers.0.mlp.up_proj.weight")
    assert noise.uniform(1, 0, 8).tolist() == [229, 41751, 258, 37576, 16802, 1114, 46556, 63576]
    assert noise.uniform(1, 10**12 + 5, 4).tolist() == [12093, 674, 1237, 40452]


@pytest.mark.parametrize("density", [1e-9, 1e-5, 0.1, 0.5, 0.7, 1 - 1e-9])
def test_kept_where_the_number_is_below_the_density(density: float) -> None:
    want = numbers(5, "w", 2, 1 << 17) < max(1, round(density * 65536))
    np.testing.assert_array_equal(Noise(5, "w").keep(2, 0, 1 << 17, density), want)
    np.testing.assert_array_equal(Noise(5, "w").keep(2, 0, 13, density), want[:13])


def test_nothing_is_kept_at_density_0() -> None:
    assert not Noise(5, "w").keep(0, 0, 1 << 17, 0.0).any()


def test_numbers_are_uniform() -> None:
    """χ² of 256 classes, within five standard deviations; each bit is set half of the time."""
    drawn = Noise(11, "w").uniform(0, 0, 1 << 20)
    for byte in (drawn >> 8, drawn & 255):
        counts = np.bincount(byte, minlength=256)
        expected = len(drawn) / 256
        chi = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi - 255) <= 5 * math.sqrt(2 * 255)
    for bit in range(16):
        check_binomial(int((drawn >> bit & 1).sum()), len(drawn), 0.5)


# What is kept


@pytest.mark.parametrize("method", DARE)
@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.9])
def test_dare_keeps_the_density(method: str, density: float) -> None:
    check_binomial(int(mask(method, density=density).sum()), N, density)


@pytest.mark.parametrize("method", DARE)
def test_dare_keeps_whatever_the_size(method: str) -> None:
    """Kept and dropped elements of a model are as large."""
    models, base, parameters = random_case(method)
    merged = merge_tensors(models[:1], method, base=base, rescale="none", **{**parameters, "weight": 1})
    delta = (models[0] - base).abs().numpy().reshape(-1)
    kept = (merged != base).numpy().reshape(-1)
    for part in np.array_split(np.argsort(delta), 5):
        check_binomial(int(kept[part].sum()), len(part), 0.4)


@pytest.mark.parametrize("pair", [*combinations([(0, "w", 0), (0, "w", 1), (0, "v", 0), (1, "w", 0)], 2)])
@pytest.mark.parametrize("density", [0.2, 0.5])
def test_masks_are_independent(
    pair: tuple[tuple[int, str, int], tuple[int, str, int]], density: float
) -> None:
    """Of another model, tensor or seed: both keep density² of the elements."""
    first, second = (
        mask("dare_linear", seed=seed, name=name, model=model, density=density) for seed, name, model in pair
    )
    check_binomial(int((first & second).sum()), N, density**2)


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 16, 64, 4096])
def test_elements_are_independent(lag: int) -> None:
    kept = mask("dare_linear", density=0.5)
    check_binomial(int((kept[lag:] ^ kept[:-lag]).sum()), N - lag, 0.5)


@pytest.mark.parametrize("seeds", [(0, 1), (0, 10), (1, 11)])
def test_keys_do_not_run_together(seeds: tuple[int, int]) -> None:
    """Seed and name are told apart: seed 1 with name "1w" is not seed 11 with name "w"."""
    first, second = (numbers(seed, name, 0, 64) for seed, name in zip(seeds, ("1w", "w"), strict=True))
    assert (first != second).any()


@pytest.mark.parametrize("method", DELLA)
def test_della_keeps_along_a_line(method: str) -> None:
    """An element of rank r in a row of n is kept with probability density − ε + 2 ε r / (n − 1)."""
    rng = np.random.default_rng(0)
    rows, columns = 8000, 17
    ranks = rng.permuted(np.tile(np.arange(columns), (rows, 1)), axis=1)
    delta = ((1 + ranks) * np.where(rng.random(ranks.shape) < 0.5, 1, -1)).astype(np.float32)
    merged = merge_tensors(
        [torch.from_numpy(delta)],
        method,
        base=torch.zeros(rows, columns),
        weight=1,
        density=0.45,
        epsilon=0.3,
        rescale="none",
    )
    kept = merged.numpy() != 0
    for rank in range(columns):
        at = ranks == rank
        check_binomial(int(kept[at].sum()), rows, 0.45 - 0.3 + 0.6 * rank / (columns - 1))
    check_binomial(int(kept.sum()), rows * columns, 0.45)  # narrower than that, in truth


def test_probabilities_of_a_row_by_hand() -> None:
    delta = np.array([0.1, -0.4, 0.2, -0.3])
    got = keep_probability(delta, 0.5, 0.2, (4,))
    np.testing.assert_allclose(got, [0.3, 0.7, 0.5 - 0.2 / 3, 0.5 + 0.2 / 3])
    n = 20_000
    merged = merge_tensors(
        [torch.from_numpy(np.tile(delta, (n, 1))).float()],
        "della_linear",
        base=torch.zeros(n, 4),
        weight=1,
        density=0.5,
        epsilon=0.2,
        rescale="none",
    )
    for column, p in enumerate(got):
        check_binomial(int((merged[:, column] != 0).sum()), n, p)


@pytest.mark.parametrize("method", DELLA)
def test_della_of_rows_of_one_element_keeps_the_density(method: str) -> None:
    for shape in ((N, 1), (N // 4, 4, 1)):
        merged = merge_tensors(
            [torch.ones(shape)],
            method,
            base=torch.zeros(shape),
            weight=1,
            density=0.3,
            epsilon=0.2,
            rescale="none",
        )
        check_binomial(int(merged.sum()), N, 0.3)


@pytest.mark.parametrize("method", DELLA)
def test_della_takes_a_vector_for_one_row(method: str) -> None:
    delta = torch.arange(1.0, N + 1)
    parameters = {"weight": 1, "density": 0.5, "epsilon": 0.4, "rescale": "none"}
    kept = merge_tensors([delta], method, base=torch.zeros(N), **parameters) != 0
    for part in range(8):
        mean = 0.1 + 0.8 * (part + 0.5) / 8
        check_binomial(int(kept[part * N // 8 : (part + 1) * N // 8].sum()), N // 8, mean)


# Rescaling


@pytest.mark.parametrize("method", DARE)
@pytest.mark.parametrize("density", [0.1, 0.5, 0.8])
def test_inverse_density_is_unbiased(method: str, density: float) -> None:
    """The mean over many elements is what it would be without dropping."""
    merged = merge_tensors(
        [torch.full((N,), 0.01)],
        method,
        base=torch.zeros(N),
        weight=1,
        density=density,
        rescale="inverse_density",
    )
    p = round(density * 65536) / 65536
    check_binomial(merged.double().sum().item() / 0.01 * p, N, p)
    kept = merged[merged != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 0.01 / p), rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", DELLA)
def test_keep_probability_is_unbiased(method: str) -> None:
    """At every rank, whose elements are kept with different probabilities."""
    rows, columns = 8000, 11
    delta = torch.arange(1.0, columns + 1).expand(rows, columns)
    merged = merge_tensors(
        [delta],
        method,
        base=torch.zeros(rows, columns),
        weight=1,
        density=0.5,
        epsilon=0.4,
        rescale="keep_probability",
    )
    for rank in range(columns):
        p = round(65536 * (0.1 + 0.8 * rank / (columns - 1))) / 65536
        check_binomial(merged[:, rank].double().sum().item() / (rank + 1) * p, rows, p)


@pytest.mark.parametrize("method", PLAIN)
def test_l1_restores_the_norm(method: str) -> None:
    """Of each model; and an element that is kept is multiplied by the same number as the others."""
    models, base, parameters = random_case(method)
    zero = torch.zeros_like(base)
    merged = merge_tensors(models[:1], method, base=zero, **{**parameters, "weight": 1})
    before, after = (t.double().abs().sum().item() for t in (models[0], merged))
    assert math.isclose(before, after, rel_tol=1e-6)
    ratios = (merged / models[0])[merged != 0]
    torch.testing.assert_close(ratios, torch.full_like(ratios, ratios.mean().item()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize(("flag", "word"), [(True, "l1"), (False, "none")])
def test_flags_of_mergekit_are_words_here(method: str, flag: bool, word: str) -> None:
    models, base, parameters = random_case(method)
    assert torch.equal(
        merge_tensors(models, method, base=base, **parameters, rescale=flag),
        merge_tensors(models, method, base=base, **parameters, rescale=word),
    )


def test_rescaling_by_hand() -> None:
    """[1, −2, 3, −4] of which the second and fourth are kept."""
    seed = next(s for s in range(1000) if (numbers(s, "w", 0, 4) < 32768).tolist() == [0, 1, 0, 1])
    for rescale, want in (
        ("l1", [0, -10 / 3, 0, -20 / 3]),
        ("inverse_density", [0, -4, 0, -8]),
        ("none", [0, -2, 0, -4]),
    ):
        merged = merge_tensors(
            [torch.tensor([1.0, -2, 3, -4])],
            "dare_linear",
            base=torch.zeros(4),
            seed=seed,
            name="w",
            weight=1,
            density=0.5,
            rescale=rescale,
        )
        np.testing.assert_allclose(merged.numpy(), want, rtol=1e-6)


# What it depends on


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("rescale", ["l1", "none", "of its own"])
def test_tiles_and_threads_change_no_bit(method: str, rescale: str) -> None:
    models, base, parameters = random_case(method)
    own = "inverse_density" if method in DARE else "keep_probability"
    rescale = own if rescale == "of its own" else rescale
    results = [
        merge_tensors(models, method, base=base, tile=tile, threads=threads, rescale=rescale, **parameters)
        for tile, threads in ((CHUNK, 1), (CHUNK, 4), (2 * CHUNK, 2), (1 << 20, 1))
    ]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("method", PLAIN)
def test_seed_and_name_decide(method: str) -> None:
    models, base, parameters = random_case(method)

    def merge(seed: int, name: str) -> Tensor:
        return merge_tensors(models, method, base=base, seed=seed, name=name, **parameters)

    assert torch.equal(merge(1, "a"), merge(1, "a"))
    assert not torch.equal(merge(1, "a"), merge(2, "a"))
    assert not torch.equal(merge(1, "a"), merge(1, "b"))


@pytest.mark.parametrize("method", PLAIN)
def test_other_tensors_and_generators_do_not_matter(method: str) -> None:
    """A tensor comes out the same alone, among others, and whatever was drawn before."""
    models, base, parameters = random_case(method)
    alone = merge_tensors(models, method, base=base, seed=4, name="b", **parameters)
    np.random.seed(1)
    torch.manual_seed(1)
    dicts = [{"a": m[:7] * 2, "b": m, "c": m + 1} for m in (*models, base)]
    together = merge_state_dicts(dicts[:-1], method, base=dicts[-1], seed=4, threads=2, **parameters)
    assert torch.equal(together["b"], alone)


@pytest.mark.parametrize("method", PLAIN)
def test_density_1_drops_nothing(method: str) -> None:
    models, base, _ = random_case(method)
    got = merge_tensors(models, method, base=base, weight=[0.3, 0.8], normalize=True, seed=9)
    want = merge_tensors(models, PLAIN[method], base=base, weight=[0.3, 0.8], normalize=True)
    assert torch.equal(got, want)


@pytest.mark.parametrize("method", DELLA)
@pytest.mark.parametrize(("density", "epsilon"), [(0.9, 0.15), (0.1, 0.15), (0.5, 0.5)])
def test_probabilities_must_stay_below_1(method: str, density: float, epsilon: float) -> None:
    parameters = {"weight": 1, "density": density, "epsilon": epsilon}
    with pytest.raises(RecipeError, match="density"):
        merge_tensors([torch.ones(3)], method, base=torch.zeros(3), **parameters)


def test_which_methods_are_random() -> None:
    assert {name for name, method in METHODS.items() if method.random} == set(PLAIN)
