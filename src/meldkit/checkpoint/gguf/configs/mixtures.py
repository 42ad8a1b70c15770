"""config.json of mixtures of experts, and of models whose keys and values are compressed (MLA)."""

from __future__ import annotations

from typing import Any, cast

from meldkit.checkpoint.gguf.configs.common import (
    decoder,
    experts,
    granite_scales,
    linear_attention,
    long_rope,
    partial_rotation,
    sliding,
)
from meldkit.checkpoint.gguf.configs.dense import llama
from meldkit.checkpoint.gguf.settings import Settings

#: Of the function that makes scores of experts comparable.
_SIGMOID = 2
#: DeepSeek's models, of which older files do not say in how many groups their experts are, and how many
#: groups a token may use; by the number of experts.
_GROUPS = {256: (8, 4), 160: (8, 3)}
#: What Microsoft's mixtures multiply by where positions are stretched; the file has no word for it.
_PHI_SCALE = 1.243163121016122


def _local_experts(s: Settings) -> dict[str, Any]:
    return {
        "num_local_experts": s.integer("expert_count"),
        "num_experts_per_tok": s.integer("expert_used_count"),
    }


def _shared_width(s: Settings) -> int:
    """The width of what all tokens use: that of its tensor, for old files do not say."""
    down = s.first("ffn_down_shexp.weight")
    return down.shape[-1] if down else s.count("expert_shared_feed_forward_length")


def mixtral(s: Settings) -> dict[str, Any]:
    config = llama(s) | _local_experts(s) | {"sliding_window": None}
    return {key: value for key, value in config.items() if key not in ("attention_bias", "mlp_bias")}


def qwen2moe(s: Settings) -> dict[str, Any]:
    shared = {"shared_expert_intermediate_size": _shared_width(s), "norm_topk_prob": False}
    return decoder(s) | experts(s) | shared


def qwen3moe(s: Settings) -> dict[str, Any]:
    # llama.cpp's program for it has no other way.
    return (
        decoder(s) | experts(s) | {"head_dim": s.head_size, "attention_bias": False, "norm_topk_prob": True}
    )


def olmoe(s: Settings) -> dict[str, Any]:
    return decoder(s) | {
        "num_experts": s.integer("expert_count"),
        "num_experts_per_tok": s.integer("expert_used_count"),
        "norm_topk_prob": False,
    }


def qwen3next(s: Settings) -> dict[str, Any]:
    return (
        decoder(s)
        | experts(s)
        | linear_attention(s)
        | partial_rotation(s)
        | {"shared_expert_intermediate_size": _shared_width(s), "norm_topk_prob": True}
    )


def qwen35(s: Settings) -> dict[str, Any]:
    config = decoder(s) | linear_attention(s)
    rope = {"rope_type": "default", "rope_theta": config.pop("rope_theta")} | partial_rotation(s)
    sections = s.get("rope.dimension_sections")
    if sections is not None:
        numbers = (
            [n for n in cast("tuple[object, ...]", sections) if type(n) is int]
            if isinstance(sections, tuple)
            else []
        )
        if len(numbers) < 3:
            raise s.wrong("rope.dimension_sections")
        rope |= {"mrope_interleaved": True, "mrope_section": numbers[:3]}
    return config | {"rope_parameters": rope | config.pop("rope_scaling", {})}


def qwen35moe(s: Settings) -> dict[str, Any]:
    return qwen35(s) | experts(s) | {"shared_expert_intermediate_size": _shared_width(s)}


def gpt_oss(s: Settings) -> dict[str, Any]:
    config: dict[str, Any] = (
        decoder(s)
        | _local_experts(s)
        | {
            "intermediate_size": s.expert_width,
            "head_dim": s.head_size,
            "attention_bias": s.has("attn_q.bias"),
            "sliding_window": s.integer("attention.sliding_window"),
        }
    )
    scaling = config.get("rope_scaling")
    return config | ({"rope_scaling": scaling | {"truncate": False}} if scaling else {})


def llama4(s: Settings) -> dict[str, Any]:
    sized = _local_experts(s) | {
        "intermediate_size": s.expert_width,
        "intermediate_size_mlp": s.feed_forward,
        "interleave_moe_layer_step": s.integer("interleave_moe_layer_step"),
        "head_dim": s.head_size,
        # Maverick, which is known by its number of experts, is the only one without.
        "use_qk_norm": s.integer("expert_count") != 128,
    }
    return decoder(s) | sized


def phimoe(s: Settings) -> dict[str, Any]:
    config = decoder(s) | _local_experts(s)
    config |= {
        "intermediate_size": s.expert_width,
        "attention_bias": s.has("attn_q.bias"),
        "lm_head_bias": "output.bias" in s.contents.tensors,
        "sliding_window": s.count("attention.sliding_window") or None,
    }
    stretched = long_rope(s)
    if stretched:
        original = s.integer("rope.scaling.original_context_length")
        stretched["rope_scaling"] |= {
            "long_mscale": _PHI_SCALE,
            "short_mscale": _PHI_SCALE,
            "original_max_position_embeddings": original,
        }
    return config | stretched


def granitemoe(s: Settings) -> dict[str, Any]:
    config = decoder(s) | granite_scales(s) | _local_experts(s) | {"intermediate_size": s.expert_width}
    shared = _shared_width(s)
    return config | ({"shared_intermediate_size": shared} if shared else {})


def dbrx(s: Settings) -> dict[str, Any]:
    return {
        "d_model": s.integer("embedding_length"),
        "n_heads": s.heads,
        "n_layers": s.depth,
        "max_seq_len": s.integer("context_length"),
        "attn_config": {
            "kv_n_heads": s.kv_heads,
            "clip_qkv": s.some_real("attention.clamp_kqv"),
            "rope_theta": s.real("rope.freq_base", 10000.0),
        },
        "ffn_config": {
            "hidden_size": s.integer("embedding_length"),
            "ffn_act_fn": {"name": "silu"},
            "ffn_hidden_size": s.expert_width,
            "moe_num_experts": s.integer("expert_count"),
            "moe_top_k": s.integer("expert_used_count"),
        },
    }


def minimax_m2(s: Settings) -> dict[str, Any]:
    rotated = s.integer("rope.dimension_count", s.head_size)
    sized = {"intermediate_size": s.expert_width, "head_dim": s.head_size, "rotary_dim": rotated}
    return decoder(s) | _local_experts(s) | sized


def ernie4_5_moe(s: Settings) -> dict[str, Any]:
    return decoder(s) | {
        "use_bias": s.has("attn_q.bias"),
        "moe_num_experts": s.integer("expert_count"),
        "moe_k": s.integer("expert_used_count"),
        "moe_intermediate_size": s.expert_width,
        "moe_num_shared_experts": _shared_width(s) // s.expert_width,
        "moe_layer_start_index": s.count("leading_dense_block_count"),
        "moe_layer_interval": s.integer("interleave_moe_layer_step", 1),
    }


def _deepseek(s: Settings, *, groups: bool = True) -> dict[str, Any]:
    """Experts as DeepSeek has them."""
    known = _GROUPS.get(s.integer("expert_count"), (1, 1)) if groups else (1, 1)
    return {
        "n_routed_experts": s.integer("expert_count"),
        "num_experts_per_tok": s.integer("expert_used_count"),
        "n_shared_experts": _shared_width(s) // s.expert_width,
        "moe_intermediate_size": s.expert_width,
        "first_k_dense_replace": s.count("leading_dense_block_count"),
        "routed_scaling_factor": s.real("expert_weights_scale", 1.0),
        "norm_topk_prob": bool(s.get("expert_weights_norm")),
        "n_group": s.integer("expert_group_count", known[0]),
        "topk_group": s.integer("expert_group_used_count", known[1]),
    }


def _mla(s: Settings) -> dict[str, Any]:
    """Keys and values that are computed from compressed ones."""
    rotated = s.integer("rope.dimension_count")
    size = s.integer("attention.key_length_mla", s.integer("attention.key_length"))
    if size <= rotated:
        raise s.wrong("attention.key_length")
    width = s.integer("embedding_length") // s.heads
    return {
        "num_key_value_heads": s.heads,
        "q_lora_rank": s.count("attention.q_lora_rank") or None,
        "kv_lora_rank": s.integer("attention.kv_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": size - rotated,
        "v_head_dim": s.integer("attention.value_length_mla", s.integer("attention.value_length", width)),
    }


def _mla_decoder(s: Settings) -> dict[str, Any]:
    config: dict[str, Any] = decoder(s) | _mla(s) | {"attention_bias": s.has("attn_q_a.bias")}
    log = s.get("rope.scaling.yarn_log_multiplier")
    if log is not None and "rope_scaling" in config:
        # Stored as a tenth of it.
        mscale = round(10 * s.real("rope.scaling.yarn_log_multiplier"), 6)
        scaling = config["rope_scaling"]
        scaling |= {"mscale": mscale, "mscale_all_dim": mscale}
    return config


def deepseek_v2(s: Settings) -> dict[str, Any]:
    config = _mla_decoder(s) | _deepseek(s)
    return config | {"topk_method": "greedy" if config["n_group"] == 1 else "group_limited_greedy"}


def deepseek_v3(s: Settings) -> dict[str, Any]:
    return _mla_decoder(s) | _deepseek(s)


def glm4_moe_lite(s: Settings) -> dict[str, Any]:
    config = _mla_decoder(s) | _deepseek(s, groups=False)
    dense = config.pop("first_k_dense_replace")
    return config | {"mlp_layer_types": ["dense" if i < dense else "sparse" for i in range(s.depth)]}


def sigmoid(s: Settings) -> bool:
    """Whether the scores of experts do not depend on each other."""
    return s.get("expert_gating_func") == _SIGMOID or s.has("exp_probs_b.bias")


def glm_moe_dsa(s: Settings) -> dict[str, Any]:
    own = s.layers_with("indexer.attn_k")
    return (
        _mla_decoder(s)
        | _deepseek(s, groups=False)
        | {
            "index_n_heads": s.integer("attention.indexer.head_count"),
            "index_head_dim": s.integer("attention.indexer.key_length"),
            "index_topk": s.integer("attention.indexer.top_k"),
            "indexer_types": ["full" if has else "shared" for has in own],
        }
    )


def mistral4(s: Settings) -> dict[str, Any]:
    config = _mla_decoder(s) | _deepseek(s, groups=False)
    rope = config.pop("rope_scaling", {"rope_type": "default"})
    config["rope_parameters"] = rope | {
        "rope_theta": config.pop("rope_theta"),
        "llama_4_scaling_beta": s.real("attention.temperature_scale", 0.1),
        "partial_rotary_factor": config["qk_rope_head_dim"]
        / (config["qk_rope_head_dim"] + config["qk_nope_head_dim"]),
    }
    return config


def kimi_experts(s: Settings) -> dict[str, Any]:
    """Experts and compressed keys of Kimi Linear, whose configuration has names of its own."""
    config = _mla(s) | _deepseek(s, groups=False)
    return config | {
        "num_experts": config.pop("n_routed_experts"),
        "num_experts_per_token": config.pop("num_experts_per_tok"),
        "num_shared_experts": config.pop("n_shared_experts"),
        "num_expert_group": config.pop("n_group"),
        "moe_renormalize": config.pop("norm_topk_prob") or s.get("expert_weights_norm") is None,
        "model_max_length": s.integer("context_length"),
    }


def minicpm3(s: Settings) -> dict[str, Any]:
    config = decoder(s) | _mla(s) | long_rope(s)
    config["v_head_dim"] = s.integer("embedding_length") // s.heads
    original = s.integer("rope.scaling.original_context_length", config["max_position_embeddings"])
    if "rope_scaling" in config:
        config["rope_scaling"]["original_max_position_embeddings"] = original
    return config


def glm4_moe(s: Settings) -> dict[str, Any]:
    return (
        decoder(s)
        | partial_rotation(s)
        | _deepseek(s, groups=False)
        | {
            "head_dim": s.head_size,
            "attention_bias": s.has("attn_q.bias"),
            "use_qk_norm": s.has("attn_q_norm.weight"),
        }
    )


def dots1(s: Settings) -> dict[str, Any]:
    return decoder(s) | _deepseek(s, groups=False) | {"head_dim": s.head_size, "sliding_window": None}


def exaone_moe(s: Settings) -> dict[str, Any]:
    config = decoder(s) | _deepseek(s, groups=False) | sliding(s)
    config["num_shared_experts"] = config.pop("n_shared_experts")
    config["num_experts"] = config.pop("n_routed_experts")
    return config | {"head_dim": s.head_size, "sliding_window_pattern": None}


def afmoe(s: Settings) -> dict[str, Any]:
    return (
        decoder(s)
        | experts(s)
        | {
            "head_dim": s.head_size,
            "num_dense_layers": s.count("leading_dense_block_count"),
            "num_shared_experts": _shared_width(s) // s.expert_width,
            "route_scale": s.real("expert_weights_scale", 1.0),
            "sliding_window": s.integer("attention.sliding_window"),
            # llama.cpp's program for it has no other way.
            "mup_enabled": True,
        }
    )


def hunyuan_moe(s: Settings) -> dict[str, Any]:
    return decoder(s) | {
        "head_dim": s.head_size,
        "attention_bias": s.has("attn_q.bias"),
        "num_experts": s.integer("expert_count"),
        "moe_topk": s.integer("expert_used_count"),
        "intermediate_size": s.expert_width,
    }


def mimo2(s: Settings) -> dict[str, Any]:
    layers = sliding(s)
    slides = [kind == "sliding_attention" for kind in layers["layer_types"]]
    counts = s.per_layer("attention.head_count_kv")
    of_full = next((n for n, short in zip(counts, slides, strict=True) if not short), counts[0])
    if any(n != of_full * (2 if short else 1) for n, short in zip(counts, slides, strict=True)):
        raise s.wrong("attention.head_count_kv")
    rotation = partial_rotation(s) | {"rope_type": "default"}
    sparse = s.layers_with("ffn_gate_inp")
    config = {
        "hidden_size": s.integer("embedding_length"),
        "intermediate_size": s.feed_forward,
        "num_hidden_layers": s.depth,
        "num_attention_heads": s.heads,
        "num_key_value_heads": of_full,
        "head_dim": s.head_size,
        "v_head_dim": s.integer("attention.value_length"),
        "max_position_embeddings": s.integer("context_length"),
        "rms_norm_eps": s.epsilon,
        "rope_parameters": {
            "full_attention": rotation | {"rope_theta": s.real("rope.freq_base", 5000000.0)},
            "sliding_attention": rotation | {"rope_theta": s.real("rope.freq_base_swa", 10000.0)},
        },
        **layers,
        **_deepseek(s, groups=False),
        "norm_topk_prob": True,
        "mlp_layer_types": ["sparse" if has else "dense" for has in sparse],
        "attention_value_scale": s.real("attention.value_scale", 0.707),
    }
    del config["n_shared_experts"], config["first_k_dense_replace"]
    return config
