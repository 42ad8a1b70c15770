"""LoRA adapters in PEFT's format, laid over a checkpoint without writing a merged copy.

    W' = W + s · B A        A [r, in], B [out, r], s = α / r (α / √r for rank-stabilised LoRA)

Papers: LoRA, https://arxiv.org/abs/2106.09685; rsLoRA, https://arxiv.org/abs/2312.03732.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from meldkit.checkpoint.files import OpenFiles
from meldkit.checkpoint.json_file import read_json, shown
from meldkit.checkpoint.safetensors import TensorInfo, read_header
from meldkit.checkpoint.tiles import Scratch, StoredTensor, TileSource
from meldkit.errors import CheckpointError, MismatchError, NotSupportedError
from meldkit.shapes import Float32

#: Elements of the blocks of B·A, about half a tile. A matrix product rounds differently for different
#: numbers of rows, and tiles must not show in the result: so each block of a fixed grid of whole rows is
#: always multiplied at once. Larger blocks are computed again for each of the tiles they reach into (64 rows
#: of 28,672 columns cost 20 times as much), much smaller ones make inefficient products.
_BLOCK = 1 << 16
_PREFIX = "base_model.model."
#: Settings under which an adapter is more than, or other than, B·A added to the weight.
_OTHER_KINDS = (
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "lora_bias",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
#: Initialisations that change the base model's weights as well: PEFT repeats them when it loads the adapter.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_OTHER_BASE_HINT = "check that the adapter was trained on this base model"
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


@dataclass(frozen=True, slots=True)
class LowRank:
    """The update of one weight matrix: factors and scale."""

    a: TensorInfo
    b: TensorInfo
    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """A checked adapter.

    Attributes:
        folder: where it lies.
        updates: by the name of the weight they change.
        digest: hex hash of everything the header and the configuration say about them.
    """

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
                f"not supported yet: adapter {folder} has tensor {shown(name)}, "
                "which is not a LoRA factor of a linear layer"
            )
        pair = factors.setdefault(match["module"], {})
        if match["side"] in pair:
            raise CheckpointError(
                f"adapter {folder} has two lora_{match['side']} for {shown(match['module'])}"
            )
        pair[match["side"]] = info
    if not factors:
        raise CheckpointError(f"adapter {folder} changes nothing: it has no tensors")
    updates: dict[str, LowRank] = {}
    for module, pair in factors.items():
        if pair.keys() != {"A", "B"}:
            raise CheckpointError(
                f"adapter {folder} has only lora_{next(iter(pair))} for {shown(module)}",
                hint="download the adapter again, or check how it was written",
            )
        target = f"{module}.weight"
        _check_fit(folder, target, pair["A"], pair["B"], weights)
        updates[target] = LowRank(pair["A"], pair["B"], _scale(folder, config, module, pair["A"].shape[0]))
    scales = "".join(f"\n{target} {update.scale!r}" for target, update in updates.items())
    return Adapter(folder, updates, hashlib.sha256((header.digest + scales).encode()).hexdigest())


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if folder.is_dir() and not path.exists():
        raise CheckpointError(
            f"adapter {folder} has no adapter_config.json",
            hint="what stands after a '+' must be a LoRA adapter in PEFT's format",
        )
    config = read_json(path)
    kind = str(config.get("peft_type", "LORA")).upper()
    if kind != "LORA":
        raise NotSupportedError(
            f"not supported yet: adapter {folder} is of type {shown(kind)}; only 'LORA' is"
        )
    used = [key for key in _OTHER_KINDS if config.get(key)]
    if config.get("bias") not in (None, "none"):
        used.append("bias")
    if used:
        settings = ", ".join(f"{key} ({shown(config[key])})" for key in used)
        raise NotSupportedError(f"not supported yet: adapter {folder} uses {settings}")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGED_BASE):
        raise NotSupportedError(
            f"not supported yet: adapter {folder} has init_lora_weights {shown(init)}, "
            "which changes the base model too",
            hint="save it with PEFT's path_initial_model_for_weight_conversion: that makes it a plain LoRA",
        )
    return config


def _weights_file(folder: Path) -> Path:
    path = folder / "adapter_model.safetensors"
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise NotSupportedError(
            f"not supported yet: adapter {folder} is stored as adapter_model.bin; only .safetensors is read",
            hint="load it with PEFT and save_pretrained() it once; that writes safetensors",
        )
    return path


def _scale(folder: Path, config: Mapping[str, Any], module: str, rank: int) -> float:
    """s, with the module's own rank and α where the configuration's patterns give them."""
    r = _own(folder, config, "rank_pattern", module, config.get("r"))
    alpha = _own(folder, config, "alpha_pattern", module, config.get("lora_alpha"))
    if type(r) is not int or r < 1 or type(alpha) not in (int, float) or not -1e30 < alpha < 1e30:
        raise CheckpointError(
            f"adapter {folder}: adapter_config.json gives {shown(module)} the rank {shown(r)} "
            f"and lora_alpha {shown(alpha)}",
            hint="r must be a positive integer and lora_alpha a number",
        )
    if r != rank:
        raise CheckpointError(
            f"adapter {folder}: adapter_config.json gives {shown(module)} the rank {r}, "
            f"its lora_A has {rank} rows",
            hint="configuration and weights are of different adapters",
        )
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _own(folder: Path, config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """A module's own setting: that of the first pattern that matches the end of its path, as in PEFT."""
    patterns = config.get(key)
    if not patterns:
        return default
    if not isinstance(patterns, dict):
        raise CheckpointError(f"adapter {folder}: {key} of adapter_config.json is not a mapping")
    for pattern, value in cast("dict[str, Any]", patterns).items():
        try:
            match = re.match(rf"(.*\.)?({pattern})$", module)
        except (re.error, RecursionError, OverflowError) as e:
            raise CheckpointError(
                f"adapter {folder}: {key} of adapter_config.json has {shown(pattern)}, "
                "which is not a regular expression"
            ) from e
        if match:
            return value
    return default


def _check_fit(
    folder: Path, target: str, a: TensorInfo, b: TensorInfo, weights: Mapping[str, TensorInfo]
) -> None:
    weight = weights.get(target)
    if weight is None:
        raise MismatchError(
            f"adapter {folder} changes {shown(target)}, which its base model does not have",
            hint=_OTHER_BASE_HINT,
        )
    if not weight.floating:
        raise NotSupportedError(
            f"not supported yet: adapter {folder} changes {shown(target)}, which is stored as {weight.dtype}",
            hint="lay it over the base model's original, unquantised weights",
        )
    if len(a.shape) != 2 or len(b.shape) != 2 or not (a.floating and b.floating):
        raise NotSupportedError(
            f"not supported yet: adapter {folder} changes {shown(target)} by other factors than matrices "
            f"of numbers: lora_A {a.dtype} {list(a.shape)}, lora_B {b.dtype} {list(b.shape)}"
        )
    if a.shape[0] != b.shape[1] or weight.shape != (b.shape[0], a.shape[1]):
        raise MismatchError(
            f"adapter {folder} does not fit {shown(target)}: lora_A {list(a.shape)} "
            f"and lora_B {list(b.shape)} against {list(weight.shape)}",
            hint=_OTHER_BASE_HINT,
        )


class AdaptedTensor:
    """A tensor with one low-rank update added to each tile that is read."""

    def __init__(self, files: OpenFiles, under: TileSource, update: LowRank) -> None:
        self._under = under
        self._a: Float32[Tensor, "r columns"] = StoredTensor(files, update.a).read_all()
        self._b: Float32[Tensor, "rows r"] = StoredTensor(files, update.b).read_all() * update.scale
        self._block_rows = max(1, _BLOCK // max(1, self._a.shape[1]))

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        self._under.read(start, stop, out, scratch)
        if start == stop:
            return
        columns = self._a.shape[1]
        block = self._block_rows * columns
        for first in range(start // block * block, stop, block):
            row = first // columns
            delta = (self._b[row : row + self._block_rows] @ self._a).view(-1)
            begin, end = max(start, first), min(stop, first + block)
            out[begin - start : end - start].add_(delta[begin - first : end - first])
