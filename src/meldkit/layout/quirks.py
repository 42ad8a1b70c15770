"""What names and plain lists do not show: keys, names and rules that one kind of model or another has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from meldkit.layout.spellings import (
    Between,
    Exceptions,
    Leading,
    Letters,
    Numbers,
    Period,
    Pointers,
    Repeated,
    Runs,
    SparseStep,
    Spelling,
    Trailing,
)

#: What configurations call the number of blocks of a stack.
DEPTH_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_layer",
    "num_decoder_layers",
    "num_encoder_layers",
    "encoder_layers",
    "decoder_layers",
    "depth",
    "num_blocks",
    "num_self_attends_per_block",
    "layers",
)
#: Lists and words with an entry per layer that tell the number of blocks even where no key does.
LIST_KEYS = ("layer_types", "layers_block_type", "hybrid_override_pattern")
#: Lists with an entry per layer of the encoder, whatever stands beside them (LED).
ENCODER_LISTS = frozenset(("attention_window",))
#: Lists that may be as long as a stack is deep, and are not about its layers.
OTHER_LISTS = frozenset(("architectures", "relative_bias_args"))
#: What they call the number of layers after the last, which predict further tokens.
NUM_TAIL_KEYS = ("num_nextn_predict_layers", "num_mtp_layers", "num_mtp_modules", "mtp_num_hidden_layers")

#: Lists of the parts of blocks, where a block is not a component of names itself (XLM, FlauBERT).
SPREAD_LISTS = frozenset(("attentions", "layer_norm1", "ffns", "layer_norm2"))
#: Tensors that hold a share of every layer, stacked into one (Gemma 3n, Gemma 4; ESM).
STACKED_TENSORS = (
    "embed_tokens_per_layer.weight",
    "per_layer_model_projection.weight",
    "contact_head.regression.weight",
)
#: Model types of which no layer can stand in another's place, and why.
FIXED_LAYERS: Mapping[str, str] = {
    "diffusion_gemma": "the layers of its decoder are those of its encoder",
    "idefics": "cross-attention between its layers is a stack of its own",
    "inkling2_text": "what a layer holds depends on its number",
    "pi0": "two stacks run side by side in it",
    "zamba2": "its shared block holds an adapter for each of its uses",
}

_ATTENTION = ("full_attention", "sliding_attention")

#: Read from the top; of one setting, the first row that reads it is used.
SPELLINGS: tuple[Spelling, ...] = (
    Numbers("attn_layer_indices"),  # Bamba
    Numbers("full_attn_idxs"),  # LFM2
    Numbers("hybrid_layer_ids"),  # Zamba2
    Numbers("cross_attention_layers"),  # Llama 3.2 Vision
    Numbers("moe_layers"),  # Llama 4
    Numbers("rope_scaling_layers"),
    Numbers("fullatt_block_indexes"),  # the tower of Qwen2.5-VL
    Numbers("full_attn_layers", 1, "linear_attn_config"),  # Kimi Linear
    Numbers("kda_layers", 1, "linear_attn_config"),
    Leading("first_k_dense_replace", "mlp_layer_types"),  # DeepSeek, GLM-4 MoE
    Leading("num_dense_layers", "mlp_layer_types"),  # LFM2-MoE, AFMoE
    Leading("n_dense_layers", "mlp_layer_types"),
    Leading("max_window_layers", "layer_types", "use_sliding_window"),  # Qwen2
    Trailing("num_kv_shared_layers"),  # Gemma 3n
    SparseStep(),
    Between(),
    Period(
        "full_attention_interval", -1, ("full_attention", "linear_attention"), "layer_types"
    ),  # Qwen3-Next
    Period(
        "sliding_window_pattern",
        -1,
        _ATTENTION,
        "layer_types",
        {"gemma3_text": 6, "gemma2": 2, "cohere2": 4},
    ),
    Period("global_attn_every_n_layers", 0, _ATTENTION, "layer_types", {"modernbert": 3}),
    Period("no_rope_layer_interval", -1, (0, 1), "no_rope_layers"),  # Llama 4, SmolLM3
    Period("attn_layer_period", "attn_layer_offset", listed="layers_block_type"),  # Jamba, Zamba
    Period("expert_layer_period", "expert_layer_offset"),  # Jamba
    Pointers("kv_source_layers"),
    Exceptions("per_layer_config"),  # whatever transformers builds of unequal layers
    Letters("hybrid_override_pattern"),  # Nemotron-H
    Repeated("block_types"),  # RecurrentGemma
    Runs("attention_types"),  # GPT-Neo
)


def why_fixed(config: Mapping[str, Any]) -> str:
    """Why no layer of a model can stand in another's place; "" if it can."""
    found = FIXED_LAYERS.get(str(config.get("model_type")), "")
    sections = (cast("Mapping[str, Any]", s) for s in config.values() if isinstance(s, Mapping))
    return found or next((why for section in sections if (why := why_fixed(section))), "")
