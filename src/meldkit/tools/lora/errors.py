"""How far an adapter that was written is from the fine-tune that it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from meldkit.checkpoint import open_files, read_all
from meldkit.checkpoint.weights import read_file
from meldkit.tools.lora.extract import PREFIX, PlannedAdapter, Progress
from meldkit.tools.lora.factors import difference

#: Whose annotations say nothing of what comes out.
_linalg: Any = torch.linalg


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
    base, model = planned.models
    adapter = read_file(folder / "adapter_model.safetensors").tensors
    found: list[ModuleError] = []
    with open_files() as files:
        for number, (name, rank) in enumerate(planned.ranks.items()):
            if progress is not None:
                progress(number, len(planned.ranks), name)
            delta: torch.Tensor = difference(files, base[f"{name}.weight"], model[f"{name}.weight"])
            key = f"{PREFIX}{name}.lora_"
            embedding = f"{key}embedding_A" in adapter
            ends = ("embedding_A", "embedding_B") if embedding else ("A.weight", "B.weight")
            a, b = (read_all(files, adapter[key + end]) for end in ends)
            norm = float(_linalg.vector_norm(delta))
            product = b @ a
            delta -= product.T if embedding or planned.turned else product
            error = float(_linalg.vector_norm(delta)) / norm if norm else 0.0
            found.append(ModuleError(name, rank, norm, error))
    return found
