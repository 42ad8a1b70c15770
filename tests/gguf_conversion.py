"""What llama.cpp's conversion makes of a model of Hugging Face's layout: settings and tensors.

Source: https://github.com/ggml-org/llama.cpp (conversion from Hugging Face).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from statistics import NormalDist
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from gguf_samples import Sample

Arrays = dict[str, np.ndarray[Any, Any]]


# ---- settings


def llama_cpp_keys(sample: Sample, config: Any, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings that llama.cpp's conversion would write."""
    config = copy.deepcopy(config)
    config.allow_global_per_layer_attribute_access = True

    def first(*names: str) -> Any:
        return next((v for n in names if (v := getattr(config, n, None)) is not None), None)

    heads = first("num_attention_heads", "n_head", "num_heads")
    rope = getattr(config, "rope_parameters", None) or {}
    local = rope.get("sliding_attention", {})
    if "full_attention" in rope:
        rope = rope["full_attention"]
    hidden = first("hidden_size", "n_embd", "d_model")
    head_dim = first("head_dim") or (hidden // heads if heads else None)
    rotated = head_dim * (rope.get("partial_rotary_factor") or 1.0) if head_dim else None
    types = first("layer_types")
    sparse = first("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
    keys: dict[str, Any] = {
        "context_length": first("max_position_embeddings", "n_positions", "max_seq_len") or 2048,
        "embedding_length": hidden,
        "block_count": first("num_hidden_layers", "n_layer", "num_layers"),
        "feed_forward_length": first("ffn_hidden_size", "intermediate_size", "n_inner", "d_ff") or 4 * hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": first("num_kv_heads", "num_key_value_heads") or heads,
        "attention.layer_norm_rms_epsilon": first("rms_norm_eps"),
        "rope.freq_base": rope.get("rope_theta"),
        "rope.freq_base_swa": local.get("rope_theta"),
        "rope.dimension_count": int(rotated) if rotated else None,
        "attention.key_length": head_dim,
        "attention.sliding_window": first("sliding_window"),
        "expert_count": sparse,
        "expert_used_count": first("num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk"),
        "expert_feed_forward_length": first("moe_intermediate_size"),
        "expert_shared_feed_forward_length": first("shared_expert_intermediate_size"),
        "expert_weights_scale": first("routed_scaling_factor", "route_scale"),
        "expert_weights_norm": first("norm_topk_prob"),
        "expert_group_count": first("n_group"),
        "expert_group_used_count": first("topk_group"),
        "leading_dense_block_count": first(
            "first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"
        ),
        "interleave_moe_layer_step": first("interleave_moe_layer_step", "moe_layer_interval"),
        "attn_logit_softcapping": first("attn_logit_softcapping"),
        "final_logit_softcapping": first("final_logit_softcapping"),
        "logit_scale": first("logits_scaling", "logit_scale"),
        "attention.scale": first("attention_multiplier"),
        "embedding_scale": first("embedding_multiplier"),
        "residual_scale": first("residual_multiplier"),
        "attention.clamp_kqv": first("clip_qkv"),
        "use_parallel_residual": first("use_parallel_residual"),
        "tokenizer.ggml.bos_token_id": first("bos_token_id"),
        "tokenizer.ggml.eos_token_id": first("eos_token_id"),
        "tokenizer.ggml.padding_token_id": first("pad_token_id"),
    }
    if keys["attention.layer_norm_rms_epsilon"] is None:
        keys["attention.layer_norm_epsilon"] = first(
            "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"
        )
    if rope.get("rope_type") in ("yarn", "linear"):
        keys["rope.scaling.type"] = rope["rope_type"]
        keys["rope.scaling.factor"] = rope["factor"]
    if "original_max_position_embeddings" in rope and rope["rope_type"] in ("yarn", "longrope"):
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if types and sample.architecture in ("olmo2", "exaone4", "exaone-moe", "gemma3n", "gemma4", "mimo2"):
        keys["attention.sliding_window_pattern"] = [t == "sliding_attention" for t in types]
    keys |= _of_state_spaces(sample, config) | _of_compressed(sample, config, rope)
    keys |= _particular(sample, config, rope) | _of_activation(weights)
    keys |= {
        "vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", *(f"<{n}>" for n in range(3, config.vocab_size))],
        "tokenizer.ggml.merges": ["a b"],
    }
    if sample.model_type == "glm4_moe_lite":
        keys["tokenizer.ggml.pre"] = "glm4"
    if sample.model_type == "xlm-roberta":
        keys["tokenizer.ggml.model"] = "t5"
        keys["tokenizer.ggml.unknown_token_id"] = 0
        keys["tokenizer.ggml.scores"] = [-float(i) for i in range(config.vocab_size)]
    return {key: value for key, value in keys.items() if value is not None}


def _of_state_spaces(sample: Sample, config: Any) -> dict[str, Any]:
    kind, types = sample.architecture, getattr(config, "layer_types", None)
    kv_heads = getattr(config, "num_key_value_heads", None)
    counts = [kv_heads if t == "full_attention" else 0 for t in types or ()]
    if kind == "mamba":
        return {
            "feed_forward_length": 0,
            "attention.head_count": 0,
            "attention.head_count_kv": 0,
            "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
            "attention.key_length": None,
            "ssm.conv_kernel": config.conv_kernel,
            "ssm.inner_size": config.intermediate_size,
            "ssm.state_size": config.state_size,
            "ssm.time_step_rank": config.time_step_rank,
            "ssm.dt_b_c_rms": sample.model_type == "falcon_mamba",
        }
    if kind == "mamba2":
        return {
            "feed_forward_length": 0,
            "attention.head_count": 0,
            "attention.head_count_kv": None,
            "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
            "attention.key_length": None,
            "ssm.conv_kernel": config.conv_kernel,
            "ssm.inner_size": config.expand * config.hidden_size,
            "ssm.state_size": config.state_size,
            "ssm.time_step_rank": config.num_heads,
            "ssm.group_count": config.n_groups,
        }
    if kind in ("lfm2", "lfm2moe"):
        return {
            "attention.head_count_kv": counts,
            "shortconv.l_cache": config.conv_L_cache,
            "attention.layer_norm_rms_epsilon": config.norm_eps,
            "expert_weights_scale": None,
            "expert_weights_norm": None,
        }
    if kind == "jamba":
        return {
            "attention.head_count_kv": counts,
            "ssm.conv_kernel": config.mamba_d_conv,
            "ssm.inner_size": config.mamba_expand * config.hidden_size,
            "ssm.state_size": config.mamba_d_state,
            "ssm.time_step_rank": config.mamba_dt_rank,
        }
    if kind == "granitehybrid":
        return {
            "attention.head_count_kv": counts,
            "ssm.conv_kernel": config.mamba_d_conv,
            "ssm.inner_size": config.mamba_expand * config.hidden_size,
            "ssm.state_size": config.mamba_d_state,
            "ssm.time_step_rank": config.mamba_n_heads,
            "ssm.group_count": config.mamba_n_groups,
            "rope.scaling.finetuned": False,
            "attention.key_length": None,
        }
    if kind.startswith("nemotron_h"):
        return {
            "attention.head_count_kv": counts,
            "ssm.conv_kernel": config.conv_kernel,
            "ssm.inner_size": config.mamba_num_heads * config.mamba_head_dim,
            "ssm.state_size": config.ssm_state_size,
            "ssm.time_step_rank": config.mamba_num_heads,
            "ssm.group_count": config.n_groups,
        }
    if kind in ("qwen3next", "qwen35", "qwen35moe"):
        return {
            "ssm.conv_kernel": config.linear_conv_kernel_dim,
            "ssm.inner_size": config.linear_value_head_dim * config.linear_num_value_heads,
            "ssm.state_size": config.linear_key_head_dim,
            "ssm.time_step_rank": config.linear_num_value_heads,
            "ssm.group_count": config.linear_num_key_heads,
            "full_attention_interval": 4,
        }
    if kind == "kimi-linear":
        return {
            "attention.head_count_kv": [int(n > 0) for n in counts],
            "ssm.conv_kernel": config.linear_conv_kernel_dim,
            "kda.head_dim": config.linear_head_dim,
        }
    return {}


def _of_activation(weights: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """The learned numbers of an activation function, layer by layer."""
    numbers: dict[str, list[float]] = {}
    for name, weight in sorted(weights.items()):
        if ".act_fn." in name:
            numbers.setdefault(f"xielu.{name.rpartition('.')[2]}", []).append(weight.item())
    return numbers


def _of_compressed(sample: Sample, config: Any, rope: Mapping[str, Any]) -> dict[str, Any]:
    if not hasattr(config, "kv_lora_rank"):
        return {}
    size = config.qk_nope_head_dim + config.qk_rope_head_dim
    if sample.architecture == "minicpm3":
        return {
            "attention.q_lora_rank": config.q_lora_rank,
            "attention.kv_lora_rank": config.kv_lora_rank,
            "attention.key_length": size,
            "rope.dimension_count": config.qk_rope_head_dim,
        }
    log = rope.get("mscale_all_dim")
    kv_heads = 1 if sample.architecture != "kimi-linear" else None
    return {
        **({"attention.head_count_kv": kv_heads} if kv_heads else {}),
        "attention.q_lora_rank": config.q_lora_rank,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": size,
        "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": config.qk_rope_head_dim,
        "rope.scaling.yarn_log_multiplier": None if log is None else 0.1 * log,
        "attention.temperature_scale": rope.get("llama_4_scaling_beta"),
        "expert_gating_func": 2 if "v3" in sample.model_type else None,
    }


def _particular(sample: Sample, config: Any, rope: Mapping[str, Any]) -> dict[str, Any]:
    """What is written of one architecture, or in another way than of others."""
    match sample.architecture, sample.model_type:
        case "olmo", _:
            return {"attention.layer_norm_epsilon": 1e-5}
        case "falcon", _:
            return {"attention.head_count_kv": config.num_kv_heads if config.new_decoder_architecture else 1}
        case "starcoder", _:
            return {"attention.head_count_kv": 1}
        case "llama", "mistral":
            return {"general.name": "Mistral 7B v0.3"}
        case "mistral3", "ministral3":
            return {
                "rope.scaling.yarn_log_multiplier": rope["mscale_all_dim"],
                "attention.temperature_scale": rope["llama_4_scaling_beta"],
            }
        case "gemma-embedding", _:
            # As config.json says it, not as it is after it was read.
            return {"attention.sliding_window": 8}
        case "gemma3n", _:
            deviations = [
                NormalDist().inv_cdf(x) if x else -float("inf") for x in config.activation_sparsity_pattern
            ]
            return {
                "feed_forward_length": config.intermediate_size,
                "altup.active_idx": config.altup_active_idx,
                "altup.num_inputs": config.altup_num_inputs,
                "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
                "attention.shared_kv_layers": config.num_kv_shared_layers,
                "activation_sparsity_scale": deviations,
            }
        case "gemma4", _:
            return _of_gemma4(config)
        case "mpt", _:
            return {
                "attention.layer_norm_epsilon": 1e-5,
                "attention.head_count_kv": None,
                "attention.max_alibi_bias": float(config.attn_config.alibi_bias_max),
                "attention.clamp_kqv": config.attn_config.clip_qkv,
            }
        case "dbrx", _:
            return {
                "attention.layer_norm_epsilon": 1e-5,
                "feed_forward_length": config.ffn_config.ffn_hidden_size,
                "attention.head_count_kv": config.attn_config.kv_n_heads,
                "rope.freq_base": config.attn_config.rope_theta,
                "attention.clamp_kqv": config.attn_config.clip_qkv,
                "expert_count": config.ffn_config.moe_num_experts,
                "expert_used_count": config.ffn_config.moe_top_k,
            }
        case "gpt-oss", _:
            return {"expert_feed_forward_length": config.intermediate_size}
        case "llama4", _:
            return {
                "feed_forward_length": config.intermediate_size_mlp,
                "expert_feed_forward_length": config.intermediate_size,
            }
        case "minimax-m2", _:
            return {"rope.dimension_count": config.rotary_dim}
        case "mimo2", _:
            sliding = [t == "sliding_attention" for t in config.layer_types]
            return {
                "attention.head_count_kv": [config.num_key_value_heads * (1 + slides) for slides in sliding],
                "attention.value_length": config.v_head_dim,
                "attention.value_scale": config.attention_value_scale,
            }
        case "glm-dsa", _:
            return {
                "attention.indexer.head_count": config.index_n_heads,
                "attention.indexer.key_length": config.index_head_dim,
                "attention.indexer.top_k": config.index_topk,
            }
        case "deepseek2", "glm4_moe_lite":
            return {"leading_dense_block_count": config.mlp_layer_types.count("dense")}
        case "modern-bert", _:
            return {
                "attention.layer_norm_rms_epsilon": config.norm_eps,
                "attention.sliding_window": config.local_attention,
                "attention.sliding_window_pattern": 3,
            }
        case (("t5" | "t5encoder"), _):
            return {
                "attention.head_count_kv": None,
                "attention.key_length": config.d_kv,
                "attention.relative_buckets_count": config.relative_attention_num_buckets,
                "decoder_block_count": config.num_decoder_layers,
                "decoder_start_token_id": config.decoder_start_token_id,
                "context_length": 512,
            }
        case _:
            return {}


def _of_gemma4(config: Any) -> dict[str, Any]:
    sliding = [t == "sliding_attention" for t in config.layer_types]
    layers = config.per_layer_config
    width, shared = config.intermediate_size, config.num_kv_shared_layers
    widths = [width * (1 + (i >= len(sliding) - shared)) for i in range(len(sliding))]
    full = layers[sliding.index(False)]
    return {
        "attention.head_count_kv": [layers[i].num_key_value_heads for i in range(len(sliding))],
        "attention.key_length": full.head_dim,
        "attention.key_length_swa": layers[sliding.index(True)].head_dim,
        "rope.dimension_count": full.head_dim,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "attention.shared_kv_layers": shared,
        "feed_forward_length": widths if config.use_double_wide_mlp else width,
    }


# ---- tensors

#: Names that llama.cpp changes before it looks them up.
_RENAMED = {
    r"\.dt_bias$": ".dt_proj.bias",
    r"e_score_correction_bias$": "e_score_correction.bias",
    r"(expert_bias)$": r"\1.bias",
    r"(sinks|attention_sink_bias|layer_scalar|correct_output_scale)$": r"\1.weight",
    r"(\.experts\.(?:down_proj|gate_up_proj))$": r"\1.weight",
    r"(\.mlp\.[wv]\d)$": r"\1.weight",
    r"^model\.(layers\.\d+\.feed_forward\.experts\.\d+\.w\d)": r"\1",
    r"^backbone\.(layers\.\d+)\.mixer\.experts": r"model.\1.mlp.experts",
    r"(\.experts\.down_proj)_bias$": r"\1.bias",
}
#: Tensors of which there are several, which llama.cpp stores as one.
_SEVERAL = re.compile(r"(experts|altup_projections|altup_unembed_projections|layernorm\.norms)\.\d+")
_RAISED = ("gemma", "gemma2", "gemma3", "gemma-embedding", "nemotron", "qwen3next", "qwen35", "qwen35moe")
_PAIRS = (
    "llama",
    "mistral3",
    "olmo",
    "granite",
    "granitemoe",
    "granitehybrid",
    "smollm3",
    "arcee",
    "nemotron_h",
    "nemotron_h_moe",
)
#: Names that the map has for another module.
_DIRECT = {
    r"model\.layers\.(\d+)\.router\.scale": r"blk.\1.ffn_gate_inp.scale",
    r"model\.layers\.(\d+)\.router\.per_expert_scale": r"blk.\1.ffn_down_exps.scale",
}


def llama_cpp_tensors(sample: Sample, config: Any, weights: Mapping[str, Tensor]) -> Arrays:
    """The tensors that llama.cpp's conversion would write, names by the gguf package."""
    number = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == sample.architecture)
    names = gguf.get_tensor_name_map(number, 8)
    several: dict[str, list[Tensor]] = {}
    result: Arrays = {}

    def number_wise(item: tuple[str, Tensor]) -> list[int | str]:
        return [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", item[0])]

    for name, weight in sorted(weights.items(), key=number_wise):
        for new_name, new_weight in _pieces(sample, config, name, weight):
            direct = next(
                (re.sub(k, v, new_name) for k, v in _DIRECT.items() if re.fullmatch(k, new_name)), None
            )
            for old, new in _RENAMED.items():
                new_name = re.sub(old, new, new_name)
            stem, ending = re.fullmatch(r"(.+?)(\.weight|\.bias)?", new_name).groups("")  # type: ignore[union-attr]
            whole = _SEVERAL.sub(lambda match: match[1].removesuffix(".norms"), stem)
            if sample.architecture == "bloom":
                stem = whole = whole.removeprefix("transformer.")
            found = direct or names.get_name(whole)
            assert found is not None, whole
            found += "" if direct else ending
            if whole != stem:
                several.setdefault(found, []).append(new_weight)
            else:
                assert found not in result, found
                result[found] = _stored(sample, config, found, new_weight).float().numpy()
    result |= {name: torch.stack(each).float().numpy() for name, each in several.items()}
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        result["rope_freqs.weight"] = _llama3_divisors(config)
    if rope.get("rope_type") == "longrope":
        for which in ("long", "short"):
            result[f"rope_factors_{which}.weight"] = np.array(rope[f"{which}_factor"], np.float32)
    if sample.architecture == "gemma4":
        size = next(
            c.head_dim for c in config.per_layer_config if c.head_dim != config.per_layer_config[0].head_dim
        )
        rotated = int(size * rope["full_attention"]["partial_rotary_factor"] / 2)
        result["rope_freqs.weight"] = np.array([1.0] * rotated + [1e30] * (size // 2 - rotated), np.float32)
    if sample.architecture == "bloom":
        result["output.weight"] = result["token_embd.weight"]
    return result


def _llama3_divisors(config: Any) -> np.ndarray[Any, Any]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2).float() / size)
    if rope["low_freq_factor"] == rope["high_freq_factor"]:
        long = 2 * np.pi / plain > rope["original_max_position_embeddings"] / rope["low_freq_factor"]
        return torch.where(long, rope["factor"], 1.0).float().numpy()
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return (plain / scaled).numpy()


def _pieces(sample: Sample, config: Any, name: str, w: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What llama.cpp takes apart, by names of Hugging Face's kind."""
    kind = sample.architecture
    if ".act_fn." in name or name.startswith("pooler."):
        return
    if name.endswith("kv_b_proj.weight") and kind != "minicpm3":
        heads, cut = config.num_attention_heads, config.qk_nope_head_dim
        both = w.view(heads, -1, w.shape[-1])
        yield name.replace("kv_b", "k_b"), both[:, :cut].transpose(1, 2)
        yield name.replace("kv_b", "v_b"), both[:, cut:]
    elif kind == "gpt-oss" and "gate_up_proj" in name:
        if w.dim() == 3:
            w = w.transpose(1, 2)
        bias = name.endswith("_bias")
        for i, which in enumerate(("gate_proj", "up_proj")):
            part = w[:, i::2]
            ending = ".bias" if bias else ".weight"
            yield name.removesuffix("_bias").replace("gate_up_proj", which) + ending, part
    elif kind == "gpt-oss" and name.endswith("experts.down_proj"):
        yield name, w.transpose(1, 2)
    elif kind == "llama4" and name.endswith("experts.gate_up_proj"):
        for which, part in zip(("gate_proj", "up_proj"), w.chunk(2, dim=-1), strict=True):
            yield name.replace("gate_up_proj", which) + ".weight", part.transpose(1, 2)
    elif kind == "llama4" and name.endswith("experts.down_proj"):
        yield name, w.transpose(1, 2)
    elif kind.startswith("granite") and "input_linear" in name:
        experts = getattr(config, "num_local_experts", 0)
        block = re.search(r"\d+", name)[0]  # type: ignore[index]
        ending = "exps" if "block_sparse" in name else "shexp"
        for which, part in zip(("gate", "up"), w.chunk(2, dim=-2), strict=True):
            module = "mlp.experts" if ending == "exps" else "mlp.shared_expert" if experts else "mlp"
            yield f"model.layers.{block}.{module}.{which}_proj.weight", part
    elif kind.startswith("granite") and name.endswith("output_linear.weight"):
        experts = getattr(config, "num_local_experts", 0)
        block = re.search(r"\d+", name)[0]  # type: ignore[index]
        module = "mlp.experts" if "block_sparse" in name else "mlp.shared_expert" if experts else "mlp"
        yield f"model.layers.{block}.{module}.down_proj.weight", w
    elif kind == "qwen3next" and "in_proj_qkvz" in name:
        keys, size = config.linear_num_key_heads, config.linear_key_head_dim
        parts = w.view(keys, -1, w.shape[-1]).split(
            [size, size, *[(w.shape[0] // keys - 2 * size) // 2] * 2], 1
        )
        q, k, v, z = (part.reshape(-1, w.shape[-1]) for part in parts)
        yield name.replace("qkvz", "qkv"), torch.cat([q, k, v])
        yield name.replace("qkvz", "z"), z
    elif kind == "dbrx" and "experts.mlp" in name:
        stack = w.view(config.ffn_config.moe_num_experts, -1, w.shape[-1])
        yield name, stack.transpose(1, 2) if name.endswith("w2") else stack
    elif sample.model_type == "xlm-roberta" and "position_embeddings" in name:
        yield name, w[config.pad_token_id + 1 :]
    else:
        yield name, w


def _stored(sample: Sample, config: Any, name: str, w: Tensor) -> Tensor:
    """What llama.cpp's conversion makes of a tensor's values."""
    kind = sample.architecture
    leaf = re.sub(r"^blk\.\d+\.", "", name)
    if kind in _PAIRS and leaf.startswith(("attn_q.", "attn_k.")):
        heads = config.num_attention_heads if "attn_q" in leaf else config.num_key_value_heads
        return w.reshape(heads, 2, -1, *w.shape[1:]).transpose(1, 2).reshape(w.shape)
    if kind in _RAISED and leaf.endswith("norm.weight") and leaf != "ssm_norm.weight":
        return w + 1
    if kind == "gpt2" and re.match(r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight", leaf):
        return w.T.contiguous()
    if kind in ("bloom", "gptneox") and leaf.startswith("attn_qkv"):
        heads = config.num_attention_heads
        return w.reshape(heads, 3, -1, *w.shape[1:]).transpose(0, 1).reshape(w.shape)
    if kind == "falcon" and leaf.startswith("attn_qkv"):
        groups = config.num_kv_heads if config.new_decoder_architecture else 1
        split = w.view(groups, config.num_attention_heads // groups + 2, -1, w.shape[-1])
        parts = (split[:, :-2], split[:, -2:-1], split[:, -1:])
        return torch.cat([part.reshape(-1, w.shape[-1]) for part in parts])
    if leaf.startswith("ssm_a") and leaf != "ssm_alpha.weight":
        w = -torch.exp(w)
    if kind in ("mamba2", "granitehybrid", "nemotron_h", "nemotron_h_moe"):
        groups = getattr(config, "mamba_n_groups", None) or config.n_groups
        shapes = {"ssm_a": (-1, 1), "ssm_d": (-1, 1), "ssm_norm.weight": (groups, -1)}
        w = w.reshape(shapes.get(leaf, w.shape))
    if leaf in ("ssm_conv1d.weight", "shortconv.conv.weight"):
        w = w.squeeze(1)
    if leaf.startswith("ssm_conv1d_"):
        return w.reshape(1, w.shape[0], 1, -1)
    if leaf == "ffn_gate_inp_shexp.weight" and kind != "qwen3next":
        return w.squeeze(0)
    return _by_turns(config, leaf, w) if kind in ("qwen35", "qwen35moe") else w


def _by_turns(config: Any, leaf: str, w: Tensor) -> Tensor:
    """The first value of all key heads, then the second one and so on."""
    keys, size = config.linear_num_key_heads, config.linear_value_head_dim
    each = config.linear_num_value_heads // keys
    before = 2 * keys * config.linear_key_head_dim
    if leaf in ("attn_qkv.weight", "ssm_conv1d.weight"):
        values = w[before:].view(keys, each, size, -1).transpose(0, 1)
        return torch.cat([w[:before], values.reshape(-1, w.shape[-1])])
    if leaf == "attn_gate.weight":
        return w.view(keys, each, size, -1).transpose(0, 1).reshape(w.shape)
    if leaf in ("ssm_beta.weight", "ssm_alpha.weight", "ssm_a", "ssm_dt.bias"):
        return w.view(keys, each, -1).transpose(0, 1).reshape(w.shape)
    if leaf == "ssm_out.weight":
        return w.view(-1, keys, each, size).transpose(1, 2).reshape(w.shape)
    return w
