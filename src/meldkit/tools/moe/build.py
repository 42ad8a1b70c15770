"""From what a mixture is to be made of, and its gates, to a model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from meldkit.checkpoint import Checkpoint, ExpertLayer, TensorInfo, as_stored_by, expert_layers
from meldkit.errors import MismatchError, NotSupportedError, RecipeError, did_you_mean
from meldkit.plan import Composed
from meldkit.recipe import ModelRef
from meldkit.tools.composed import Altered, altered, held
from meldkit.tools.moe.config import PROMPTED, Expert, Mixture
from meldkit.tools.moe.dense import Dense, is_feed_forward, read_dense
from meldkit.tools.moe.families import FAMILIES, Family

#: Where configurations of mixtures say how many experts there are.
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts")
#: A matrix with a row per expert, behind the block.
_ROUTER = re.compile(r"(?:\w+\.)*?(?:gate|router|router\.layer)\.weight")
_CORRECTION = re.compile(r".*e_score_correction_bias")

Matrices = Mapping[str, TensorInfo]


@dataclass(frozen=True, slots=True)
class Parts:
    """The models of a mixture, found to fit together.

    Attributes:
        mixture: with every expert by itself.
        base: gives all but the experts.
        family: what a dense base becomes; None where the base is a mixture, which keeps its kind.
        models: all that take part, the base first.
        experts: by what the names of a layer begin with, the matrices of each expert.
        shared: the same of shared experts.
        layers: of a base that is a mixture, its own experts.
        notes, warnings: about it, in words.
    """

    mixture: Mixture
    base: Dense | Checkpoint
    family: Family | None
    models: tuple[Checkpoint, ...]
    experts: Mapping[str, Sequence[Matrices]]
    shared: Mapping[str, Sequence[Matrices]]
    layers: Mapping[str, ExpertLayer]
    warnings: tuple[str, ...]

    @property
    def checkpoint(self) -> Checkpoint:
        """The base as it is stored."""
        return self.base.checkpoint if isinstance(self.base, Dense) else self.base

    @property
    def needs_gates(self) -> tuple[Expert, ...]:
        """The experts that gates are made for: those that come without one, and shared ones that have one."""
        own = tuple(expert for expert in self.mixture.experts if not self.has_gate(expert))
        gated = self.family is not None and bool(self.family.shared_gate)
        return own + (self.mixture.shared if gated else ())

    def has_gate(self, expert: Expert) -> bool:
        """Whether an expert is one of the base's own, with a gate that it keeps."""
        return self.family is None and expert.model == self.mixture.base and not expert.positive


def gather(mixture: Mixture, open_model: Callable[[ModelRef], Checkpoint]) -> Parts:
    """Open the models of a mixture, and see whether they fit together.

    Raises:
        RecipeError: no mixture can be made like this.
        MismatchError: the models do not fit together.
        NotSupportedError: a model is of a kind that is not known here.
    """
    opened: dict[ModelRef, Checkpoint] = {}
    for ref in (mixture.base, *(e.model for e in (*mixture.experts, *mixture.shared))):
        if ref not in opened:
            opened[ref] = open_model(ref)
    stored = {ref: {layer.block: layer for layer in expert_layers(c.tensors)} for ref, c in opened.items()}
    experts = [one for expert in mixture.experts for one in _each(expert, stored[expert.model])]
    mixture = replace(mixture, experts=tuple(experts))
    dense: dict[ModelRef, Dense] = {}

    def matrices(expert: Expert) -> dict[str, Matrices]:
        """By layer."""
        if isinstance(expert.number, int):
            return {b: _of_mixture(expert, layer) for b, layer in stored[expert.model].items()}
        if expert.model not in dense:
            dense[expert.model] = read_dense(opened[expert.model])
        return dict(dense[expert.model].layers)

    own = stored[mixture.base]
    base = opened[mixture.base] if own else read_dense(opened[mixture.base])
    family = None if isinstance(base, Checkpoint) else _family(mixture, opened)
    if family is None and mixture.shared:
        raise NotSupportedError(
            f"the base '{mixture.base}' is a mixture itself, whose shared experts stay as they are",
            hint="leave out shared_experts",
        )
    blocks = list(own) if isinstance(base, Checkpoint) else list(base.layers)
    routed, shared = ([matrices(e) for e in found] for found in (mixture.experts, mixture.shared))
    named = [*zip(mixture.experts, routed, strict=True), *zip(mixture.shared, shared, strict=True)]
    _check_shapes(mixture, base, own, named)
    if mixture.experts_per_token > len(mixture.experts):
        raise RecipeError(
            f"experts_per_token is {mixture.experts_per_token}, but there are {len(mixture.experts)} experts",
            hint="a token cannot take more experts than there are",
        )
    return Parts(
        mixture=mixture,
        base=base,
        family=family,
        models=tuple(opened.values()),
        experts=_by_layer(blocks, mixture.experts, routed),
        shared=_by_layer(blocks, mixture.shared, shared),
        layers=own,
        warnings=tuple(_warnings(mixture)),
    )


def _by_layer(
    blocks: Sequence[str], experts: Sequence[Expert], matrices: Sequence[Mapping[str, Matrices]]
) -> dict[str, list[Matrices]]:
    """Of each layer, the matrices of each expert with what is changed in them."""
    return {
        block: [_changed(e, block, own[block]) for e, own in zip(experts, matrices, strict=True)]
        for block in blocks
    }


def _each(expert: Expert, layers: Mapping[str, ExpertLayer]) -> Iterator[Expert]:
    """An entry as the experts that it names."""
    if not layers:
        if expert.number is not None:
            raise MismatchError(
                f"{expert.where}: '{expert.model}' is dense and has no experts to choose from",
                hint="leave out 'expert'",
            )
        yield expert
        return
    count = min(len(layer.experts) for layer in layers.values())
    if expert.number is None:
        raise RecipeError(
            f"{expert.where}: '{expert.model}' is a mixture of {count} experts, and none of them is named",
            hint=f"add 'expert: 0', 'expert: [0, 1]' or 'expert: all'; the last one is {count - 1}",
        )
    numbers = range(count) if expert.number == "all" else (expert.number,)
    for number in numbers:
        if number >= count:
            raise RecipeError(
                f"{expert.where}: '{expert.model}' has no expert {number}",
                hint=f"it has {count}, counted from 0 to {count - 1}",
            )
        yield replace(expert, number=number)


def _of_mixture(expert: Expert, layer: ExpertLayer) -> Matrices:
    assert isinstance(expert.number, int)
    return layer.experts[expert.number]


def _changed(expert: Expert, block: str, matrices: Matrices) -> Matrices:
    """An expert's matrices with noise and scale."""
    return {
        role: altered(
            info,
            Altered(
                info,
                noise=expert.noise,
                scale=expert.scale if role == "down" else 1.0,
                key=f"{expert.where}\0{block}\0{role}",
            ),
        )
        for role, info in matrices.items()
    }


def _family(mixture: Mixture, opened: Mapping[ModelRef, Checkpoint]) -> Family:
    """What the dense models become."""
    wanted = (mixture.architecture or "").lower()
    named = [family for family in FAMILIES if family.name.startswith(wanted)]
    if not named:
        names = [family.name for family in FAMILIES]
        raise RecipeError(
            f"unknown architecture '{mixture.architecture}'",
            hint=f"{did_you_mean(wanted, names)} known: {', '.join(names)}",
        )
    refused: list[str] = []
    for family in named:
        reason = _why_not(family, mixture, opened)
        if reason is None:
            return family
        refused.append(f"{family.name}: {reason}")
    raise MismatchError(
        "no kind of mixture fits: " + "; ".join(refused), hint="see docs/moe.md for what fits what"
    )


def _why_not(family: Family, mixture: Mixture, opened: Mapping[ModelRef, Checkpoint]) -> str | None:
    """Why models cannot become a mixture of this kind; None if they can."""
    base = opened[mixture.base].config
    kind = str(base.get("model_type"))
    if kind not in family.sources:
        return f"not from models of type '{kind}', but {', '.join(sorted(family.sources))}"
    if base.get("attention_bias") and not family.biases and kind in ("llama", "mistral"):
        return "it has no biases in attention, as the base has"
    fewest, most = family.num_shared
    count = len(mixture.shared)
    if not fewest <= count <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
        return f"it has {wanted} shared experts, {count} are given"
    prompts = any(expert.positive for expert in mixture.shared)
    if family.shared_gate and mixture.gate_mode in PROMPTED and not prompts:
        return "its shared expert has a gate, for which it needs prompts"
    if prompts and not family.shared_gate:
        return "its shared expert has no gate, so that prompts for it say nothing"
    return None


def _check_shapes(
    mixture: Mixture,
    base: Dense | Checkpoint,
    own: Mapping[str, ExpertLayer],
    found: Sequence[tuple[Expert, Mapping[str, Matrices]]],
) -> None:
    """Every expert has the base's layers, and matrices of the same shapes."""
    layers = base.layers if isinstance(base, Dense) else {b: layer.experts[0] for b, layer in own.items()}
    for expert, matrices in found:
        if lacking := [block for block in layers if block not in matrices]:
            raise MismatchError(
                f"expert '{expert}' has {len(matrices)} layers, the base '{mixture.base}' has {len(layers)}; "
                f"it lacks {lacking[0].rstrip('.')}",
                hint="experts are models of the same depth and names as the base",
            )
        for block, roles in layers.items():
            for role, info in roles.items():
                if role not in matrices[block] or matrices[block][role].shape != info.shape:
                    shape = list(matrices[block][role].shape) if role in matrices[block] else "missing"
                    raise MismatchError(
                        f"the {role} projection of expert '{expert}' in {block.rstrip('.')} is {shape}, that "
                        f"of the base '{mixture.base}' {list(info.shape)}",
                        hint="experts are models of the same sizes as the base",
                    )


def _warnings(mixture: Mixture) -> Iterator[str]:
    count = len(mixture.experts)
    if count & (count - 1):
        yield f"{count} experts are no power of two; llama.cpp and some other programs want one"
    same = {(e.model, e.number, e.noise, e.scale) for e in mixture.experts}
    if len(same) == 1 and count > 1:
        yield "all experts are the same: the mixture computes what one of them does until it is trained"


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
        config = _configured(parts.base.config, parts.family, parts.mixture)
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
    from meldkit.checkpoint import open_files, read_all

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
        if family.model_type == "glm4_moe":
            bias = f"{module}gate.e_score_correction_bias"
            tensors[bias] = held(bias, np.zeros(len(parts.mixture.experts), np.float32), "F32", first)
    return tensors


def _configured(dense: Mapping[str, Any], family: Family, mixture: Mixture) -> dict[str, Any]:
    own = family.settings(dense, len(mixture.experts), mixture.experts_per_token, len(mixture.shared))
    config = {**dense, **own, "model_type": family.model_type, "architectures": [family.architecture]}
    config.pop("_name_or_path", None)
    return config


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
    config = dict(base.config)
    for key in _COUNTS:
        if key in config:
            config[key] = count
    for key in _PER_TOKEN:
        if isinstance(config.get(key), int):
            config[key] = min(config[key], count)
    return dict(as_stored_by(tensors, base.tensors)), config


def _expert_names(base: Checkpoint, layer: ExpertLayer) -> Iterator[TensorInfo]:
    prefix = layer.block + layer.module
    for name, info in base.tensors.items():
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and (rest.startswith("experts.") or len(info.shape) == 3):
            yield info


def _corrections(parts: Parts, info: TensorInfo) -> np.ndarray:
    """What is added to the scores of experts when they are chosen; to a new one's, the mean."""
    from meldkit.checkpoint import open_files, read_all

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
