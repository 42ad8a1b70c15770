"""What config.json says that is particular to an architecture, from the settings of a GGUF file.

llama.cpp keeps what its own program needs. What it leaves out is either the same for all models of an
architecture, and then the default of transformers, or follows from what is there: see `_frequency_scaling`.
Sources: https://github.com/ggml-org/llama.cpp (conversion from Hugging Face, src/models), and the
configuration classes of transformers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from meldkit.checkpoint.gguf.settings import Settings
from meldkit.checkpoint.json_file import shown
from meldkit.errors import NotSupportedError


def decoder(s: Settings, *, eps: str = "rms_norm_eps") -> dict[str, Any]:
    """What most architectures have; `eps` is what the configuration calls the epsilon of its norms."""
    layer_norm = s.get("attention.layer_norm_rms_epsilon") is None
    config = {
        "hidden_size": s.integer("embedding_length"),
        "intermediate_size": s.feed_forward,
        "num_hidden_layers": s.integer("block_count"),
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "max_position_embeddings": s.integer("context_length"),
        eps: s.real("attention.layer_norm_epsilon" if layer_norm else "attention.layer_norm_rms_epsilon"),
        "rope_theta": s.real("rope.freq_base", 10000.0),
    }
    scaling = _scaling(s)
    return config | ({"rope_scaling": scaling} if scaling else {})


def _scaling(s: Settings) -> dict[str, Any] | None:
    """How positions are stretched, as transformers' rope_scaling."""
    kind = s.get("rope.scaling.type")
    # Old files have another key, and no type.
    old = s.real("rope.scale_linear", 1.0)
    if kind == "linear" or (kind is None and old not in (0.0, 1.0)):
        return {"rope_type": "linear", "factor": s.real("rope.scaling.factor", old)}
    if kind == "yarn":
        betas = {key: s.get(f"rope.scaling.yarn_{key}") for key in ("beta_fast", "beta_slow")}
        return {
            "rope_type": "yarn",
            "factor": s.real("rope.scaling.factor"),
            "original_max_position_embeddings": s.integer("rope.scaling.original_context_length"),
            **{key: value for key, value in betas.items() if value is not None},
        }
    if kind not in (None, "none", "longrope"):
        raise NotSupportedError(
            f"not supported: {s.contents.path} stretches positions by {shown(kind)} "
            f"({s.architecture}.rope.scaling.type)",
            hint="merge the original model",
        )
    return _frequency_scaling(s) if "rope_freqs.weight" in s.contents.tensors else None


def _frequency_scaling(s: Settings) -> dict[str, Any] | None:
    """Llama 3's scaling, which is stored as the divisors of the frequencies that follow from it.

    The largest divisor is the factor. The rest is the same in all of Meta's models but for the original
    context length, so those that give the same divisors are looked for.
    """
    divisors = s.contents.numbers("rope_freqs.weight")
    if np.all(divisors == 1):
        return None
    factor = float(str(divisors.max()))
    low, high = 1.0, 4.0
    size = 2 * len(divisors)
    wavelengths = 2 * math.pi * s.real("rope.freq_base", 10000.0) ** (np.arange(0, size, 2) / size)
    for context in (2**n for n in (13, 12, 11, 14, 15, 16, 17)):
        smooth = np.clip((context / wavelengths - low) / (high - low), 0, 1)
        # Multiplied, because the factor may be anything, also 0.
        if np.allclose(divisors * ((1 - smooth) + smooth * factor), factor, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    raise NotSupportedError(
        f"not supported: {s.contents.path} scales the frequencies of rotary positions "
        f"(rope_freqs.weight, up to {factor:g}) in a way that config.json has no words for",
        hint="merge the original model",
    )


def llama(s: Settings) -> dict[str, Any]:
    config = decoder(s) | {"head_dim": _llama_head_size(s)}
    if s.integer("expert_count", 1) > 1:
        return config | {
            "num_local_experts": s.integer("expert_count"),
            "num_experts_per_tok": s.integer("expert_used_count"),
            "sliding_window": None,
        }
    return config | {"attention_bias": s.has("attn_q.bias"), "mlp_bias": s.has("ffn_down.bias")}


def _llama_head_size(s: Settings) -> int:
    # Before there was a key for it, the size of a head was that of its rotated part.
    return s.integer("attention.key_length", s.integer("rope.dimension_count", s.head_size))


def mistral(s: Settings) -> dict[str, Any]:
    return decoder(s) | {"head_dim": _llama_head_size(s), "sliding_window": None}


def qwen2(s: Settings) -> dict[str, Any]:
    return decoder(s) | {"use_sliding_window": False}


def qwen2moe(s: Settings) -> dict[str, Any]:
    config = decoder(s) | {
        "num_experts": s.integer("expert_count"),
        "num_experts_per_tok": s.integer("expert_used_count"),
        "norm_topk_prob": False,
    }
    sizes = {
        "moe_intermediate_size": "expert_feed_forward_length",
        "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    }
    # Old files do not have them; the tensors do.
    leaves = {"moe_intermediate_size": "ffn_gate_exps", "shared_expert_intermediate_size": "ffn_gate_shexp"}
    for name, key in sizes.items():
        tensor = s.contents.tensors.get(f"blk.0.{leaves[name]}.weight")
        config[name] = tensor.shape[-2] if tensor and len(tensor.shape) > 1 else s.integer(key)
    return config


def qwen3(s: Settings) -> dict[str, Any]:
    return decoder(s) | {"head_dim": s.head_size, "attention_bias": False, "use_sliding_window": False}


def qwen3moe(s: Settings) -> dict[str, Any]:
    return decoder(s) | {
        "head_dim": s.head_size,
        "attention_bias": False,
        "num_experts": s.integer("expert_count"),
        "num_experts_per_tok": s.integer("expert_used_count"),
        "moe_intermediate_size": s.integer("expert_feed_forward_length"),
        # llama.cpp's program for it has no other way.
        "norm_topk_prob": True,
    }


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
        "final_logit_softcapping": s.get("final_logit_softcapping"),
        "attn_logit_softcapping": None,
    }


def _query_scalar(s: Settings, depth_of_27b: int) -> int:
    if s.integer("block_count") == depth_of_27b:
        return s.integer("embedding_length") // s.heads
    return s.head_size


def phi2(s: Settings) -> dict[str, Any]:
    return decoder(s, eps="layer_norm_eps") | _partial_rotation(s)


def _partial_rotation(s: Settings) -> dict[str, Any]:
    rotated = s.get("rope.dimension_count")
    return (
        {} if rotated is None else {"partial_rotary_factor": s.integer("rope.dimension_count") / s.head_size}
    )


def phi3(s: Settings) -> dict[str, Any]:
    config = decoder(s) | _partial_rotation(s)
    window = s.get("attention.sliding_window")
    config["sliding_window"] = window if type(window) is int and window > 0 else None
    original = s.integer("rope.scaling.original_context_length", config["max_position_embeddings"])
    config["original_max_position_embeddings"] = original
    names = {f"{which}_factor": f"rope_factors_{which}.weight" for which in ("long", "short")}
    if all(name in s.contents.tensors for name in names.values()):
        factors = {
            key: [float(str(n)) for n in s.contents.numbers(name)] for key, name in sorted(names.items())
        }
        config["rope_scaling"] = {"type": "longrope", **factors}
    return config


def gpt2(s: Settings) -> dict[str, Any]:
    return {
        "n_embd": s.integer("embedding_length"),
        "n_inner": s.feed_forward,
        "n_layer": s.integer("block_count"),
        "n_head": s.heads,
        "n_positions": s.integer("context_length"),
        "n_ctx": s.integer("context_length"),
        "layer_norm_epsilon": s.real("attention.layer_norm_epsilon"),
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
        "num_hidden_layers": s.integer("block_count"),
        "num_attention_heads": s.heads,
        "num_kv_heads": s.kv_heads,
        "multi_query": s.kv_heads == 1,
        "new_decoder_architecture": s.kv_heads > 1,
        "num_ln_in_parallel_attn": 2 if s.has("attn_norm_2.weight") else 1,
        "parallel_attn": True,
        "bias": s.has("attn_qkv.bias"),
        "alibi": False,
        "max_position_embeddings": s.integer("context_length"),
        "layer_norm_epsilon": s.real("attention.layer_norm_epsilon"),
        "rope_theta": s.real("rope.freq_base", 10000.0),
    }


def bloom(s: Settings) -> dict[str, Any]:
    return {
        "hidden_size": s.integer("embedding_length"),
        "n_layer": s.integer("block_count"),
        "n_head": s.heads,
        "layer_norm_epsilon": s.real("attention.layer_norm_epsilon"),
        # The output matrix in the file is a copy.
        "tie_word_embeddings": True,
    }


def stablelm(s: Settings) -> dict[str, Any]:
    return (
        decoder(s, eps="layer_norm_eps")
        | _partial_rotation(s)
        | {
            "use_qkv_bias": s.has("attn_q.bias"),
            "use_parallel_residual": not s.has("ffn_norm.weight"),
        }
    )


def starcoder2(s: Settings) -> dict[str, Any]:
    return decoder(s, eps="norm_epsilon") | {"use_bias": s.has("attn_q.bias"), "sliding_window": None}


def mamba(s: Settings) -> dict[str, Any]:
    return {
        "hidden_size": s.integer("embedding_length"),
        "num_hidden_layers": s.integer("block_count"),
        "intermediate_size": s.integer("ssm.inner_size"),
        "expand": s.integer("ssm.inner_size") // s.integer("embedding_length"),
        "state_size": s.integer("ssm.state_size"),
        "conv_kernel": s.integer("ssm.conv_kernel"),
        "time_step_rank": s.integer("ssm.time_step_rank"),
        "layer_norm_epsilon": s.real("attention.layer_norm_rms_epsilon"),
        "use_conv_bias": s.has("ssm_conv1d.bias"),
        "use_bias": s.has("ssm_in.bias"),
    }


def nemotron(s: Settings) -> dict[str, Any]:
    return decoder(s, eps="norm_eps") | _partial_rotation(s) | {"head_dim": s.head_size}


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
    clamp = s.get("attention.clamp_kqv")
    return config | {"clip_qkv": None if clamp is None else s.real("attention.clamp_kqv")}


def olmo3(s: Settings) -> dict[str, Any]:
    return decoder(s) | _sliding(s)


def _sliding(s: Settings) -> dict[str, Any]:
    """Layers that attend to the last tokens only."""
    pattern = s.per_layer("attention.sliding_window_pattern")
    return {
        "sliding_window": s.integer("attention.sliding_window"),
        "layer_types": ["sliding_attention" if slides else "full_attention" for slides in pattern],
    }


def olmoe(s: Settings) -> dict[str, Any]:
    return decoder(s) | {
        "num_experts": s.integer("expert_count"),
        "num_experts_per_tok": s.integer("expert_used_count"),
        "norm_topk_prob": False,
    }


def granite(s: Settings) -> dict[str, Any]:
    return decoder(s) | {
        "attention_multiplier": s.real("attention.scale"),
        "embedding_multiplier": s.real("embedding_scale"),
        "residual_multiplier": s.real("residual_scale"),
        "logits_scaling": s.real("logit_scale"),
        "attention_bias": s.has("attn_q.bias"),
        "mlp_bias": s.has("ffn_down.bias"),
    }


def arcee(s: Settings) -> dict[str, Any]:
    return decoder(s) | {"head_dim": _llama_head_size(s)}


def lfm2(s: Settings) -> dict[str, Any]:
    counts = s.per_layer("attention.head_count_kv")
    return {
        "hidden_size": s.integer("embedding_length"),
        "intermediate_size": s.feed_forward,
        "block_auto_adjust_ff_dim": False,
        "num_hidden_layers": s.integer("block_count"),
        "num_attention_heads": s.heads,
        "num_key_value_heads": max(counts),
        "layer_types": ["full_attention" if n else "conv" for n in counts],
        "max_position_embeddings": s.integer("context_length"),
        "norm_eps": s.real("attention.layer_norm_rms_epsilon"),
        "conv_L_cache": s.integer("shortconv.l_cache"),
        "conv_bias": s.has("shortconv.in_proj.bias"),
        "rope_theta": s.real("rope.freq_base", 1000000.0),
    }


def seed_oss(s: Settings) -> dict[str, Any]:
    return decoder(s) | {
        "head_dim": s.head_size,
        "attention_bias": s.has("attn_q.bias"),
        "attention_out_bias": s.has("attn_output.bias"),
        "mlp_bias": s.has("ffn_down.bias"),
    }


def glm4(s: Settings) -> dict[str, Any]:
    return (
        decoder(s) | _partial_rotation(s) | {"head_dim": s.head_size, "attention_bias": s.has("attn_q.bias")}
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
    return config | {"sliding_window_pattern": None, **_sliding(s)}
