"""Dense models as mixtures take them in: under Llama's names, one projection per tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from meldkit.checkpoint import Checkpoint, TensorInfo
from meldkit.checkpoint.rearranged import Matrix, joined
from meldkit.composed import Altered, altered
from meldkit.errors import MismatchError, NotSupportedError

_MLP = re.compile(r"(?P<block>(?:.*\.)?layers\.\d+\.)mlp\.(?P<leaf>[\w.]+)")
_LEAVES = {"gate_proj.weight": "gate", "up_proj.weight": "up", "down_proj.weight": "down"}


@dataclass(frozen=True, slots=True)
class Dense:
    """A dense model.

    Attributes:
        checkpoint: the model.
        tensors: in its order, under Llama's names.
        config: what config.json would say of a Llama like it, but for its name.
        layers: by what names of a layer begin with, what its feed-forward part consists of: gate, up and
            down, [out, in] each.
    """

    checkpoint: Checkpoint
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    layers: Mapping[str, Mapping[str, TensorInfo]]


def is_feed_forward(name: str) -> str | None:
    """What the names of the layer begin with, if a tensor is of its feed-forward part; else None."""
    match = _MLP.fullmatch(name)
    return match and match["block"]


def read_dense(checkpoint: Checkpoint) -> Dense:
    """A dense model, by its type.

    Raises:
        NotSupportedError: it computes otherwise than any mixture does.
        MismatchError: it has no feed-forward layers of three projections.
    """
    config = dict(checkpoint.config)
    tensors: Mapping[str, TensorInfo] = checkpoint.tensors
    if config.get("model_type") == "phi3":
        tensors = _phi3(checkpoint.label, tensors, config)
    elif config.get("model_type") == "gemma":
        tensors, config = _gemma(tensors, config)
    layers: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        match = _MLP.fullmatch(name)
        if match is None:
            continue
        role = _LEAVES.get(match["leaf"])
        if role is None:
            raise NotSupportedError(
                f"model '{checkpoint.label}' has {name}, for which mixtures have no place",
                hint="only gate_proj, up_proj and down_proj without biases become experts",
            )
        layers.setdefault(match["block"], {})[role] = info
    whole = [block for block, roles in layers.items() if len(roles) == len(_LEAVES)]
    if not layers or len(whole) < len(layers):
        raise MismatchError(
            f"model '{checkpoint.label}' has no feed-forward layers of gate_proj, up_proj and down_proj",
            hint="models like Llama, Mistral, Qwen, Phi-3 and Gemma have them",
        )
    return Dense(checkpoint, tensors, config, layers)


def _phi3(label: str, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """Projections that stand in one tensor, taken apart."""
    rope: dict[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    partial: Any = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial != 1 or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise NotSupportedError(
            f"model '{label}' has rotary embeddings of another kind than mixtures have (longrope, or of "
            "a part of each head)",
            hint="Phi-3 models with a context of 4k have the usual ones",
        )
    heads: int = config["num_attention_heads"]
    kv_heads: int = config.get("num_key_value_heads") or heads
    size: int = config["hidden_size"] // heads
    rows: dict[str, dict[str, int]] = {
        "qkv_proj.weight": {"q_proj": heads * size, "k_proj": kv_heads * size, "v_proj": kv_heads * size},
        "gate_up_proj.weight": dict.fromkeys(("gate_proj", "up_proj"), config["intermediate_size"]),
    }
    found: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        leaf = next((leaf for leaf in rows if name.endswith("." + leaf)), None)
        if leaf is None:
            found[name] = info
            continue
        start, columns = 0, info.shape[1]
        for part, count in rows[leaf].items():
            own = name.removesuffix(leaf) + f"{part}.weight"
            found[own] = joined(own, [Matrix(info, start * columns, count, columns)], ())
            start += count
    return found


def _gemma(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> tuple[dict[str, TensorInfo], dict[str, Any]]:
    """Norms with weights that are added to 1, and embeddings that are multiplied by the root of the size."""
    found: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        if name.endswith("norm.weight"):
            # Next to 1, bfloat16 would keep little of it.
            found[name] = altered(replace(info, dtype="F32"), Altered(info, shift=1.0))
        elif name.endswith("embed_tokens.weight"):
            scaled = Altered(info, scale=math.sqrt(config["hidden_size"]))
            found[name] = altered(info, scaled)
            head = "lm_head.weight"
            if head not in tensors:
                found[head] = replace(info, name=head)
        else:
            found[name] = info
    activation = config.get("hidden_activation") or "gelu_pytorch_tanh"
    others = {k: v for k, v in config.items() if k != "hidden_activation"}
    return found, {**others, "hidden_act": activation, "tie_word_embeddings": False}
