"""From the parts of a mixture of experts, and its gates, to a model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from meldkit.checkpoint import Checkpoint, TensorInfo, open_files, read_all
from meldkit.checkpoint.experts import ExpertLayer, as_stored_by
from meldkit.composed import held
from meldkit.errors import MismatchError, NotSupportedError
from meldkit.plan import Composed
from meldkit.tools.moe.config import Mixture
from meldkit.tools.moe.dense import Dense, is_feed_forward
from meldkit.tools.moe.families import Family
from meldkit.tools.moe.parts import PER_TOKEN, Parts

#: Where configurations of mixtures say how many experts there are.
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
#: A matrix with a row per expert, behind the block.
_ROUTER = re.compile(r"(?:\w+\.)*?(?:gate|router|router\.layer)\.weight")
_CORRECTION = re.compile(r".*e_score_correction_bias")


def compose(parts: Parts, gates: np.ndarray, label: str) -> Composed:
    """The mixture.

    Args:
        parts: what it is made of.
        gates: of each layer, for `parts.needs_gates`: float32 `[layers, experts, size]`.
        label: what messages call it.
    """
    base = parts.checkpoint
    blocks = list(parts.experts)
    routers = _routers(parts, gates)
    if isinstance(parts.base, Dense):
        assert parts.family is not None
        tensors = _of_dense(parts, parts.base, parts.family, routers, gates)
        config = _configured(parts.base.config, parts.family, parts.mixture, parts.per_token)
        if parts.mixture.fused:
            tensors = _fused(tensors, blocks, parts)
    else:
        tensors, config = _of_mixtures(parts, base, routers)
    if parts.mixture.dtype is not None:
        config = {**config, "torch_dtype": parts.mixture.dtype}
    content = (
        parts.mixture,
        [m.fingerprint for m in parts.models],
        hashlib.sha256(gates.tobytes()).hexdigest(),
    )
    return Composed(
        label=label,
        folder=base.folder,
        tensors=tensors,
        config=config,
        tokenizer=base.tokenizer,
        adapters=base.adapters,
        fingerprint=hashlib.sha256(repr(content).encode()).hexdigest(),
        parts=(),
        notes=base.notes,
        warnings=parts.warnings,
        inputs=parts.models,
        gguf=base.gguf,
    )


def _routers(parts: Parts, gates: np.ndarray) -> dict[str, np.ndarray]:
    """The gates of each layer: float32 `[experts, size]`."""
    made = 0
    rows: list[int | None] = []
    for expert in parts.mixture.experts:
        rows.append(None if parts.has_gate(expert) else made)
        made += not parts.has_gate(expert)
    result: dict[str, np.ndarray] = {}
    for index, block in enumerate(parts.experts):
        stored = _stored_router(parts, block) if None in rows else None
        # Beside gates that were trained, those of new experts have their usual length.
        length = 1.0 if stored is None else float(np.linalg.norm(stored, axis=1).mean())
        layer: list[np.ndarray] = []
        for row, expert in zip(rows, parts.mixture.experts, strict=True):
            if row is None:
                assert stored is not None
                assert isinstance(expert.number, int)
                layer.append(stored[expert.number])
            else:
                layer.append(gates[index, row] * np.float32(length))
        result[block] = np.stack(layer).astype(np.float32)
    return result


def _stored_router(parts: Parts, block: str) -> np.ndarray:
    info = _router(parts.checkpoint.tensors, block, len(parts.layers[block].experts))
    with open_files() as files:
        return read_all(files, info).numpy()


def _router(tensors: Mapping[str, TensorInfo], block: str, count: int) -> TensorInfo:
    """The router of a layer of a mixture."""
    for name, info in tensors.items():
        if name.startswith(block) and _ROUTER.fullmatch(name.removeprefix(block)) and info.shape[0] == count:
            return info
    raise NotSupportedError(
        f"the router of {block.rstrip('.')} was not found among the base's tensors",
        hint="only mixtures whose router is called gate or router are added to",
    )


def _of_dense(
    parts: Parts, base: Dense, family: Family, routers: Mapping[str, np.ndarray], gates: np.ndarray
) -> dict[str, TensorInfo]:
    """A dense model's tensors, with experts in place of its feed-forward layers."""
    dtype = next(info.dtype for info in base.layers[next(iter(base.layers))].values())
    first = next(iter(base.tensors.values())).file
    tensors: dict[str, TensorInfo] = {}
    done: set[str] = set()
    blocks = list(parts.experts)
    for name, info in base.tensors.items():
        block = is_feed_forward(name)
        if block is None:
            tensors[name] = info
            if family.biases and re.search(r"self_attn\.[qkv]_proj\.weight", name):
                bias = name.removesuffix("weight") + "bias"
                if bias not in base.tensors:
                    tensors[bias] = held(bias, np.zeros(info.shape[0], np.float32), info.dtype, first)
            continue
        if block in done:
            continue
        done.add(block)
        module = block + family.module
        router = module + family.router
        tensors[router] = held(router, routers[block], dtype, first)
        for number, matrices in enumerate(parts.experts[block]):
            for role, leaf in family.leaves.items():
                own = f"{module}experts.{number}.{leaf}.weight"
                tensors[own] = replace(matrices[role], name=own)
        for matrices in parts.shared[block]:
            for role, leaf in family.leaves.items():
                own = f"{module}{family.shared}{leaf}.weight"
                tensors[own] = replace(matrices[role], name=own)
        if family.shared_gate:
            gate = module + family.shared_gate
            row = gates[blocks.index(block), len(parts.mixture.experts)][None]
            tensors[gate] = held(gate, row.astype(np.float32), dtype, first)
        if family.correction:
            bias = module + family.correction
            tensors[bias] = held(bias, np.zeros(len(parts.mixture.experts), np.float32), "F32", first)
    return tensors


def _configured(dense: Mapping[str, Any], family: Family, mixture: Mixture, per_token: int) -> dict[str, Any]:
    own = family.settings(dense, len(mixture.experts), per_token, len(mixture.shared))
    # The code that it names makes the dense model.
    kept = {key: value for key, value in dense.items() if key not in ("_name_or_path", "auto_map")}
    return {**kept, **own, "model_type": family.model_type, "architectures": [family.architecture]}


def _fused(tensors: Mapping[str, TensorInfo], blocks: Sequence[str], parts: Parts) -> dict[str, TensorInfo]:
    """The same, with the experts of a layer in one tensor, as transformers holds them."""
    count = len(parts.mixture.experts)
    reference: dict[str, TensorInfo] = {}
    for block in blocks:
        some = parts.experts[block][0]
        inner, outer = some["gate"].shape
        for leaf, shape in (
            ("gate_up_proj", (count, 2 * inner, outer)),
            ("down_proj", (count, outer, inner)),
        ):
            name = f"{block}mlp.experts.{leaf}"
            reference[name] = replace(some["gate"], name=name, shape=shape)
        router = f"{block}mlp.gate.weight"
        reference[router] = replace(some["gate"], name=router, shape=(count, outer))
    return dict(as_stored_by(tensors, reference))


def _of_mixtures(
    parts: Parts, base: Checkpoint, routers: Mapping[str, np.ndarray]
) -> tuple[dict[str, TensorInfo], dict[str, Any]]:
    """A mixture's tensors with other experts."""
    tensors: dict[str, TensorInfo] = {}
    ours = {info.name: block for block, layer in parts.layers.items() for info in _expert_names(base, layer)}
    first = next(iter(base.tensors.values())).file
    done: set[str] = set()
    count = len(parts.mixture.experts)
    for name, info in base.tensors.items():
        block = ours.get(name)
        if block is not None:
            if block not in done:
                done.add(block)
                for number, matrices in enumerate(parts.experts[block]):
                    for role, matrix in matrices.items():
                        own = f"{block}{parts.layers[block].module}experts.{number}.{role}_proj.weight"
                        tensors[own] = replace(matrix, name=own)
            continue
        tensors[name] = info
        for block, layer in parts.layers.items():
            before = len(layer.experts)
            if not name.startswith(block) or info.shape[:1] != (before,):
                continue
            if name == _router(base.tensors, block, before).name:
                tensors[name] = held(name, routers[block], info.dtype, first)
            elif _CORRECTION.fullmatch(name):
                tensors[name] = held(name, _corrections(parts, info), info.dtype, first)
    return dict(as_stored_by(tensors, base.tensors)), _counted(base.config, count, parts)


def _counted(config: Mapping[str, Any], count: int, parts: Parts) -> dict[str, Any]:
    """The configuration of a mixture of so many experts.

    Raises:
        MismatchError: they cannot be divided into the groups that tokens choose among.
    """
    groups = config.get("n_group")
    if isinstance(groups, int) and groups > 1 and (count % groups or count < 2 * groups):
        raise MismatchError(
            f"{count} experts do not make the {groups} equal groups of '{parts.mixture.base}' (n_group)",
            hint=f"there are to be 2, 3 or more for each group, such as {max(2, count // groups) * groups}",
        )
    changed: dict[str, Any] = {key: count for key in _COUNTS if key in config}
    changed |= {key: parts.per_token for key in PER_TOKEN if key in config}
    if isinstance(text := config.get("text_config"), Mapping):
        changed["text_config"] = _counted(cast("Mapping[str, Any]", text), count, parts)
    return {**config, **changed}


def _expert_names(base: Checkpoint, layer: ExpertLayer) -> Iterator[TensorInfo]:
    prefix = layer.block + layer.module
    for name, info in base.tensors.items():
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and (rest.startswith("experts.") or len(info.shape) == 3):
            yield info


def _corrections(parts: Parts, info: TensorInfo) -> np.ndarray:
    """What is added to the scores of experts when they are chosen; to a new one's, the mean."""
    with open_files() as files:
        stored = read_all(files, info).numpy()
    return np.array(
        [
            stored[expert.number]
            if parts.has_gate(expert) and isinstance(expert.number, int)
            else stored.mean()
            for expert in parts.mixture.experts
        ],
        np.float32,
    )
