"""How far an adapter that was written is from the fine-tune that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from meldkit.checkpoint import OpenFiles, TensorInfo, open_files, read_all
from meldkit.checkpoint.adapter import PREFIX
from meldkit.checkpoint.weights import read_file
from meldkit.composed import difference
from meldkit.shapes import Tensor
from meldkit.tools.lora.experts import in_first, matrix_of, wrappers
from meldkit.tools.lora.extract import PlannedAdapter, Progress


@dataclass(frozen=True, slots=True)
class ModuleError:
    """How far an adapter's change of a module is from the fine-tune's.

    Attributes:
        name: of the module.
        rank: of the adapter's.
        norm: Frobenius norm of the fine-tune's change.
        error: norm of the difference, relative to that.
    """

    name: str
    rank: int
    norm: float
    error: float


def measure_errors(
    planned: PlannedAdapter, folder: Path, *, progress: Progress | None = None
) -> list[ModuleError]:
    """How far what was written is from the fine-tune, module by module.

    Args:
        planned: what was written.
        folder: of the adapter.
        progress: as for `plan_extraction`.
    """
    model = planned.models[1]
    adapter = read_file(folder / "adapter_model.safetensors").tensors
    found: list[ModuleError] = []
    stacks = {name for name in planned.ranks if f"{name}.weight" not in model}
    with open_files() as files:
        for number, (name, rank) in enumerate(planned.ranks.items()):
            if progress is not None:
                progress(number, len(planned.ranks), name)
            pairs = (
                _stack(planned, adapter, name, stacks) if name in stacks else _module(planned, adapter, name)
            )
            square, left = 0.0, 0.0
            for delta, product in pairs(files):
                square += float(torch.sum(delta * delta, dtype=torch.float64))
                delta -= product
                left += float(torch.sum(delta * delta, dtype=torch.float64))
            error = (left / square) ** 0.5 if square else 0.0
            found.append(ModuleError(name, rank, square**0.5, error))
    return found


Pairs = Callable[[OpenFiles], Iterator[tuple[Tensor, Tensor]]]


def _module(planned: PlannedAdapter, adapter: Mapping[str, TensorInfo], name: str) -> Pairs:
    """The change of a module and what the adapter adds to it, once they are read."""
    base, model = planned.models
    key = f"{PREFIX}{name}.lora_"
    embedding = f"{key}embedding_A" in adapter
    ends = ("embedding_A", "embedding_B") if embedding else ("A.weight", "B.weight")

    def read(files: OpenFiles) -> Iterator[tuple[Tensor, Tensor]]:
        delta = difference(files, base[f"{name}.weight"], model[f"{name}.weight"])
        a, b = (read_all(files, adapter[key + end]) for end in ends)
        product = b @ a
        yield delta, product.T if name in planned.turned else product

    return read


def _stack(planned: PlannedAdapter, adapter: Mapping[str, TensorInfo], name: str, stacks: set[str]) -> Pairs:
    """The same of experts in one tensor, one by one."""
    base, model = planned.models
    owner = name.rpartition(".")[0] + wrappers(name, stacks)
    turned = in_first(model.config.get("model_type"))

    def read(files: OpenFiles) -> Iterator[tuple[Tensor, Tensor]]:
        a, b = (read_all(files, adapter[f"{PREFIX}{owner}.lora_{side}.weight"]) for side in "AB")
        count = model[name].shape[0]
        rank = len(a) // count
        for number in range(count):
            delta = difference(files, matrix_of(base[name], number), matrix_of(model[name], number))
            product = b[:, number::count] @ a[number * rank : (number + 1) * rank]
            yield delta, product.T if turned else product

    return read
