"""config.json of models whose blocks are attention and one MLP."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, cast

from meldkit.checkpoint.gguf.configs.common import (
    decoder,
    granite_scales,
    long_rope,
    partial_rotation,
    sliding,
    yarn,
)
from meldkit.checkpoint.gguf.settings import Settings


def llama(s: Settings) -> dict[str, Any]:
    config = decoder(s) | {"head_dim": llama_head_size(s)}
    return config | {"attention_bias": s.has("attn_q.bias"), "mlp_bias": s.has("ffn_down.bias")}


def llama_head_size(s: Settings) -> int:
    # Before there was a key for it, the size of a head was that of its rotated part.
    return s.integer("attention.key_length", s.integer("rope.dimension_count", s.head_size))


def mistral(s: Settings) -> dict[str, Any]:
    return decoder(s) | {"head_dim": llama_head_size(s), "sliding_window": None}


def qwen2(s: Settings) -> dict[str, Any]:
    return decoder(s) | {"use_sliding_window": False}


def qwen3(s: Settings) -> dict[str, Any]:
    return decoder(s) | {"head_dim": s.head_size, "attention_bias": False, "use_sliding_window": False}


def gemma(s: Settings) -> dict[str, Any]:
    return decoder(s) | {"head_dim": s.head_size}


def gemma2(s: Settings) -> dict[str, Any]:
    return decoder(s) | {
        "head_dim": s.head_size,
        # The 27B model, which is known by its depth, is the only one that scales by something else.
        "query_pre_attn_scalar": _query_scalar(s, 46),
        "sliding_window": s.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": s.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": s.real("final_logit_softcapping", 30.0),
    }


def gemma3(s: Settings) -> dict[str, Any]:
    return decoder(s) | {
        "head_dim": s.head_size,
        "query_pre_attn_scalar": _query_scalar(s, 62),
        "sliding_window": s.integer("attention.sliding_window"),
        "rope_local_base_freq": s.real("rope.freq_base_swa", 10000.0),
        "rope_theta": s.real("rope.freq_base", 1000000.0),
        "final_logit_softcapping": s.some_real("final_logit_softcapping"),
        "attn_logit_softcapping": None,
    }


def _query_scalar(s: Settings, depth_of_27b: int) -> int:
    if s.depth == depth_of_27b:
        return s.integer("embedding_length") // s.heads
    return s.head_size


def phi2(s: Settings) -> dict[str, Any]:
    return decoder(s, eps="layer_norm_eps") | partial_rotation(s)


def phi3(s: Settings) -> dict[str, Any]:
    config = decoder(s) | partial_rotation(s)
    window = s.get("attention.sliding_window")
    config["sliding_window"] = window if type(window) is int and window > 0 else None
    original = s.integer("rope.scaling.original_context_length", config["max_position_embeddings"])
    config["original_max_position_embeddings"] = original
    return config | long_rope(s)


def gpt2(s: Settings) -> dict[str, Any]:
    return {
        "n_embd": s.integer("embedding_length"),
        "n_inner": s.feed_forward,
        "n_layer": s.depth,
        "n_head": s.heads,
        "n_positions": s.integer("context_length"),
        "n_ctx": s.integer("context_length"),
        "layer_norm_epsilon": s.epsilon,
    }


def gptneox(s: Settings) -> dict[str, Any]:
    return decoder(s, eps="layer_norm_eps") | {
        "rotary_pct": s.integer("rope.dimension_count", s.head_size) / s.head_size,
        "rotary_emb_base": s.real("rope.freq_base", 10000.0),
        "use_parallel_residual": bool(s.contents.settings.get("gptneox.use_parallel_residual", True)),
        "attention_bias": s.has("attn_qkv.bias"),
    }


def falcon(s: Settings) -> dict[str, Any]:
    return {
        "hidden_size": s.integer("embedding_length"),
        "ffn_hidden_size": s.feed_forward,
        "num_hidden_layers": s.depth,
        "num_attention_heads": s.heads,
        "num_kv_heads": s.kv_heads,
        "multi_query": s.kv_heads == 1,
        "new_decoder_architecture": s.kv_heads > 1,
        "num_ln_in_parallel_attn": 2 if s.has("attn_norm_2.weight") else 1,
        "parallel_attn": True,
        "bias": s.has("attn_qkv.bias"),
        "alibi": False,
        "max_position_embeddings": s.integer("context_length"),
        "layer_norm_epsilon": s.epsilon,
        "rope_theta": s.real("rope.freq_base", 10000.0),
    }


def bloom(s: Settings) -> dict[str, Any]:
    return {
        "hidden_size": s.integer("embedding_length"),
        "n_layer": s.depth,
        "n_head": s.heads,
        "layer_norm_epsilon": s.epsilon,
        # The output matrix in the file is a copy.
        "tie_word_embeddings": True,
    }


def stablelm(s: Settings) -> dict[str, Any]:
    return (
        decoder(s, eps="layer_norm_eps")
        | partial_rotation(s)
        | {
            "use_qkv_bias": s.has("attn_q.bias"),
            "use_parallel_residual": not s.has("ffn_norm.weight"),
            "qk_layernorm": s.has("attn_q_norm.weight"),
        }
    )


def starcoder2(s: Settings) -> dict[str, Any]:
    return decoder(s, eps="norm_epsilon") | {"use_bias": s.has("attn_q.bias"), "sliding_window": None}


def nemotron(s: Settings) -> dict[str, Any]:
    return decoder(s, eps="norm_eps") | partial_rotation(s) | {"head_dim": s.head_size}


def command_r(s: Settings) -> dict[str, Any]:
    return decoder(s, eps="layer_norm_eps") | {
        "logit_scale": s.real("logit_scale"),
        "use_qk_norm": s.has("attn_q_norm.weight"),
        "tie_word_embeddings": True,
    }


def cohere2(s: Settings) -> dict[str, Any]:
    return decoder(s, eps="layer_norm_eps") | {
        "head_dim": s.head_size,
        "logit_scale": s.real("logit_scale"),
        "sliding_window": s.integer("attention.sliding_window"),
        "tie_word_embeddings": True,
    }


def olmo(s: Settings) -> dict[str, Any]:
    config = decoder(s, eps="layer_norm_eps")
    del config["layer_norm_eps"]  # the configuration class has no such setting
    return config | {"clip_qkv": s.some_real("attention.clamp_kqv")}


def olmo3(s: Settings) -> dict[str, Any]:
    return decoder(s) | sliding(s)


def granite(s: Settings) -> dict[str, Any]:
    return decoder(s) | granite_scales(s) | {"mlp_bias": s.has("ffn_down.bias")}


def arcee(s: Settings) -> dict[str, Any]:
    return decoder(s) | {"head_dim": llama_head_size(s)}


def seed_oss(s: Settings) -> dict[str, Any]:
    return decoder(s) | {
        "head_dim": s.head_size,
        "attention_bias": s.has("attn_q.bias"),
        "attention_out_bias": s.has("attn_output.bias"),
        "mlp_bias": s.has("ffn_down.bias"),
    }


def glm4(s: Settings) -> dict[str, Any]:
    return (
        decoder(s) | partial_rotation(s) | {"head_dim": s.head_size, "attention_bias": s.has("attn_q.bias")}
    )


def ernie4_5(s: Settings) -> dict[str, Any]:
    return decoder(s) | {"head_dim": s.head_size, "use_bias": s.has("attn_q.bias")}


def exaone4(s: Settings) -> dict[str, Any]:
    config = decoder(s) | {"head_dim": s.head_size}
    if s.get("attention.sliding_window") is None:
        return config | {
            "sliding_window": None,
            "sliding_window_pattern": None,
            "layer_types": ["full_attention"] * config["num_hidden_layers"],
        }
    return config | {"sliding_window_pattern": None, **sliding(s)}


def ministral3(s: Settings) -> dict[str, Any]:
    mscale = s.real("rope.scaling.yarn_log_multiplier", 1.0)
    config = decoder(s) | {"head_dim": llama_head_size(s), "sliding_window": None}
    config["rope_scaling"] = yarn(s) | {
        "mscale": 1.0,
        "mscale_all_dim": mscale,
        "llama_4_scaling_beta": s.real("attention.temperature_scale"),
    }
    return config


def gemma_embedding(s: Settings) -> dict[str, Any]:
    return gemma3(s) | {"use_bidirectional_attention": True}


def gemma3n(s: Settings) -> dict[str, Any]:
    numbers = s.each_layer("activation_sparsity_scale")
    scales = [n for n in numbers if isinstance(n, float) and not math.isnan(n)]
    if len(scales) < len(numbers):
        raise s.wrong("activation_sparsity_scale")
    return (
        decoder(s)
        | sliding(s)
        | {
            "head_dim": s.head_size,
            "rope_local_base_freq": s.real("rope.freq_base_swa", 10000.0),
            "rope_theta": s.real("rope.freq_base", 1000000.0),
            "final_logit_softcapping": s.real("final_logit_softcapping", 30.0),
            "hidden_size_per_layer_input": s.integer("embedding_length_per_layer_input"),
            "vocab_size_per_layer_input": s.outer("per_layer_token_embd.weight"),
            "altup_active_idx": s.count("altup.active_idx"),
            "altup_num_inputs": s.integer("altup.num_inputs"),
            "num_kv_shared_layers": s.count("attention.shared_kv_layers"),
            "laurel_rank": s.outer("blk.0.laurel_l.weight"),
            # Stored as the number of standard deviations that cuts off that much.
            "activation_sparsity_pattern": [round(NormalDist().cdf(scale), 6) for scale in scales],
        }
    )


def gemma4(s: Settings) -> dict[str, Any]:
    layers = sliding(s)
    slides = [kind == "sliding_attention" for kind in layers["layer_types"]]
    values = s.layers_with("attn_v")
    counts = s.get("attention.head_count_kv")
    kv_heads = (
        s.per_layer("attention.head_count_kv") if isinstance(counts, tuple) else (s.kv_heads,) * s.depth
    )
    of_layers = list(zip(kv_heads, slides, strict=True))
    rotated = s.contents.numbers("rope_freqs.weight") if "rope_freqs.weight" in s.contents.tensors else None
    per_layer = s.count("embedding_length_per_layer_input")
    shared = s.count("attention.shared_kv_layers")
    widths = s.get("feed_forward_length")
    config = {
        "hidden_size": s.integer("embedding_length"),
        "intermediate_size": s.feed_forward,
        "num_hidden_layers": s.depth,
        "num_attention_heads": s.heads,
        "num_key_value_heads": next((n for n, short in of_layers if short), kv_heads[0]),
        "num_global_key_value_heads": next((n for n, short in of_layers if not short), None),
        "head_dim": s.integer("attention.key_length_swa"),
        "global_head_dim": s.integer("attention.key_length"),
        "max_position_embeddings": s.integer("context_length"),
        "rms_norm_eps": s.epsilon,
        "final_logit_softcapping": s.some_real("final_logit_softcapping"),
        **layers,
        "attention_k_eq_v": any(
            not (has or short) for has, short in list(zip(values, slides, strict=True))[: s.depth - shared]
        ),
        "hidden_size_per_layer_input": per_layer,
        "num_kv_shared_layers": shared,
        "use_double_wide_mlp": isinstance(widths, tuple) and len(set(cast("tuple[int, ...]", widths))) > 1,
        "enable_moe_block": s.has("ffn_gate_inp.weight"),
        "rope_parameters": {
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": s.real("rope.freq_base_swa", 10000.0),
            },
            "full_attention": {
                "rope_type": "proportional",
                # The frequencies of what is not rotated are divided by something very large.
                "partial_rotary_factor": 1.0 if rotated is None else float((rotated < 2).mean()),
                "rope_theta": s.real("rope.freq_base", 1000000.0),
            },
        },
    }
    if per_layer:
        config["vocab_size_per_layer_input"] = s.outer("per_layer_token_embd.weight")
    if config["enable_moe_block"]:
        config |= {
            "num_experts": s.integer("expert_count"),
            "top_k_experts": s.integer("expert_used_count"),
            "moe_intermediate_size": s.expert_width,
        }
    return config


def glm(s: Settings) -> dict[str, Any]:
    bias = s.has("attn_qkv.bias") or s.has("attn_q.bias")
    return decoder(s) | {"head_dim": s.head_size, "partial_rotary_factor": 0.5, "attention_bias": bias}


def hunyuan(s: Settings) -> dict[str, Any]:
    return decoder(s) | {"head_dim": s.head_size, "attention_bias": s.has("attn_q.bias")}


def apertus(s: Settings) -> dict[str, Any]:
    return decoder(s) | {"attention_bias": s.has("attn_q.bias")}


def jais2(s: Settings) -> dict[str, Any]:
    return decoder(s, eps="layer_norm_eps") | {
        "head_dim": s.head_size,
        "attention_bias": s.has("attn_q.bias"),
        "mlp_bias": s.has("ffn_down.bias"),
    }


def starcoder(s: Settings) -> dict[str, Any]:
    return gpt2(s) | {"multi_query": s.kv_heads == 1}


def mpt(s: Settings) -> dict[str, Any]:
    alibi = s.real("attention.max_alibi_bias", 0.0)
    return {
        "d_model": s.integer("embedding_length"),
        "n_heads": s.heads,
        "n_layers": s.depth,
        "max_seq_len": s.integer("context_length"),
        "layer_norm_epsilon": s.epsilon,
        "expansion_ratio": s.feed_forward // s.integer("embedding_length"),
        "attn_config": {
            "alibi": alibi > 0,
            "alibi_bias_max": int(alibi) or 8,
            "clip_qkv": s.some_real("attention.clamp_kqv"),
        },
    }
