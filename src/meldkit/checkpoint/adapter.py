"""LoRA adapters in PEFT's format, laid over a checkpoint without writing a merged copy.

    W' = W + s · B A        A [r, in], B [out, r], s = α / r (α / √r for rank-stabilised LoRA)

Papers: LoRA, https://arxiv.org/abs/2106.09685; rsLoRA, https://arxiv.org/abs/2312.03732.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from jaxtyping import Float32
from torch import Tensor

from meldkit.checkpoint.files import OpenFiles
from meldkit.checkpoint.safetensors import TensorInfo, read_header
from meldkit.checkpoint.tiles import Scratch, StoredTensor, TileSource
from meldkit.errors import CheckpointError, MismatchError, NotSupportedError

#: Rows of B·A that are always multiplied together, whatever tile they are wanted for: a matrix product
#: rounds differently for different numbers of rows, and tiles must not show in the result.
_GRID_ROWS = 64
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


@dataclass(frozen=True, slots=True)
class LowRank:
    """The update of one weight matrix: factors and scale."""

    a: TensorInfo
    b: TensorInfo
    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """A checked adapter: its updates by the name of the weight they change, and a content hash (hex)."""

    folder: Path
    updates: Mapping[str, LowRank]
    digest: str


def open_adapter(folder: Path, weights: Mapping[str, TensorInfo]) -> Adapter:
    """Read an adapter's configuration and headers and match them with the weights they change.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        weights: tensors of the checkpoint under the adapter.

    Raises:
        CheckpointError: missing or damaged files, or a factor without its partner.
        MismatchError: the adapter belongs to another base.
        NotSupportedError: a kind of adapter that is understood but not yet merged.
    """
    config = _read_config(folder)
    header = read_header(_weights_file(folder))
    factors: dict[str, dict[str, TensorInfo]] = {}
    for name, info in header.tensors.items():
        match = _FACTOR.fullmatch(name.removeprefix(_PREFIX))
        if match is None:
            raise NotSupportedError(
                f"not supported yet: adapter {folder} has tensor '{name}', "
                "which is not a LoRA factor of a linear layer"
            )
        factors.setdefault(match["module"], {})[match["side"]] = info
    if not factors:
        raise CheckpointError(f"adapter {folder} changes nothing: it has no tensors")
    updates: dict[str, LowRank] = {}
    for module, pair in factors.items():
        if pair.keys() != {"A", "B"}:
            raise CheckpointError(f"adapter {folder} has only lora_{next(iter(pair))} for '{module}'")
        target = f"{module}.weight"
        update = LowRank(pair["A"], pair["B"], _scale(config, module, pair["A"].shape[0]))
        _check_fit(folder, target, update, weights)
        updates[target] = update
    return Adapter(folder, updates, header.digest)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_bytes())
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
    except ValueError as e:
        raise CheckpointError(f"{path} is not valid JSON") from e
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a mapping")
    config = cast("dict[str, Any]", config)
    kind = str(config.get("peft_type", "LORA")).upper()
    if kind != "LORA":
        raise NotSupportedError(f"not supported yet: adapter {folder} is of type {kind}; only LORA is")
    for key in ("use_dora", "fan_in_fan_out", "modules_to_save", "lora_bias", "alora_invocation_tokens"):
        if config.get(key):
            raise NotSupportedError(f"not supported yet: adapter {folder} uses {key}")
    return config


def _weights_file(folder: Path) -> Path:
    path = folder / "adapter_model.safetensors"
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise NotSupportedError(
            f"not supported yet: adapter {folder} is stored as adapter_model.bin; only .safetensors is read"
        )
    return path


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """s, with the module's own rank and α where the configuration's patterns give them."""
    r = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if not isinstance(r, int) or r < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"adapter_config.json gives '{module}' the rank {r!r} and lora_alpha {alpha!r}")
    if r != rank:
        raise CheckpointError(
            f"adapter_config.json gives '{module}' the rank {r}, its lora_A has {rank} rows"
        )
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _by_pattern(patterns: object, module: str, default: object) -> object:
    # PEFT matches a pattern against the end of the module's path.
    if isinstance(patterns, dict):
        for pattern, value in cast("dict[str, object]", patterns).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return value
    return default


def _check_fit(folder: Path, target: str, update: LowRank, weights: Mapping[str, TensorInfo]) -> None:
    weight = weights.get(target)
    if weight is None:
        raise MismatchError(
            f"adapter {folder} changes '{target}', which its base model does not have",
            hint="check that the adapter was trained on this base model",
        )
    a, b = update.a.shape, update.b.shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or weight.shape != (b[0], a[1]):
        raise MismatchError(
            f"adapter {folder} does not fit '{target}': lora_A {list(a)} and lora_B {list(b)} "
            f"against {list(weight.shape)}",
            hint="check that the adapter was trained on this base model",
        )


class AdaptedTensor:
    """A tensor with one low-rank update added to each tile that is read."""

    def __init__(self, files: OpenFiles, under: TileSource, update: LowRank) -> None:
        self._under = under
        self._a: Float32[Tensor, "r columns"] = StoredTensor(files, update.a).read_all()
        self._b: Float32[Tensor, "rows r"] = StoredTensor(files, update.b).read_all() * update.scale

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        self._under.read(start, stop, out, scratch)
        columns = self._a.shape[1]
        block = _GRID_ROWS * columns
        for first in range(start // block * block, stop, block):
            row = first // columns
            delta = (self._b[row : row + _GRID_ROWS] @ self._a).view(-1)
            begin, end = max(start, first), min(stop, first + block)
            out[begin - start : end - start].add_(delta[begin - first : end - first])
