"""The laws of every method, its float64 oracle, mergekit's outputs, and checks worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from meldkit import merge_state_dicts, merge_tensors
from meldkit.methods import METHODS, Base
from meldkit.methods.statistics import CHUNK
from methods_table import TABLE, Change, Row
from oracles import Answer, Parameters, rounded

#: Of float32 results, relative to the largest number met.
TOLERANCE = 2e-6

SMALL = (
    st.sampled_from([(), (1,), (1, 1), (0,), (0, 3), (3, 0), (1, 17), (17, 1), (1, 1, 5), (2, 3, 4)])
    | st.tuples(st.integers(1, 300))
    | st.tuples(st.integers(1, 40), st.integers(1, 40))
)
#: Around the edges of chunks, of tiles, and of the size from which order statistics are sampled.
LARGE = st.sampled_from(
    [
        (CHUNK - 1,),
        (CHUNK,),
        (CHUNK + 1,),
        (2 * CHUNK + 1, 1),
        (1, 3 * CHUNK),
        (257, 769),
        (8 * CHUNK + 1,),
    ]
)
#: Arithmetic on "grid" is exact and full of ties; "sparse" is how two fine-tunes in bfloat16 differ.
KINDS = st.sampled_from(["normal", "far", "grid", "sparse", "zero", "wide"])
HALF_KINDS = st.sampled_from(["normal", "far", "grid", "sparse", "zero"])
#: Tiles and threads.
WAYS = ((CHUNK, 4), (2 * CHUNK, 1), (1 << 20, 2))
#: What a row says of its base; an endpoint and a member are among the models.
BASES = {
    Base.DELTA: True,
    Base.OPTIONAL_DELTA: None,
    Base.ENDPOINT: False,
    Base.MEMBER: False,
    Base.DONOR: False,
}


def law(examples: int) -> Callable[..., Callable[..., None]]:
    """Run a law on that many drawn examples for each method."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        quick = settings(
            max_examples=examples,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        return quick(given(data=st.data())(test))

    return decorate


def methods(name: str = "oracle") -> pytest.MarkDecorator:
    """Parametrise by the methods of the table for which the law of that name holds."""
    return pytest.mark.parametrize("name", [n for n, row in TABLE.items() if getattr(row, name) is not None])


@dataclass(frozen=True)
class Case:
    """Tensors to merge, and with what."""

    name: str
    base: Tensor | None
    models: list[Tensor]
    parameters: Parameters
    seed: int = 0
    tensor: str = "blocks.0.w"

    def merge(self, *, threads: int = 1, tile: int = 2 * CHUNK) -> Tensor:
        """The result; the inputs must survive it."""
        before = [t.clone() for t in self.tensors]
        merged = merge_tensors(
            self.models,
            self.name,
            base=self.base,
            seed=self.seed,
            name=self.tensor,
            threads=threads,
            tile=tile,
            **self.parameters,
        )
        for tensor, copy in zip(self.tensors, before, strict=True):
            assert torch.equal(tensor, copy)
        return merged

    def ask(self) -> Answer:
        """What the oracle says."""
        row = TABLE[self.name]
        if self.models[0].numel() == 0:
            return Answer(np.zeros(0), np.zeros(0))
        models = [t.double().numpy().reshape(-1) for t in self.models]
        base = None if self.base is None else self.base.double().numpy().reshape(-1)
        known = {"shape": tuple(self.models[0].shape), "seed": self.seed, "tensor": self.tensor}
        return row.oracle(models, base, **self.parameters, **{key: known[key] for key in row.context})

    @property
    def tensors(self) -> list[Tensor]:
        return self.models if self.base is None else [self.base, *self.models]

    @property
    def largest(self) -> float:
        """max |w| over the inputs."""
        return max((t.abs().max().item() for t in self.tensors if t.numel()), default=0.0)

    def each(self, change: Callable[[Tensor], Tensor]) -> Case:
        """The same with every tensor changed."""
        return replace(
            self,
            base=None if self.base is None else change(self.base),
            models=[change(t) for t in self.models],
        )

    def having(self, change: Change | None) -> Case:
        """The same with the parameters changed."""
        assert change is not None
        return replace(self, parameters=change(self.parameters))


def weights_of(kind: str, rng: np.random.Generator, count: int, numel: int) -> np.ndarray:
    """A base and models of one kind, float32 [count, numel]."""
    base = rng.standard_normal(numel)
    delta = 0.05 * rng.standard_normal((count, numel))
    delta[0] = 0
    if kind == "far":
        return rng.standard_normal((count, numel)).astype(np.float32)
    if kind == "grid":
        rows = rng.integers(-16, 17, (1, numel)) / 8 + rng.integers(-4, 5, (count, numel)) / 16
        return rows.astype(np.float32)
    if kind == "sparse":
        delta[rng.random(delta.shape) < 0.7] = 0
        exact = rounded(rounded(base, "bfloat16") + delta, "bfloat16")
        return exact.astype(np.float32)
    if kind == "zero":
        return np.zeros((count, numel), np.float32)
    if kind == "wide":
        scale = 10.0 ** rng.integers(-7, 4, (count, 1))
        return (scale * rng.standard_normal((count, numel))).astype(np.float32)
    return (base + delta).astype(np.float32)


def draw_case(
    data: st.DataObject,
    name: str,
    shapes: st.SearchStrategy[tuple[int, ...]] = SMALL,
    kinds: st.SearchStrategy[str] = KINDS,
    min_models: int = 1,
) -> Case:
    """A case for one method."""
    row: Row = TABLE[name]
    low, high = row.num_models
    m = data.draw(st.integers(min(max(low, min_models), high), high), "models")
    shape = data.draw(shapes, "shape")
    if name == "karcher":
        # Of so few elements, models may be exactly opposite, which does not work yet.
        assume(not 0 < math.prod(shape) < 5)
    kind = data.draw(kinds, "kind")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    rows = weights_of(kind, rng, m + 1, math.prod(shape))
    tensors = [torch.from_numpy(r.copy()).reshape(shape) for r in rows]
    parameters = data.draw(row.parameters(m), "parameters")
    has_base = data.draw(st.booleans(), "base") if row.base is None else row.base
    seed = data.draw(st.integers(0, 1 << 40), "noise") if "seed" in row.context else 0
    return Case(name, tensors[0] if has_base else None, tensors[1:], parameters, seed)


def near(got: Tensor, want: Tensor, case: Case) -> None:
    """Equal up to rounding, but for the elements that the oracle leaves open."""
    answer = case.ask()
    got64, want64 = (t.double().numpy().reshape(-1) for t in (got, want))
    limit = 2 * TOLERANCE * np.maximum(answer.size, case.largest)
    assert got.shape == want.shape
    assert np.all((np.abs(got64 - want64) <= limit) | answer.doubt)


def same_bits(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and got.numpy().tobytes() == want.numpy().tobytes()


def test_table_is_complete() -> None:
    """Every method obeys the laws, or says here that it does not."""
    ours = {name for name, method in METHODS.items() if method.function.__module__.startswith("meldkit.")}
    assert set(TABLE) == ours  # others may have been plugged in
    for name, row in TABLE.items():
        assert row.base == BASES[METHODS[name].base], name
        low, high = METHODS[name].num_models
        assert low == row.num_models[0], name
        assert high is None or high == row.num_models[1], name


# Oracle


@methods()
@law(25)
def test_oracle(name: str, data: st.DataObject) -> None:
    check_oracle(draw_case(data, name))


@methods()
@law(2)
def test_oracle_on_large_tensors(name: str, data: st.DataObject) -> None:
    check_oracle(draw_case(data, name, LARGE, st.sampled_from(["normal", "sparse", "grid"])))


def check_oracle(case: Case) -> None:
    answer = case.ask()
    got = case.merge().double().numpy().reshape(-1)
    limit = TOLERANCE * np.maximum(answer.size, case.largest)
    wrong = ~((np.abs(got - answer.value) <= limit) | answer.doubt)
    assert not wrong.any(), f"at {wrong.nonzero()[0][:5]}: {got[wrong][:5]}, not {answer.value[wrong][:5]}"
    assert len(got) < 300 or np.all(answer.doubt) or np.mean(answer.doubt) < 0.1


@methods()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@law(10)
def test_half_precision_is_rounded_once(name: str, dtype: str, data: st.DataObject) -> None:
    """Equal to the oracle rounded once; where float32 lies on the other side of a midpoint, its neighbour."""
    case = draw_case(data, name, kinds=HALF_KINDS)
    case = case.each(lambda t: t.to(getattr(torch, dtype)))
    answer = case.ask()
    merged = case.merge()
    assert merged.dtype == getattr(torch, dtype)
    got = merged.double().numpy().reshape(-1)
    limit = TOLERANCE * np.maximum(answer.size, case.largest)
    low, high = rounded(answer.value - limit, dtype), rounded(answer.value + limit, dtype)
    assert np.all(((low <= got) & (got <= high)) | answer.doubt)


@methods()
def test_half_precision_of_a_large_tensor(name: str) -> None:
    """Hardly any element differs from the oracle rounded once, and none by more than an ulp."""
    case = usual_case(name, 100_000).each(lambda t: t.to(torch.bfloat16))
    answer = case.ask()
    got, want = case.merge().double().numpy(), rounded(answer.value, "bfloat16")
    differs = (got != want) & ~np.broadcast_to(answer.doubt, got.shape)
    assert differs.mean() < 5e-3
    # Next to 0 an ulp is smaller than float32's own error.
    ulp = np.ldexp(1.0, np.frexp(np.maximum(np.abs(want), 1e-4))[1] - 8)
    assert np.all(np.abs(got - want)[differs] <= ulp[differs])


def usual_case(name: str, numel: int) -> Case:
    """Up to three models and default parameters; those that have none, and density, at something usual."""
    row = TABLE[name]
    m = min(3, row.num_models[1])
    rows = torch.from_numpy(weights_of("normal", np.random.default_rng(1), m + 1, numel))
    parameters: Parameters = {}
    for p in METHODS[name].parameters:
        value = (0.5 if p.required else p.default) if p.default is not None else 1.0
        if p.name == "density":
            value = 0.4
        parameters[p.argument] = [value] * m if p.per_model else value
    return Case(name, None if row.base is False else rows[0], list(rows[1:]), parameters)


# Laws


@methods("identity")
@law(10)
def test_identical_inputs_give_that_tensor(name: str, data: st.DataObject) -> None:
    case = draw_case(data, name).having(TABLE[name].identity)
    tensor = case.models[0]
    case = case.each(lambda _: tensor)
    assume(not case.ask().absolute)
    near(case.merge(), tensor, case)


@methods("consensus")
@law(10)
def test_models_that_agree_give_that_model(name: str, data: st.DataObject) -> None:
    case = draw_case(data, name).having(TABLE[name].consensus)
    case = replace(case, models=[case.models[0]] * len(case.models))
    assume(not case.ask().absolute)
    near(case.merge(), case.models[0], case)


@methods("permuted")
@law(12)
def test_order_of_models_does_not_matter(name: str, data: st.DataObject) -> None:
    case = draw_case(data, name, min_models=2)
    order = data.draw(st.permutations(range(len(case.models))), "order")
    permuted = TABLE[name].permuted
    assert permuted is not None
    other = replace(case, models=[case.models[i] for i in order], parameters=permuted(case.parameters, order))
    near(other.merge(), case.merge(), case)


@methods()
@law(2)
def test_tiles_and_threads_change_no_bit(name: str, data: st.DataObject) -> None:
    check_tiles(draw_case(data, name, LARGE, st.sampled_from(["normal", "sparse", "far"])))


@methods()
def test_tiles_and_threads_change_no_bit_of_a_larger_tensor(name: str) -> None:
    check_tiles(usual_case(name, 9 * CHUNK + 3))


def check_tiles(case: Case) -> None:
    whole = case.merge(tile=1 << 21)
    for tile, threads in WAYS:
        assert same_bits(case.merge(tile=tile, threads=threads), whole), (tile, threads)


@methods()
@law(5)
def test_deterministic(name: str, data: st.DataObject) -> None:
    case = draw_case(data, name)
    assert same_bits(case.merge(), case.merge())


@methods()
@law(5)
def test_memory_layout_changes_no_bit(name: str, data: st.DataObject) -> None:
    """Transposed, strided and offset views hold the same numbers."""
    case = draw_case(data, name, st.tuples(st.integers(1, 40), st.integers(1, 40)))

    def spread(t: Tensor) -> Tensor:
        rows, columns = t.shape
        wide = torch.full((2 * columns + 1, rows), torch.nan)
        view = wide[1::2].T
        view.copy_(t)
        return view

    assert same_bits(case.each(spread).merge(), case.merge())


@methods("scaled")
@law(10)
def test_scaled_inputs_scale_the_result(name: str, data: st.DataObject) -> None:
    """Powers of two, with which float32 multiplies exactly."""
    case = draw_case(data, name)
    scaled = case.having(TABLE[name].scaled).each(lambda t: t * 2)
    assume(not case.ask().absolute)
    assert torch.equal(scaled.merge(), case.merge() * 2)


@methods("odd")
@law(10)
def test_negated_inputs_negate_the_result(name: str, data: st.DataObject) -> None:
    case = draw_case(data, name)
    assert torch.equal(case.having(TABLE[name].odd).each(lambda t: -t).merge(), -case.merge())


@methods("translated")
@law(10)
def test_shifted_inputs_shift_the_result(name: str, data: st.DataObject) -> None:
    """On a grid on which differences are exact, so that every choice is the same one."""
    case = draw_case(data, name, kinds=st.just("grid")).having(TABLE[name].translated)
    shift = data.draw(st.integers(-16, 16)) / 4
    moved = case.each(lambda t: t + shift)
    near(moved.merge(), case.merge() + shift, moved)


@methods("neutral")
@law(10)
def test_neutral_parameters_give_the_start(name: str, data: st.DataObject) -> None:
    case = draw_case(data, name).having(TABLE[name].neutral)
    assert torch.equal(case.merge(), case.models[0] if case.base is None else case.base)


@law(20)
def test_ties_of_one_model_is_task_arithmetic(data: st.DataObject) -> None:
    case = draw_case(data, "ties")
    case = replace(
        case,
        models=case.models[:1],
        parameters={**case.parameters, "weight": [0.7], "density": [1.0], "normalize": False},
    )
    same = replace(
        case,
        name="task_arithmetic",
        parameters={k: case.parameters[k] for k in ("weight", "normalize", "lambda_")},
    )
    near(case.merge(), same.merge(), case)


@law(20)
def test_linear_and_task_arithmetic_agree(data: st.DataObject) -> None:
    """With weights that sum to 1 the base cancels out."""
    case = draw_case(data, "task_arithmetic").having(lambda p: {**p, "normalize": True, "lambda_": 1.0})
    same = Case("linear", None, case.models, {k: case.parameters[k] for k in ("weight", "normalize")})
    near(case.merge(), same.merge(), case)


# mergekit

#: Outputs of mergekit 0.1.5's merge_tensors, float32 on CPU; the file says how to make the inputs.
GOLDEN = json.loads((Path(__file__).parent / "golden" / "mergekit-0.1.5.json").read_text())["cases"]


def test_all_golden_cases_are_there() -> None:
    assert {case["method"] for case in GOLDEN} == set(METHODS) - {"della_linear"}
    assert len(GOLDEN) == 35


@pytest.mark.parametrize(
    "case",
    GOLDEN,
    ids=lambda c: "-".join([c["method"], *(f"{k}={v}" for k, v in c["parameters"].items())]),
)
def test_mergekit_gives_the_same(case: dict[str, object]) -> None:
    rng = np.random.default_rng(7)
    base = rng.standard_normal((12, 16)).astype(np.float32)
    models = [
        (base + case["delta"] * rng.standard_normal((12, 16))).astype(np.float32)
        for _ in range(case["num_models"])
    ]
    if case["method"] == "linear":  # there, the base is its first model
        models = [base, *models[:-1]]
    has_compat = "compat" in {p.name for p in METHODS[case["method"]].parameters}
    merged = merge_tensors(
        [torch.from_numpy(m) for m in models],
        case["method"],
        base=torch.from_numpy(base) if case["base"] else None,
        **case["parameters"],
        **({"compat": True} if has_compat else {}),
    )
    want = np.array(case["output"]).reshape(12, 16)
    assert np.abs(merged.numpy() - want).max() <= 1e-6 * max(np.abs(m).max() for m in (base, *models))


# Worked by hand

F3 = ([4, -1, 2, 0], [-3, -2, 1, 5], [1, 0.5, -3, -5])
RAMP = [1, -2, 3, -4, 5, -6, 7, -8, 9, -10]
E1, E2 = [1, 0], [0, 2]
SMALL_F3 = tuple([x / 8192 for x in model] for model in F3)
SHARED = ([1, 0, 0, 2], [3, 0, 5, 0])

#: (method, models, base at 0?, parameters, result)
WORKED = [
    ("linear", ([1], [4]), False, {"weight": [1, 2]}, [3]),
    ("linear", ([1], [4]), False, {"weight": [1, 2], "normalize": False}, [9]),
    ("slerp", (E1, E2), False, {"t": 0.25}, [0.92388, 0.76537]),
    ("slerp", (E1, E2), False, {"t": 0}, [1, 0]),
    ("slerp", (E1, E2), False, {"t": 1}, [0, 2]),
    ("slerp", (E1, [0, 0]), False, {"t": 0.5}, [0.70711, 0]),
    ("slerp", ([3, 4], [-6, -8]), False, {"t": 0.5}, [-1.5, -2]),  # opposite: no arc, a line
    ("slerp", ([3, 4], [6, 8]), False, {"t": 0.5}, [4.5, 6]),
    ("passthrough", (RAMP,), False, {}, RAMP),
    ("passthrough", (E2,), False, {"scale": 0}, [0, 0]),
    ("passthrough", (E2,), False, {"scale": -0.5}, [0, -1]),
    ("task_arithmetic", F3, True, {"weight": 1}, [2, -2.5, 0, 0]),
    ("task_arithmetic", F3, True, {"weight": [1, 2, 1], "normalize": True}, [-0.25, -1.125, 0.25, 1.25]),
    ("task_arithmetic", F3, True, {"weight": 1, "lambda": 0.5}, [1, -1.25, 0, 0]),
    ("ties", F3, True, {"weight": 1}, [2.5, -1.5, 1.5, 5]),
    ("ties", F3, True, {"weight": 1, "normalize": False}, [5, -3, 3, 5]),
    ("ties", F3, True, {"weight": 1, "density": 0.5}, [4, 0, -3, 5]),
    ("ties", F3, True, {"weight": 1, "density": 0.5, "normalize": False}, [4, 0, -3, 5]),
    ("ties", F3, True, {"weight": [1, 2, 1]}, [-3, -5 / 3, 4 / 3, 5]),
    ("ties", F3, True, {"weight": [1, 2, 1], "normalize": False}, [-6, -5, 4, 10]),
    # Magnitude trimming, seen through one model.
    ("ties", (RAMP,), True, {"weight": 1, "density": 0.3}, [0] * 7 + [-8, 9, -10]),
    (
        "ties",
        (RAMP,),
        True,
        {"weight": 1, "density": 0.3, "rescale": True},
        [0] * 7 + [-8 * 55 / 27, 9 * 55 / 27, -10 * 55 / 27],
    ),
    ("ties", (RAMP,), True, {"weight": 1, "density": 0.01}, [0] * 9 + [-10]),  # at least one is kept
    ("ties", (RAMP,), True, {"weight": 1, "density": 0}, [0] * 10),
    ("ties", ([10, 9],), True, {"weight": 1, "density": 0.5}, [10, 0]),  # per tensor,
    ("ties", ([1, 0.5],), True, {"weight": 1, "density": 0.5}, [1, 0]),  # not over the model
    ("ties", ([2, -2, 1, 2],), True, {"weight": 1, "density": 0.25}, [2, -2, 0, 2]),  # ties are all kept
    ("ties", ([1, 0], [-1, 0]), True, {"weight": 1}, [1, 0]),  # a vote of 0 is positive
    ("ties", ([4, 0], [2, 0]), True, {"weight": [1, -1]}, [4, 0]),  # -2 votes against
    (
        "ties",
        ([4, 1], [-2, 1]),
        True,
        {"weight": [1, -1]},
        [6, 1],
    ),  # weights that agree sum to 0: not divided
    ("ties", ([4], [-3]), True, {"weight": [1, 2]}, [-3]),
    ("ties", ([4], [-3]), True, {"weight": [1, 2], "elect": "unweighted"}, [4]),
    ("ties", ([4], [3]), True, {"weight": [1, -1], "elect": "unweighted", "normalize": False}, [1]),
    ("nuslerp", (E1, E2), False, {"weight": [0.75, 0.25]}, [0.92388, 0.76537]),
    ("nuslerp", (E1, E2), True, {"weight": [3, 1]}, [0.92388, 0.76537]),
    ("nuslerp", (E1, E2), False, {"weight": [1, 0]}, [1, 0]),
    ("nuslerp", (E1, E2), False, {"weight": [1, -1]}, [0.70711, 1.41421]),
    ("nuslerp", ([3, 4], [-6, -8]), False, {"weight": [1, 1]}, [-1.5, -2]),  # opposite: a line
    ("nuslerp", ([3, 4], [6, 8]), False, {"weight": [1, 1]}, [4.5, 6]),
    (
        "nuslerp",
        ([[1, 0], [0, 3]], [[0, 2], [0, 1]]),
        False,
        {"weight": [3, 1], "nuslerp_flatten": False},
        [[0.92388, 0.76537], [0, 2.5]],
    ),
    (
        "nuslerp",
        ([[1, 0], [0, 3]], [[0, 0], [2, 1]]),
        False,
        {"weight": [3, 1], "nuslerp_flatten": False, "nuslerp_row_wise": True},
        [[0.92388, 0], [0.76537, 2.5]],
    ),
    ("multislerp", (E1, E2), False, {"weight": [1, 3]}, [0.55340, 1.66020]),
    ("multislerp", (E1, E2), True, {"weight": [1, 3]}, [0.55340, 1.66020]),
    ("multislerp", (E1, E2), False, {"weight": [1, 3], "normalize_weights": False}, [2.21359, 6.64078]),
    ("multislerp", ([3, 0], [-1, 0]), False, {"weight": 1}, [1, 0]),  # directions cancel out: a line
    ("multislerp", (E2,), False, {"weight": 0.3}, [0, 2]),
    ("karcher", (E1, E2), False, {}, [1.06066, 1.06066]),
    ("karcher", ([1, 0, 0], [0, 1, 0], [0, 0, 1]), False, {}, [0.57735] * 3),
    ("karcher", ([0, 0], E2), False, {}, [0, 1]),
    ("karcher", ([0, 0], [0, 0]), False, {}, [0, 0]),
    # Two thirds of the way along the arc, at length (1 + 2 · 2) / 3.
    ("karcher", (E1, E2), False, {"weight": [1, 2], "max_iter": 99}, [5 / 6, 5 / 6 * math.sqrt(3)]),
    ("karcher", (E1, E2), False, {"weight": [1, 2], "compat": True}, [1.06066, 1.06066]),
    ("dare_linear", F3, True, {"weight": 1}, [2, -2.5, 0, 0]),
    ("dare_ties", F3, True, {"weight": 1}, [5, -3, 3, 5]),
    ("dare_ties", F3, True, {"weight": 1, "normalize": True}, [2.5, -1.5, 1.5, 5]),
    ("della_linear", F3, True, {"weight": 1}, [2, -2.5, 0, 0]),
    ("della", F3, True, {"weight": 1}, [2.5, -1.5, 1.5, 5]),
    ("della", F3, True, {"weight": 1, "density": 0}, [0] * 4),
    ("dare_linear", F3, True, {"weight": 1, "density": 0}, [0] * 4),
    ("breadcrumbs", F3, True, {"weight": 1}, [2, -2.5, 0, 0]),
    ("breadcrumbs_ties", F3, True, {"weight": 1}, [5, -3, 3, 5]),
    (
        "breadcrumbs",
        (RAMP,),
        True,
        {"weight": 1, "density": 0.5, "gamma": 0.2},
        [0, 0, 0, -4, 5, -6, 7, -8, 0, 0],
    ),
    (
        "breadcrumbs",
        (RAMP,),
        True,
        {"weight": 1, "density": 0.5, "gamma": 0.2, "rescale": True},
        [x * 55 / 30 for x in (0, 0, 0, -4, 5, -6, 7, -8, 0, 0)],
    ),
    ("breadcrumbs", (RAMP,), True, {"weight": 1, "density": 0.5}, [0] * 5 + [-6, 7, -8, 9, -10]),
    ("breadcrumbs", (RAMP,), True, {"weight": 1, "density": 0.5, "gamma": 0}, [0] * 5 + [-6, 7, -8, 9, -10]),
    ("breadcrumbs", (RAMP,), True, {"weight": 1, "density": 0.9, "gamma": 0.2}, [*RAMP[:9], 0]),
    ("breadcrumbs", (RAMP,), True, {"weight": 1, "density": 1, "gamma": 0.2}, RAMP),
    ("breadcrumbs", (RAMP,), True, {"weight": 1, "density": 0.01, "gamma": 0.2}, [0] * 7 + [-8, 0, 0]),
    ("breadcrumbs", (RAMP,), True, {"weight": 1, "density": 0, "gamma": 0.2}, [0] * 10),
    ("sce", F3, True, {}, [2.12, -1.65, 1.35, 5]),
    ("sce", F3, True, {"select_topk": 0.5}, [90 / 42, 0, 0, 5]),
    ("sce", F3, True, {"select_topk": 0.5, "fuse": "all"}, [90 / 42, -1.68, 1.32, 5]),
    ("sce", F3, True, {"select_topk": 0}, [0] * 4),
    ("sce", SMALL_F3, True, {}, [x / 8192 for x in (2.12, -1.65, 1.35, 5)]),
    ("sce", SMALL_F3, True, {"compat": True}, [x / 8192 for x in (2.5, -1.5, 1.5, 5)]),
    ("ram", SHARED, True, {}, [2, 0, 5, 2]),
    ("ram", SHARED, True, {"epsilon": 2}, [3, 0, 5, 0]),  # 2 is not more than 2
    ("ramplus_tl", SHARED, True, {}, [2, 0, 5.1, 2.04]),
    ("ramplus_tl", SHARED, True, {"r": 1, "alpha": 3}, [2, 0, 10, 4]),
    ("model_stock", ([1, 0], [0, 1]), True, {}, [0, 0]),
    ("model_stock", ([1, 0], [0.5, math.sqrt(0.75)]), True, {}, [0.5, 0.288675]),
    ("model_stock", ([1, 0], [-0.5, math.sqrt(0.75)]), True, {}, [0, 0]),
    ("model_stock", ([1, 0], [-0.5, math.sqrt(0.75)]), True, {"compat": True}, [-0.5, -math.sqrt(0.75)]),
    ("model_stock", ([1, 0, 0], [0, 1, 0], [1, 1, 0]), True, {}, [0.485281, 0.485281, 0]),
    (
        "model_stock",
        ([[1, 0], [1, 0]], [[0, 1], [0.5, math.sqrt(0.75)]]),
        True,
        {"filter_wise": True},
        [[0, 0], [0.5, 0.288675]],
    ),
    ("nearswap", ([1, 0.2, -0.5],), True, {"t": 0.3}, [0.3, 0.2, -0.3]),
    (
        "arcee_fusion",
        ([[4, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.2]],),
        True,
        {},
        [[4, 0, 0, 0], [0] * 4],
    ),
    ("arcee_fusion", (list(range(1, 9)),), True, {}, [0] * 8),  # threshold 4 + 1.5 · (6 − 2)
]


@pytest.mark.parametrize(
    ("method", "models", "base", "parameters", "result"),
    WORKED,
    ids=[f"{row[0]}-{number}" for number, row in enumerate(WORKED)],
)
def test_worked_by_hand(
    method: str, models: tuple[list[float], ...], base: bool, parameters: Parameters, result: list[float]
) -> None:
    tensors = [torch.tensor(m, dtype=torch.float32) for m in models]
    zero = torch.zeros_like(tensors[0]) if base else None
    merged = merge_tensors(tensors, method, base=zero, **parameters)
    largest = np.abs(result).max()
    np.testing.assert_allclose(merged.numpy(), result, rtol=1e-5, atol=1e-6 * min(largest, 1))


def test_trimming_over_the_model() -> None:
    """Of both tensors together, or of each."""
    zero = {"p": torch.zeros(2), "q": torch.zeros(2)}
    model = {"p": torch.tensor([10.0, 9.0]), "q": torch.tensor([1.0, 0.5])}
    for scope, want in (("tensor", [10, 0, 1, 0]), ("model", [10, 9, 0, 0])):
        merged = merge_state_dicts([model], "ties", base=zero, weight=1, density=0.5, trim_scope=scope)
        assert [*merged["p"].tolist(), *merged["q"].tolist()] == want


@pytest.mark.parametrize("filter_wise", [False, True])
@law(20)
def test_model_stock_of_mergekit_extrapolates(filter_wise: bool, data: st.DataObject) -> None:
    """Where t is finite: in a few dimensions, opposite task vectors have none."""
    shapes = st.tuples(st.integers(5, 40), st.integers(5, 40))
    case = draw_case(data, "model_stock", shapes, st.sampled_from(["normal", "far"]))
    case = replace(case, parameters={"filter_wise": filter_wise, "compat": True})
    assume(not np.any(case.ask().doubt))
    check_oracle(case)


def test_slerp_keeps_to_the_line_only_beyond_its_threshold() -> None:
    """cos Ω = 0.9995 divides the arc from the line; at t = 0.5 they differ by 1/cos(Ω/2)."""
    a = torch.tensor([1.0, 0.0])
    for cosine, on_line in ((0.99951, True), (0.99949, False), (-0.99951, True), (-0.99949, False)):
        b = torch.tensor([cosine, math.sqrt(1 - cosine**2)])
        middle = merge_tensors([a, b], "slerp", t=0.5)
        line = (a + b) / 2
        exact = b[0].item() / math.hypot(*b.tolist())
        want = line if on_line else line / math.sqrt((1 + exact) / 2)
        torch.testing.assert_close(middle, want, rtol=2e-5, atol=0)
