"""Merging tensors that are already in memory, by the same objects that merge files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from meldkit.checkpoint import BY_TORCH_NAME, Scratch, StoredTensor, TileSource
from meldkit.engine import TILE, TensorRun, run
from meldkit.errors import MismatchError, RecipeError, did_you_mean
from meldkit.methods import Base, Method, Values, get_method
from meldkit.plan import Input, TensorJob


def merge_tensors(
    tensors: Sequence[Tensor],
    method: str = "linear",
    *,
    base: Tensor | None = None,
    threads: int = 1,
    tile: int = TILE,
    **parameters: Any,
) -> Tensor:
    """Merge tensors in memory; bit for bit what merging files that hold them gives.

    Args:
        tensors: one per model, of equal shape, any floating dtype, on any device.
        method: name of a merge method, see `methods()`.
        base: the base model's tensor, for methods that have one; for slerp the one at t = 0.
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
    chosen = get_method(method)
    models = list(tensors)
    if chosen.base is Base.ENDPOINT and base is not None:
        models = [base, *models]
    delta = chosen.base is Base.DELTA
    if delta and base is None:
        raise RecipeError(f"{method} needs a base", hint="pass base=…")
    low, high = chosen.num_models
    if len(models) < low or (high is not None and len(models) > high):
        raise RecipeError(
            f"{method} takes {low}{'' if low == high else ' or more'} tensors, got {len(models)}"
        )
    reference = base if base is not None else models[0]
    inputs = [base, *models] if delta and base is not None else models
    for index, tensor in enumerate(inputs):
        if tensor.shape != reference.shape:
            raise MismatchError(
                f"tensor {index} has shape {list(tensor.shape)}, expected {list(reference.shape)}"
            )
        if not tensor.is_floating_point():
            raise RecipeError(f"tensor {index} is {tensor.dtype}; only floating-point tensors can be merged")
    values = _values(chosen, len(models), parameters)
    if reference.numel() == 0:
        return reference.clone()
    dtype = BY_TORCH_NAME[str(reference.dtype).removeprefix("torch.")]
    out = torch.empty(reference.numel(), dtype=reference.dtype)
    numbered = tuple(Input(i, method) for i in range(len(inputs)))
    job = TensorJob(
        name="tensor",
        dtype=dtype.name,
        shape=tuple(reference.shape),
        method=chosen,
        values=values,
        inputs=numbered[1:] if delta else numbered,
        base=numbered[0] if delta else None,
        file=0,
        offset=0,
    )
    tensor_run = TensorRun(job, _MemoryInputs(inputs), _MemorySink(out), tile)
    run([tensor_run], num_rows=len(inputs), threads=threads, tile=tile)
    return out.view(reference.shape).to(reference.device)


def merge_state_dicts(
    state_dicts: Sequence[Mapping[str, Tensor]],
    method: str = "linear",
    *,
    base: Mapping[str, Tensor] | None = None,
    threads: int = 1,
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge state dicts in memory, tensor by tensor.

    Args:
        state_dicts: one per model.
        method, base, threads, parameters: as for `merge_tensors`.

    Returns:
        The tensors of the base (else of the first state dict); integer and boolean ones as they are there.

    Raises:
        MismatchError: a state dict lacks a tensor, or shapes differ.
    """
    reference = base if base is not None else state_dicts[0]
    merged: dict[str, Tensor] = {}
    for name, tensor in reference.items():
        if not tensor.is_floating_point():
            merged[name] = tensor.clone()
            continue
        for index, state_dict in enumerate(state_dicts):
            if name not in state_dict:
                raise MismatchError(
                    f"state dict {index} lacks tensor '{name}'", hint=did_you_mean(name, state_dict)
                )
        try:
            merged[name] = merge_tensors(
                [s[name] for s in state_dicts],
                method,
                base=None if base is None else base[name],
                threads=threads,
                **parameters,
            )
        except MismatchError as e:
            raise MismatchError(f"tensor '{name}': {e.message}", hint=e.hint) from e
    return merged


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
                listed = isinstance(value, Sequence) and not isinstance(value, str)
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


class _MemoryTensor:
    def __init__(self, tensor: Tensor) -> None:
        self._flat = tensor.detach().reshape(-1)

    def read(self, start: int, stop: int, out: Tensor, scratch: Scratch) -> None:
        del scratch
        out.copy_(self._flat[start:stop])


class _MemoryInputs:
    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors

    def open(self, tensor: Input) -> TileSource:
        return _MemoryTensor(self._tensors[tensor.checkpoint])

    def open_raw(self, tensor: Input, dtype: str) -> StoredTensor | None:
        del tensor, dtype


class _MemorySink:
    def __init__(self, out: Tensor) -> None:
        self._out = out

    def write(self, job: TensorJob, start: int, data: memoryview) -> None:
        del job
        target = self._out[start : start + len(data) // self._out.element_size()]
        target.view(torch.uint8).copy_(torch.frombuffer(data, dtype=torch.uint8))

    def finish(self, job: TensorJob) -> None:
        del job
