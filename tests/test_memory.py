"""Merging tensors and state dicts in memory: what is kept, what is accepted, what is refused and how."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deadline import within
from meldkit import merge_state_dicts, merge_tensors
from meldkit.errors import MeldError, MismatchError, RecipeError, RunError
from meldkit.methods import METHODS

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPES = [(), (0,), (3, 0, 2), (1,), (5,), (1, 7), (7, 1), (2, 3, 4)]


def tensor(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


# What is kept


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dtype_device_and_shape_are_kept(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, method: str
) -> None:
    ones = torch.ones(shape, device=device).to(dtype)
    base = torch.zeros(shape, device=device).to(dtype) if method == "ties" else None
    merged = merge_tensors([ones, ones.float().mul(2).to(dtype)], method, base=base, weight=[1, 3])
    assert (merged.dtype, merged.device, merged.shape) == (ones.dtype, ones.device, ones.shape)
    assert torch.equal(merged.float(), torch.full(shape, 1.75, device=device))
    assert merged.is_contiguous()


def test_dtype_is_that_of_the_base() -> None:
    models = [tensor(1, 2), tensor(3, 4, dtype=torch.float16)]
    base = tensor(0, 0, dtype=torch.bfloat16)
    assert merge_tensors(models, "ties", base=base, weight=1).dtype == torch.bfloat16
    assert merge_tensors(models[1:], "slerp", base=base, t=0.5).dtype == torch.bfloat16


def test_dtype_is_that_of_the_first_without_base() -> None:
    models = [tensor(1, 2, dtype=torch.float16), tensor(3, 4), tensor(5, 6, dtype=torch.float64)]
    merged = merge_tensors(models, weight=1)
    assert merged.dtype == torch.float16
    assert merged.tolist() == [3, 4]


def test_mixed_dtypes_are_not_rounded_first() -> None:
    """A float32 model is not brought to the base's bfloat16 before the arithmetic."""
    base, model = tensor(1.0, dtype=torch.bfloat16), tensor(1.001)
    merged = merge_tensors([model], "task_arithmetic", base=base, weight=100)
    assert merged.item() == pytest.approx(1.1, rel=2**-8)


def test_inputs_stay_and_the_result_is_new() -> None:
    tensors = [tensor(1, -2, 3), tensor(4, 5, -6)]
    before = [t.clone() for t in tensors]
    for method, parameters in (("linear", {"weight": 1}), ("slerp", {"t": 0}), ("ties", {"weight": 1})):
        base = tensor(0, 1, 0) if method == "ties" else None
        merged = merge_tensors(tensors, method, base=base, **parameters)
        merged.fill_(99)
        assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
        assert base is None or torch.equal(base, tensor(0, 1, 0))


@pytest.mark.parametrize("shape", [(0,), (4,)])
def test_a_single_copied_tensor_is_new(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    merged = merge_tensors([x], "passthrough")
    assert torch.equal(merged, x)
    assert merged is not x
    assert x.numel() == 0 or merged.data_ptr() != x.data_ptr()


def test_parameters_of_modules_carry_no_gradient() -> None:
    x = torch.nn.Parameter(torch.ones(3))
    merged = merge_tensors([x, x], weight=1)
    assert not merged.requires_grad
    empty = torch.nn.Parameter(torch.ones(0))
    assert not merge_tensors([empty, empty], weight=1).requires_grad


def test_threads_of_torch_are_given_back() -> None:
    before = torch.get_num_threads()
    merge_tensors([tensor(1)], weight=1)
    with pytest.raises(RunError):
        merge_tensors([tensor(torch.nan)], weight=1)
    assert torch.get_num_threads() == before


# Parameters


def test_parameters_are_numbers_or_one_per_tensor() -> None:
    tensors = [tensor(1), tensor(4)]
    assert merge_tensors(tensors, weight=1).item() == 2.5
    assert merge_tensors(tensors, weight=[1, 2]).item() == 3
    assert merge_tensors(tensors, weight=(1, 2)).item() == 3
    assert merge_tensors(tensors, weight=[1, 2], normalize=False).item() == 9
    assert merge_tensors(tensors, weight=[1, 2], normalize=0).item() == 9
    assert merge_tensors(tensors, "linear", weight=[True, 2.0]).item() == 3


def test_numbers_of_numpy_are_numbers() -> None:
    tensors = [tensor(1), tensor(4)]
    assert merge_tensors(tensors, weight=[np.float64(1), np.float64(2)]).item() == 3
    assert merge_tensors(tensors, weight=[np.float32(1), np.float32(2)]).item() == 3
    assert merge_tensors(tensors, weight=[np.int64(1), np.int64(2)]).item() == 3
    assert merge_tensors(tensors, weight=np.array([1.0, 2.0])).item() == 3


def test_lambda_has_two_spellings() -> None:
    one, zero = [tensor(1)], tensor(0)
    assert merge_tensors(one, "task_arithmetic", base=zero, weight=1, lambda_=3).item() == 3
    assert merge_tensors(one, "task_arithmetic", base=zero, weight=1, **{"lambda": 3}).item() == 3


def test_defaults() -> None:
    models, zero = [tensor(1, 1), tensor(4, -2)], tensor(0, 0)
    assert merge_tensors(models, "task_arithmetic", base=zero, weight=1).tolist() == [5, -1]
    assert merge_tensors(models, "ties", base=zero, weight=1).tolist() == [2.5, -2]
    assert merge_tensors(models[:1], "passthrough").tolist() == [1, 1]


def test_none_is_not_given() -> None:
    assert merge_tensors([tensor(1), tensor(3)], weight=1, normalize=None).item() == 2
    assert merge_tensors([tensor(1)], "passthrough", scale=None).item() == 1


def test_start_of_slerp_is_the_base_or_the_first() -> None:
    a, b = tensor(1, 0), tensor(0, 2)
    inside = merge_tensors([a, b], "slerp", t=0.25)
    assert torch.equal(merge_tensors([b], "slerp", base=a, t=0.25), inside)


# What is refused

ONE, TWO = [tensor(1)], [tensor(1), tensor(2)]
ZERO = tensor(0)

#: (tensors, method, other arguments, message)
REFUSED: list[tuple[list[Tensor], str, dict[str, Any], str]] = [
    (TWO, "lineer", {"weight": 1}, "unknown merge_method 'lineer'\n  did you mean 'linear'?"),
    (TWO, "linear", {}, "linear needs the parameter 'weight'"),
    (TWO, "linear", {"weigth": 1}, "linear has no parameter 'weigth'\n  did you mean 'weight'?"),
    (
        TWO,
        "linear",
        {"weight": 1, "density": 0.5},
        "linear has no parameter 'density'\n  known: normalize, weight",
    ),
    (TWO, "linear", {"weight": [1, 2, 3]}, "weight: 3 values for 2 tensors"),
    (TWO, "linear", {"weight": []}, "weight: 0 values for 2 tensors"),
    (
        TWO,
        "linear",
        {"weight": [1, -1]},
        "weight: [1.0, -1.0] sum to 0, which cannot be normalized; change one",
    ),
    (TWO, "linear", {"weight": 0}, "weight: [0.0, 0.0] sum to 0, which cannot be normalized; change one"),
    (TWO, "linear", {"weight": "1"}, "weight: '1' is not valid; it must be any number"),
    (TWO, "linear", {"weight": [1, float("nan")]}, "weight: nan is not valid; it must be any number"),
    (TWO, "linear", {"weight": float("inf")}, "weight: inf is not valid; it must be any number"),
    (
        TWO,
        "linear",
        {"weight": 1, "normalize": "yes"},
        "normalize: 'yes' is not valid; it must be true or false",
    ),
    (TWO, "linear", {"weight": 1, "normalize": 2}, "normalize: 2 is not valid; it must be true or false"),
    ([], "linear", {"weight": 1}, "linear takes 1 or more tensors, got 0"),
    (ONE, "slerp", {"t": 0.5}, "slerp takes 2 tensors, got 1"),
    (TWO, "slerp", {"t": 0.5, "base": ZERO}, "slerp takes 2 tensors, got 3"),
    (TWO, "slerp", {"t": [0.5, 0.5]}, "t: [0.5, 0.5] is not valid; it must be any number"),
    (TWO, "slerp", {}, "slerp needs the parameter 't'"),
    (TWO, "passthrough", {}, "passthrough takes 1 tensors, got 2"),
    (TWO, "ties", {"weight": 1}, "ties needs a base\n  pass base=…"),
    ([], "ties", {"weight": 1, "base": ZERO}, "ties takes 1 or more tensors, got 0"),
    (
        ONE,
        "ties",
        {"weight": 1, "density": 1.5, "base": ZERO},
        "density: 1.5 is not valid; it must be 0 to 1",
    ),
    (
        ONE,
        "ties",
        {"weight": 1, "density": -0.1, "base": ZERO},
        "density: -0.1 is not valid; it must be 0 to 1",
    ),
    (
        ONE,
        "task_arithmetic",
        {"weight": 0, "normalize": True, "base": ZERO},
        "weight: [0.0] sum to 0, which cannot be normalized; change one",
    ),
    (
        [tensor(1), torch.tensor([1])],
        "linear",
        {"weight": 1},
        "input 1 is torch.int64; only floating-point tensors can be merged",
    ),
]


@pytest.mark.parametrize(
    ("tensors", "method", "arguments", "message"), REFUSED, ids=[f"{r[1]}: {r[3]}" for r in REFUSED]
)
def test_refused(tensors: list[Tensor], method: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        merge_tensors(tensors, method, **arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_base_of_integers_is_refused(method: str) -> None:
    with pytest.raises(RecipeError, match="only floating-point tensors can be merged"):
        merge_tensors(ONE, method, base=torch.tensor([1]), weight=1)


def test_a_dtype_that_safetensors_lacks_is_refused() -> None:
    x = torch.ones(1).to(torch.float8_e4m3fnuz)
    with pytest.raises(RecipeError, match="float8_e4m3fnuz"):
        merge_tensors([x, x], weight=1)


def test_refused_also_for_empty_tensors() -> None:
    with pytest.raises(RecipeError, match="has no parameter 'x'"):
        merge_tensors([torch.empty(0)], weight=1, x=1)
    with pytest.raises(RecipeError, match="sum to 0"):
        merge_tensors([torch.empty(0)], weight=0)


@pytest.mark.parametrize(
    ("tensors", "base", "message"),
    [
        ([torch.ones(2), torch.ones(3)], None, "input 1 has shape [3], expected [2]"),
        ([torch.ones(2), torch.ones(2, 1)], None, "input 1 has shape [2, 1], expected [2]"),
        ([torch.ones(1), torch.ones(())], None, "input 1 has shape [], expected [1]"),
        ([torch.ones(0), torch.ones(0, 1)], None, "input 1 has shape [0, 1], expected [0]"),
        ([torch.ones(2), torch.ones(2)], torch.ones(1, 2), "input 0 has shape [2], expected [1, 2]"),
    ],
)
def test_shapes_must_be_equal(tensors: list[Tensor], base: Tensor | None, message: str) -> None:
    """The number is the position; with a base, the base is 0."""
    with pytest.raises(MismatchError) as caught:
        merge_tensors(tensors, "linear" if base is None else "ties", base=base, weight=1)
    assert str(caught.value) == message


@pytest.mark.parametrize("threads", [0, -1])
def test_there_must_be_a_thread(threads: int) -> None:
    """Without one nothing would be computed, and what happens to be in memory returned."""
    with pytest.raises(ValueError, match="threads"):
        within(20, lambda: merge_tensors(TWO, weight=1, threads=threads))


@pytest.mark.parametrize("tile", [0, -65536, 1000, 65537])
def test_tiles_are_multiples_of_65536(tile: int) -> None:
    with pytest.raises(ValueError, match="tile"):
        within(20, lambda: merge_tensors(TWO, weight=1, tile=tile))


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (torch.float16, [1.0, 70000.0]),
        (torch.float16, [-70000.0, 1.0]),
        (torch.bfloat16, [1.0, torch.inf]),
        (torch.float32, [1.0, torch.nan]),
        (torch.float32, [-torch.inf, 1.0]),
        (torch.float8_e4m3fn, [1.0, 500.0]),
    ],
)
def test_values_that_do_not_fit_are_errors(dtype: torch.dtype, values: list[float]) -> None:
    first = torch.zeros(2, dtype=dtype)
    too_large = rf"which {str(dtype).removeprefix('torch.')} cannot hold"
    finite = all(map(math.isfinite, values))
    with pytest.raises(RunError, match=too_large if finite else "of 'input 1' has the value"):
        merge_tensors([first, torch.tensor(values)], weight=[0, 1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", sorted(name for name, m in METHODS.items() if m.shows_nonfinite))
def test_what_is_not_finite_shows_even_without_weight(name: str, value: float) -> None:
    """Inputs of these methods are not searched, so a factor of 0 must not hide what they hold."""
    method = METHODS[name]
    parameters: dict[str, Any] = {p.name: 0.0 for p in method.parameters if p.kind is float}
    if any(p.name == "normalize" for p in method.parameters):
        parameters["normalize"] = False
    base = torch.ones(3) if method.base.delta else None
    with pytest.raises(RunError, match="of 'input 0' has the value"):
        merge_tensors([torch.tensor([1.0, value, 2.0])], name, base=base, **parameters)


def test_largest_values_fit() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        largest = torch.finfo(dtype).max
        x = torch.tensor([largest, -largest], dtype=dtype)
        assert torch.equal(merge_tensors([x], "passthrough", scale=1), x)


def test_values_that_round_to_the_largest_fit() -> None:
    """float16 ends at 65504; up to 65520 numbers round to it."""
    x = torch.tensor([65504.0, 0.0], dtype=torch.float16)
    merged = merge_tensors([x, torch.tensor([65510.0, 0.0])], weight=[0, 1])
    assert torch.equal(merged, x)


# State dicts


def state_dict(seed: int, **more: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "b.weight": torch.randn(4, 5).bfloat16(),
        "a.weight": torch.randn(70000),
        "a.scalar": torch.randn(()),
        "a.empty": torch.empty(0, 3),
        **more,
    }


@pytest.mark.parametrize("threads", [1, 3])
def test_state_dicts_are_merged_tensor_by_tensor(threads: int) -> None:
    models, base = [state_dict(1), state_dict(2)], state_dict(0)
    merged = merge_state_dicts(models, "ties", base=base, threads=threads, weight=[1, 0.5], density=0.4)
    assert list(merged) == list(base)
    for name, x in merged.items():
        want = merge_tensors([m[name] for m in models], "ties", base=base[name], weight=[1, 0.5], density=0.4)
        assert torch.equal(x, want)
        assert (x.dtype, x.shape) == (base[name].dtype, base[name].shape)


def test_state_dicts_without_base_follow_the_first() -> None:
    first, second = state_dict(1), dict(reversed(state_dict(2).items()))
    assert list(merge_state_dicts([first, second], weight=1)) == list(first)


def test_integers_and_flags_are_those_of_the_reference() -> None:
    first = state_dict(1, steps=torch.tensor(7), mask=torch.tensor([True, False]))
    second = state_dict(2, steps=torch.tensor(9), mask=torch.tensor([False, False]))
    merged = merge_state_dicts([first, second], weight=1)
    assert merged["steps"].item() == 7
    assert merged["mask"].tolist() == [True, False]
    merged["steps"].fill_(0)
    assert first["steps"].item() == 7
    merged = merge_state_dicts([first], "task_arithmetic", base=second, weight=1)
    assert merged["steps"].item() == 9


def test_a_missing_tensor_is_an_error() -> None:
    second = state_dict(2)
    second["b.weights"] = second.pop("b.weight")
    with pytest.raises(MismatchError) as caught:
        merge_state_dicts([state_dict(1), second], weight=1)
    assert str(caught.value) == "input 1 lacks tensor 'b.weight'\n  did you mean 'b.weights'?"


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_tensor_that_only_others_have_is_an_error(method: str) -> None:
    extra = state_dict(2, **{"c.weight": torch.ones(1)})
    base = state_dict(0) if method == "task_arithmetic" else None
    with pytest.raises(MismatchError) as caught:
        merge_state_dicts([state_dict(1), extra], method, base=base, weight=1)
    assert str(caught.value) == (
        f"input 1 has tensor 'c.weight', which {'the base' if base else 'input 0'} lacks\n"
        "  leave it out of the merge, and copy it into the result if it is wanted there"
    )


def test_no_state_dict_is_an_error() -> None:
    with pytest.raises(RecipeError):
        merge_state_dicts([], weight=1)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda x: x[:3], MismatchError),
        (lambda x: x.int(), MeldError),
        (lambda x: x * torch.nan, RunError),
    ],
    ids=["shape", "dtype", "nan"],
)
def test_errors_name_the_tensor(change: Any, error: type[MeldError]) -> None:
    second = state_dict(2)
    second["b.weight"] = change(second["b.weight"])
    with pytest.raises(error, match=r"'b\.weight'"):
        merge_state_dicts([state_dict(1), second], weight=1)


def test_shape_error_of_state_dicts() -> None:
    second = state_dict(2)
    second["b.weight"] = second["b.weight"][:3]
    with pytest.raises(MismatchError) as caught:
        merge_state_dicts([state_dict(1), second], weight=1)
    assert str(caught.value) == "tensor 'b.weight' of input 1 has shape [3, 5], expected [4, 5]"
