"""Merging tensors that are already in memory, by the same objects that merge files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from meldkit.checkpoint import BY_TORCH_NAME, HeldTensor, StoredTensor, TileSource
from meldkit.engine import TILE, run_jobs
from meldkit.errors import MismatchError, RecipeError, did_you_mean
from meldkit.methods import Base, Method, Values, get_method
from meldkit.plan import Input, TensorJob
from meldkit.shapes import Tensor


def merge_tensors(
    tensors: Sequence[Tensor],
    method: str = "linear",
    *,
    base: Tensor | None = None,
    seed: int = 0,
    name: str = "",
    allow_nonfinite: bool = False,
    threads: int = 1,
    tile: int = TILE,
    **parameters: Any,
) -> Tensor:
    """Merge tensors in memory; bit for bit what merging files that hold them gives.

    Args:
        tensors: one per model, of equal shape, any floating dtype, on any device.
        method: name of a merge method, see `methods()`.
        base: the base model's tensor, for methods that have one; for slerp the one at t = 0.
        seed: of methods that draw random numbers.
        name: of the tensor, which they depend on as well.
        allow_nonfinite: let NaN and Inf in the inputs through.
        threads: worker threads.
        tile: elements worked on at once, a multiple of 65 536; changes nothing in the result.
        parameters: the method's parameters, by their names in recipes (`lambda` also as `lambda_`);
            per-model ones as one number for all or a sequence of one per tensor.

    Returns:
        A new tensor with the shape, dtype and device of the base (else of the first tensor).

    Raises:
        RecipeError: unknown method or parameter, a value out of range, or a wrong number of tensors.
        MismatchError: the shapes differ.
    """
    tensors = list(tensors)
    for index, tensor in enumerate((*tensors, *(() if base is None else (base,)))):
        if not tensor.is_floating_point():
            what = "the base" if index == len(tensors) else f"input {index}"
            raise RecipeError(f"{what} is {tensor.dtype}; only floating-point tensors can be merged")
    merged = merge_state_dicts(
        [{name: tensor} for tensor in tensors],
        method,
        base=None if base is None else {name: base},
        seed=seed,
        allow_nonfinite=allow_nonfinite,
        threads=threads,
        tile=tile,
        **parameters,
    )
    return merged[name]


def merge_state_dicts(
    state_dicts: Sequence[Mapping[str, Tensor]],
    method: str = "linear",
    *,
    base: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    allow_nonfinite: bool = False,
    threads: int = 1,
    tile: int = TILE,
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge state dicts in memory.

    Args:
        state_dicts: one per model.
        method, base, seed, allow_nonfinite, threads, tile, parameters: as for `merge_tensors`.

    Returns:
        The tensors of the base (else of the first state dict); integer and boolean ones as they are there.

    Raises:
        RecipeError: as for `merge_tensors`.
        MismatchError: a state dict lacks a tensor that another one has, or shapes differ.
    """
    chosen = get_method(method)
    models = list(state_dicts)
    if base is not None and chosen.base is Base.ENDPOINT:
        models.insert(0, base)
    elif base is not None and chosen.base is Base.MEMBER:
        models.append(base)
    if base is None and chosen.base is Base.DELTA:
        raise RecipeError(f"{method} needs a base", hint="pass base=…")
    low, high = chosen.num_models
    if len(models) < low or (high is not None and len(models) > high):
        wanted = f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"
        raise RecipeError(f"{method} takes {wanted} tensors, got {len(models)}")
    delta = base is not None and chosen.base.delta
    inputs = [base, *models] if delta and base is not None else models
    reference = base if base is not None else models[0]
    values = _values(chosen, len(models), parameters)
    named = {f"input {i}": m for i, m in enumerate(state_dicts)} | (
        {} if base is None else {"the base": base}
    )
    merged: dict[str, Tensor] = {}
    jobs: list[TensorJob] = []
    for name, tensor in reference.items():
        _check_fit(name, tensor, named)
        if not tensor.is_floating_point() or tensor.numel() == 0:
            merged[name] = tensor.detach().clone()
            continue
        merged[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        numbered = tuple(Input(index, name) for index in range(len(inputs)))
        jobs.append(
            TensorJob(
                name=name,
                dtype=BY_TORCH_NAME[str(tensor.dtype).removeprefix("torch.")].name,
                shape=tuple(tensor.shape),
                method=chosen,
                values=values,
                inputs=numbered[1:] if delta else numbered,
                base=numbered[0] if delta else None,
                file=0,
                offset=0,
            )
        )
    for label, tensors in named.items():
        extra = next((name for name in tensors if name not in reference), None)
        if extra is not None:
            first = next(label for label, tensors in named.items() if tensors is reference)
            raise MismatchError(
                f"{label} has tensor '{extra}', which {first} lacks",
                hint="leave it out of the merge, and copy it into the result if it is wanted there",
            )
    run_jobs(
        jobs,
        _MemoryInputs(inputs, [next(k for k, m in named.items() if m is given) for given in inputs]),
        _MemorySink(merged),
        seed=seed,
        allow_nonfinite=allow_nonfinite,
        threads=threads,
        tile=tile,
    )
    return {name: tensor.to(reference[name].device) for name, tensor in merged.items()}


def _check_fit(name: str, reference: Tensor, named: Mapping[str, Mapping[str, Tensor]]) -> None:
    """All inputs must have the tensor, in the reference's shape and as numbers of its kind."""
    for label, tensors in named.items():
        if name not in tensors:
            raise MismatchError(f"{label} lacks tensor '{name}'", hint=did_you_mean(name, tensors))
        found = tensors[name]
        what = f"tensor '{name}' of {label}" if name else label
        if found.shape != reference.shape:
            raise MismatchError(f"{what} has shape {list(found.shape)}, expected {list(reference.shape)}")
        dtype = str(found.dtype).removeprefix("torch.")
        if found.is_floating_point() != reference.is_floating_point() or dtype not in BY_TORCH_NAME:
            raise RecipeError(f"{what} is {dtype}, which cannot be merged here")


def _values(method: Method, num_models: int, given: Mapping[str, Any]) -> Values:
    names = {p.argument: p.name for p in method.parameters}
    by_name = {names.get(key, key): value for key, value in given.items()}
    known = {p.name for p in method.parameters}
    for name in by_name:
        if name not in known:
            raise RecipeError(
                f"{method.name} has no parameter '{name}'", hint=did_you_mean(name, sorted(known))
            )
    values: dict[str, Any] = {}
    try:
        for p in method.parameters:
            value = by_name.get(p.name)
            if value is None:
                if p.required:
                    raise RecipeError(f"{method.name} needs the parameter '{p.name}'")
                values[p.name] = (p.default,) * num_models if p.per_model else p.default
            elif p.per_model:
                listed = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)
                each: list[Any] = list(cast("Sequence[Any]", value)) if listed else [value] * num_models
                if len(each) != num_models:
                    raise RecipeError(f"{p.name}: {len(each)} values for {num_models} tensors")
                values[p.name] = tuple(p.check(v) for v in each)
            else:
                values[p.name] = p.check(value)
        method.check(values)
    except ValueError as e:
        if isinstance(e, RecipeError):
            raise
        raise RecipeError(str(e)) from e
    return values


class _MemoryInputs:
    def __init__(self, state_dicts: Sequence[Mapping[str, Tensor]], labels: Sequence[str]) -> None:
        self._state_dicts = state_dicts
        self._labels = labels

    def open(self, tensor: Input) -> TileSource:
        return HeldTensor(self._state_dicts[tensor.checkpoint][tensor.tensor])

    def label(self, tensor: Input) -> str:
        return self._labels[tensor.checkpoint]

    def open_raw(self, tensor: Input, dtype: str | None) -> StoredTensor | None:
        del tensor, dtype


class _MemorySink:
    def __init__(self, merged: Mapping[str, Tensor]) -> None:
        self._merged = merged

    def write(self, job: TensorJob, start: int, data: memoryview) -> None:
        flat = self._merged[job.name].view(-1)
        target = flat[start : start + len(data) // flat.element_size()]
        target.view(torch.uint8).copy_(torch.frombuffer(data, dtype=torch.uint8))

    def let_through(self, job: TensorJob) -> None:
        del job

    def finish(self, job: TensorJob) -> None:
        del job
