"""What models call the sizes that people ask for first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

#: Our name, and those of config.json, the usual one first.
_NAMES = {
    "context_length": (
        "max_position_embeddings",
        "n_positions",
        "max_sequence_length",
        "max_seq_len",
        "seq_length",
        "n_ctx",
    ),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim", "n_embed"),
    "intermediate_size": ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "hidden_dim"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_kv_heads": ("num_key_value_heads", "n_kv_heads", "num_kv_heads"),
    "head_dim": ("head_dim", "d_kv"),
    "num_experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_token": ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"),
    "sliding_window": ("sliding_window",),
    "rope_theta": ("rope_theta", "rotary_emb_base"),
    "vocab_size": ("vocab_size",),
}
#: Where a model of several parts describes its text decoder, and how positions turn.
_TEXT = ("text_config", "language_config", "llm_config", "rope_parameters")


def settings_of(config: Mapping[str, Any]) -> dict[str, int | float]:
    """The sizes of a model by names that are the same for all models, as far as config.json tells them."""
    sections = [
        config,
        *(cast("dict[str, Any]", config[key]) for key in _TEXT if isinstance(config.get(key), dict)),
    ]
    sections += [
        cast("dict[str, Any]", section["rope_parameters"])
        for section in sections[1:]
        if isinstance(section.get("rope_parameters"), dict)
    ]
    result: dict[str, int | float] = {}
    for name, keys in _NAMES.items():
        found = (section.get(key) for section in reversed(sections) for key in keys)
        value = next((value for value in found if type(value) in (int, float)), None)
        if value is not None:
            result[name] = value
    return result
