"""config.json of state space models, and of models that have layers of them between those of attention."""

from __future__ import annotations

from typing import Any

from meldkit.checkpoint.gguf.configs.common import decoder, granite_scales
from meldkit.checkpoint.gguf.configs.mixtures import kimi_experts
from meldkit.checkpoint.gguf.settings import Settings
from meldkit.errors import FormatError


def mamba(s: Settings) -> dict[str, Any]:
    return {
        "hidden_size": s.integer("embedding_length"),
        "num_hidden_layers": s.depth,
        "intermediate_size": s.integer("ssm.inner_size"),
        "expand": s.integer("ssm.inner_size") // s.integer("embedding_length"),
        "state_size": s.integer("ssm.state_size"),
        "conv_kernel": s.integer("ssm.conv_kernel"),
        "time_step_rank": s.integer("ssm.time_step_rank"),
        "layer_norm_epsilon": s.epsilon,
        "use_conv_bias": s.has("ssm_conv1d.bias"),
        "use_bias": s.has("ssm_in.bias"),
    }


def mamba2(s: Settings) -> dict[str, Any]:
    config = mamba(s)
    num_heads = config.pop("time_step_rank")
    return config | {
        "num_heads": num_heads,
        "head_dim": config.pop("intermediate_size") // num_heads,
        "n_groups": s.integer("ssm.group_count"),
    }


def lfm2(s: Settings) -> dict[str, Any]:
    counts = s.per_layer("attention.head_count_kv")
    return {
        "hidden_size": s.integer("embedding_length"),
        "intermediate_size": s.feed_forward,
        "block_auto_adjust_ff_dim": False,
        "num_hidden_layers": s.depth,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.some_kv_heads,
        "layer_types": ["full_attention" if n else "conv" for n in counts],
        "max_position_embeddings": s.integer("context_length"),
        "norm_eps": s.epsilon,
        "conv_L_cache": s.integer("shortconv.l_cache"),
        "conv_bias": s.has("shortconv.in_proj.bias"),
        "rope_theta": s.real("rope.freq_base", 1000000.0),
    }


def lfm2moe(s: Settings) -> dict[str, Any]:
    config = lfm2(s)
    del config["block_auto_adjust_ff_dim"]
    return config | {
        "num_experts": s.integer("expert_count"),
        "num_experts_per_tok": s.integer("expert_used_count"),
        "moe_intermediate_size": s.expert_width,
        "num_dense_layers": s.count("leading_dense_block_count"),
        "use_expert_bias": s.has("exp_probs_b.bias"),
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    }


def _hybrid(s: Settings) -> dict[str, Any]:
    """What is the same as in a model of attention only; not every layer has keys and values."""
    return decoder(s, kv_heads=s.some_kv_heads)


def granitehybrid(s: Settings) -> dict[str, Any]:
    num_heads, inner = s.integer("ssm.time_step_rank"), s.integer("ssm.inner_size")
    shared = s.first("ffn_down_shexp.weight") or s.first("ffn_down.weight")
    return (
        _hybrid(s)
        | granite_scales(s)
        | {
            "intermediate_size": s.expert_width if s.has("ffn_down_exps.weight") else s.feed_forward,
            "shared_intermediate_size": shared.shape[-1] if shared else 0,
            "num_local_experts": s.count("expert_count"),
            "num_experts_per_tok": s.count("expert_used_count"),
            "position_embedding_type": "rope" if s.get("rope.scaling.finetuned") is True else "nope",
            "layer_types": ["mamba" if has else "attention" for has in s.layers_with("ssm_a")],
            "mamba_n_heads": num_heads,
            "mamba_d_head": inner // num_heads,
            "mamba_n_groups": s.integer("ssm.group_count"),
            "mamba_d_state": s.integer("ssm.state_size"),
            "mamba_d_conv": s.integer("ssm.conv_kernel"),
            "mamba_expand": inner // s.integer("embedding_length"),
            "mamba_conv_bias": s.has("ssm_conv1d.bias"),
            "mamba_proj_bias": s.has("ssm_in.bias"),
        }
    )


def jamba(s: Settings) -> dict[str, Any]:
    attention = _period(s, "attn", [bool(n) for n in s.per_layer("attention.head_count_kv")])
    mixtures = _period(s, "expert", s.layers_with("ffn_gate_inp"))
    config = _hybrid(s)
    del config["rope_theta"]
    return (
        config
        | attention
        | mixtures
        | {
            "num_experts": s.count("expert_count") or 1,
            "num_experts_per_tok": s.count("expert_used_count") or 1,
            "intermediate_size": s.feed_forward if s.has("ffn_down.weight") else s.expert_width,
            "mamba_d_state": s.integer("ssm.state_size"),
            "mamba_d_conv": s.integer("ssm.conv_kernel"),
            "mamba_expand": s.integer("ssm.inner_size") // s.integer("embedding_length"),
            "mamba_dt_rank": s.integer("ssm.time_step_rank"),
            "mamba_conv_bias": s.has("ssm_conv1d.bias"),
            "mamba_proj_bias": s.has("ssm_in.bias"),
        }
    )


def _period(s: Settings, what: str, layers: list[bool]) -> dict[str, int]:
    """Layers that come in regular distances, as the configuration has words for."""
    places = [i for i, has in enumerate(layers) if has]
    if not places:
        return {f"{what}_layer_period": len(layers) + 1, f"{what}_layer_offset": len(layers)}
    period = places[1] - places[0] if len(places) > 1 else max(len(layers), places[0] + 1)
    if any(has != (i % period == places[0] % period) for i, has in enumerate(layers)):
        raise FormatError(
            f"not supported: {s.contents.path} has layers of one kind at {places}, "
            "which are no regular distances",
            hint="merge the original model",
        )
    return {f"{what}_layer_period": period, f"{what}_layer_offset": places[0]}


def nemotron_h(s: Settings) -> dict[str, Any]:
    num_heads = s.integer("ssm.time_step_rank")
    marks = {"M": "ssm_a", "*": "attn_q", "-": "ffn_up", "E": "ffn_up_exps"}
    kinds = {mark: s.layers_with(leaf) for mark, leaf in marks.items()}
    pattern = ["".join(mark for mark, has in kinds.items() if has[layer]) for layer in range(s.depth)]
    if not all(len(mark) == 1 for mark in pattern):
        raise FormatError(
            f"not supported: {s.contents.path} has layers that are no state space, attention or MLP",
            hint="merge the original model",
        )
    config = {
        "hidden_size": s.integer("embedding_length"),
        "intermediate_size": s.feed_forward if s.has("ffn_down.weight") else s.expert_width,
        "num_hidden_layers": s.depth,
        "hybrid_override_pattern": "".join(pattern),
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.some_kv_heads,
        "head_dim": s.head_size,
        "max_position_embeddings": s.integer("context_length"),
        "layer_norm_epsilon": s.epsilon,
        "ssm_state_size": s.integer("ssm.state_size"),
        "mamba_num_heads": num_heads,
        "mamba_head_dim": s.integer("ssm.inner_size") // num_heads,
        "n_groups": s.integer("ssm.group_count"),
        "conv_kernel": s.integer("ssm.conv_kernel"),
        "use_conv_bias": s.has("ssm_conv1d.bias"),
        "use_bias": s.has("ssm_in.bias"),
        "mlp_bias": s.has("ffn_up.bias"),
        "attention_bias": s.has("attn_q.bias"),
    }
    if s.has("ffn_up_exps.weight"):
        shared, latent = s.first("ffn_down_shexp.weight"), s.first("ffn_latent_down.weight")
        config |= {
            "n_routed_experts": s.integer("expert_count"),
            "num_experts_per_tok": s.integer("expert_used_count"),
            "n_shared_experts": s.integer("expert_shared_count", 1),
            "moe_intermediate_size": s.expert_width,
            "moe_shared_expert_intermediate_size": shared.shape[-1] if shared else s.expert_width,
            "moe_latent_size": latent.shape[0] if latent else None,
            "norm_topk_prob": bool(s.get("expert_weights_norm")),
            "routed_scaling_factor": s.real("expert_weights_scale", 1.0),
            "n_group": s.integer("expert_group_count", 1),
            "topk_group": s.integer("expert_group_used_count", 1),
        }
    return config


def kimi_linear(s: Settings) -> dict[str, Any]:
    linear = s.layers_with("ssm_a")
    layers = range(1, s.depth + 1)
    return (
        _hybrid(s)
        | kimi_experts(s)
        | {
            "linear_attn_config": {
                "full_attn_layers": [i for i in layers if not linear[i - 1]],
                "kda_layers": [i for i in layers if linear[i - 1]],
                "head_dim": s.integer("kda.head_dim"),
                "num_heads": s.heads,
                "short_conv_kernel_size": s.integer("ssm.conv_kernel"),
            },
        }
    )
