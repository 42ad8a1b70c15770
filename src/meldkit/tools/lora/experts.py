"""Experts that are stored in one tensor: factors of all its matrices, as PEFT keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import torch

from meldkit.checkpoint import (
    HeldTensor,
    OpenFiles,
    Scratch,
    TensorInfo,
    TileSource,
    read_all,
)
from meldkit.checkpoint.rearranged import Matrix, joined
from meldkit.shapes import Float32, Tensor

#: Models that store experts as [experts, in, out]; others as [experts, out, in].
_IN_FIRST = ("gpt_oss", "openai_privacy_filter", "aria", "qwen3_vl_moe", "qwen3_vl_moe_text")
#: In the order in which PEFT wraps the parameters of a module, the innermost first.
_ORDER = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")

#: From a matrix of the base and of the fine-tune, and whether A is wanted, to that factor.
MakeFactor = Callable[[TensorInfo, TensorInfo, bool], TensorInfo]


def is_expert_stack(name: str, info: TensorInfo) -> bool:
    """Whether a tensor holds the same matrix of all experts of a layer."""
    return len(info.shape) == 3 and ".experts." in f".{name}" and name.rpartition(".")[2] in _ORDER


def in_first(model_type: object) -> bool:
    """Whether a model's experts are stored transposed."""
    return model_type in _IN_FIRST


def matrix_of(info: TensorInfo, number: int) -> TensorInfo:
    """One expert's matrix."""
    _, rows, columns = info.shape
    return joined(f"{info.name}.{number}", [Matrix(info, number * rows * columns, rows, columns)], ())


def wrappers(name: str, others: set[str]) -> str:
    """What stands between a module and its factors: PEFT nests a wrapper for each parameter.

    Args:
        name: of the parameter.
        others: all parameters that are factored.
    """
    module, _, leaf = name.rpartition(".")
    outer = _ORDER[_ORDER.index(leaf) + 1 :]
    return ".base_layer" * sum(f"{module}.{other}" in others for other in outer)


def stacked_factors(
    base: TensorInfo, model: TensorInfo, names: tuple[str, str], make: MakeFactor
) -> Iterator[TensorInfo]:
    """A `[experts · rank, in]`, expert by expert; and B `[out, rank · experts]`, experts running fastest.

    Args:
        base, model: of all experts.
        names: of A and B.
        make: the factors of one expert's matrix.
    """
    pairs = [(matrix_of(base, number), matrix_of(model, number)) for number in range(model.shape[0])]
    firsts = [make(*pair, True) for pair in pairs]
    yield replace(joined(names[0], [Matrix(a, 0, *a.shape) for a in firsts], ()), name=names[0])
    seconds = tuple(make(*pair, False) for pair in pairs)
    rows, rank = seconds[0].shape
    nbytes = sum(b.nbytes for b in seconds)
    shape = (rows, rank * len(seconds))
    yield TensorInfo(names[1], seconds[0].dtype, shape, model.file, 0, nbytes, _Interleaved(seconds))


@dataclass(frozen=True, slots=True)
class _Interleaved:
    """Matrices of one size as one, column by column: the first columns of all, the second ones, and so on."""

    matrices: tuple[TensorInfo, ...]

    @property
    def files(self) -> Sequence[Path]:
        return tuple(dict.fromkeys(path for info in self.matrices for path in info.files))

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The values, all at once when the first of them is wanted."""
        del info
        return _InterleavedSource(self.matrices, files)


class _InterleavedSource:
    def __init__(self, matrices: Sequence[TensorInfo], files: OpenFiles) -> None:
        self._matrices = matrices
        self._files = files
        self._lock = Lock()
        self._values: HeldTensor | None = None

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        """Fill `out` with elements [start, stop)."""
        with self._lock:
            if self._values is None:
                self._values = HeldTensor(
                    torch.stack([read_all(self._files, info) for info in self._matrices], -1)
                )
        self._values.read(start, stop, out, scratch)
