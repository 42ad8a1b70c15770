"""State space models, and models that have layers of them between those of attention."""

from __future__ import annotations

from dataclasses import replace

from meldkit.checkpoint.gguf.architectures.architecture import Architecture, Leaf
from meldkit.checkpoint.gguf.architectures.dense import decoder
from meldkit.checkpoint.gguf.architectures.leaves import (
    ATTENTION,
    BLOCKS,
    DENSE,
    EXPERTS,
    GRANITE_EXPERTS,
    MIXTRAL_EXPERTS,
    MLA,
    MLP,
    NAMES,
    PAIRS,
    QK_NORM,
    SHARED_EXPERT,
    mamba,
    mamba2,
)
from meldkit.checkpoint.gguf.architectures.mixtures import MTP_APART
from meldkit.checkpoint.gguf.configs import mixtures, state_spaces

_BACKBONE = {"token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f", "output": "lm_head"}
_MAMBA = Architecture(
    "mamba",
    "MambaForCausalLM",
    state_spaces.mamba,
    _BACKBONE,
    "backbone.layers",
    {"attn_norm": "norm", **mamba("mixer")},
)
FALCON_MAMBA = replace(_MAMBA, model_type="falcon_mamba", class_name="FalconMambaForCausalLM")

_LFM2_NAMES = {
    "token_embd": "model.embed_tokens",
    "token_embd_norm": "model.embedding_norm",
    "output_norm": "model.embedding_norm",
    "output": "lm_head",
}
_LFM2_LEAVES: dict[str, str | Leaf] = {
    "attn_norm": "operator_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.conv": Leaf("conv.conv", ones=(1,)),
    "shortconv.out_proj": "conv.out_proj",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
}

#: Layers of a gated delta rule.
_DELTA: dict[str, str | Leaf] = {
    "ssm_conv1d": Leaf("linear_attn.conv1d", ones=(1,)),
    "ssm_dt": Leaf("linear_attn.dt", bias="_bias"),
    "ssm_a": Leaf("linear_attn.A_log", change="log of negative"),
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
#: The same where the values of a key head lie apart.
_DELTA_BY_TURNS: dict[str, str | Leaf] = {
    "attn_qkv": Leaf("linear_attn.in_proj_qkv", rows="last values"),
    "attn_gate": Leaf("linear_attn.in_proj_z", rows="values"),
    "ssm_beta": Leaf("linear_attn.in_proj_b", rows="value numbers"),
    "ssm_alpha": Leaf("linear_attn.in_proj_a", rows="value numbers"),
    "ssm_conv1d": Leaf("linear_attn.conv1d", rows="last values", ones=(1,)),
    "ssm_dt": Leaf("linear_attn.dt", bias="_bias", rows="value numbers"),
    "ssm_a": Leaf("linear_attn.A_log", change="log of negative", rows="value numbers"),
    "ssm_norm": "linear_attn.norm",
    "ssm_out": Leaf("linear_attn.out_proj", columns="values"),
}
_QWEN_ATTENTION = ATTENTION | QK_NORM | {"post_attention_norm": "post_attention_layernorm"}
_KIMI_MODULES = {
    "ssm_f_a": "self_attn.f_a_proj",
    "ssm_f_b": "self_attn.f_b_proj",
    "ssm_beta": "self_attn.b_proj",
    "ssm_g_a": "self_attn.g_a_proj",
    "ssm_g_b": "self_attn.g_b_proj",
    "ssm_norm": "self_attn.o_norm",
}

ARCHITECTURES: dict[str, Architecture] = {
    "mamba": _MAMBA,
    "mamba2": replace(
        _MAMBA,
        model_type="mamba2",
        class_name="Mamba2ForCausalLM",
        describe=state_spaces.mamba2,
        leaves={"attn_norm": "norm", **mamba2("mixer")},
    ),
    "lfm2": Architecture("lfm2", "Lfm2ForCausalLM", state_spaces.lfm2, _LFM2_NAMES, BLOCKS, _LFM2_LEAVES),
    "lfm2moe": Architecture(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        state_spaces.lfm2moe,
        _LFM2_NAMES,
        BLOCKS,
        _LFM2_LEAVES
        | {
            "ffn_gate_inp": "feed_forward.gate",
            "ffn_gate_exps": "feed_forward.experts.{}.w1",
            "ffn_up_exps": "feed_forward.experts.{}.w3",
            "ffn_down_exps": "feed_forward.experts.{}.w2",
            "exp_probs_b": Leaf("feed_forward.expert_bias", bias=""),
        },
    ),
    "jamba": Architecture(
        "jamba",
        "JambaForCausalLM",
        state_spaces.jamba,
        NAMES | {"output_norm": "model.final_layernorm"},
        BLOCKS,
        ATTENTION
        | mamba("mamba")
        | {
            "ssm_dt_norm": "mamba.dt_layernorm",
            "ssm_b_norm": "mamba.b_layernorm",
            "ssm_c_norm": "mamba.c_layernorm",
            "ffn_norm": "pre_ff_layernorm",
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
            "ffn_gate_inp": "feed_forward.router",
            "ffn_gate_exps": "feed_forward.experts.{}.gate_proj",
            "ffn_up_exps": "feed_forward.experts.{}.up_proj",
            "ffn_down_exps": "feed_forward.experts.{}.down_proj",
        },
    ),
    "granitehybrid": decoder(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        state_spaces.granitehybrid,
        DENSE
        | PAIRS
        | mamba2("mamba")
        | GRANITE_EXPERTS
        | {
            "ffn_gate": Leaf("shared_mlp.input_linear", part=0),
            "ffn_up": Leaf("shared_mlp.input_linear", part=1),
            "ffn_down": "shared_mlp.output_linear",
        },
    ),
    **dict.fromkeys(
        ("nemotron_h", "nemotron_h_moe"),
        Architecture(
            "nemotron_h",
            "NemotronHForCausalLM",
            state_spaces.nemotron_h,
            _BACKBONE,
            "backbone.layers",
            {
                "attn_norm": "norm",
                **mamba2("mixer"),
                # They are not rotated, but stored as if.
                "attn_q": Leaf("mixer.q_proj", rows="query pairs"),
                "attn_k": Leaf("mixer.k_proj", rows="key pairs"),
                "attn_v": "mixer.v_proj",
                "attn_output": "mixer.o_proj",
                "ffn_up": "mixer.up_proj",
                "ffn_down": "mixer.down_proj",
                "ffn_gate_inp": "mixer.gate",
                "exp_probs_b": Leaf("mixer.gate.e_score_correction", bias="_bias"),
                "ffn_up_exps": "mixer.experts.{}.up_proj",
                "ffn_down_exps": "mixer.experts.{}.down_proj",
                "ffn_up_shexp": "mixer.shared_experts.up_proj",
                "ffn_down_shexp": "mixer.shared_experts.down_proj",
                "ffn_latent_down": "mixer.fc1_latent_proj",
                "ffn_latent_up": "mixer.fc2_latent_proj",
            },
        ),
    ),
    "qwen3next": replace(
        decoder(
            "qwen3_next",
            "Qwen3NextForCausalLM",
            mixtures.qwen3next,
            _QWEN_ATTENTION
            | EXPERTS
            | SHARED_EXPERT
            | _DELTA
            | {
                "ssm_in": "linear_attn.in_proj_qkvz",
                "attn_qkv": Leaf("linear_attn.in_proj_qkvz", rows="key heads", part=0, run="key head"),
                "attn_gate": Leaf("linear_attn.in_proj_qkvz", part=1, run="key head"),
                "ssm_ba": "linear_attn.in_proj_ba",
            },
            raised_norms=True,
        ),
        mtp=MTP_APART,
    ),
    "qwen35": replace(
        decoder(
            "qwen3_5_text",
            "Qwen3_5ForCausalLM",
            mixtures.qwen35,
            _QWEN_ATTENTION | MLP | _DELTA_BY_TURNS,
            raised_norms=True,
        ),
        mtp=replace(MTP_APART, setting="mtp_num_hidden_layers"),
    ),
    "qwen35moe": replace(
        decoder(
            "qwen3_5_moe_text",
            "Qwen3_5MoeForCausalLM",
            mixtures.qwen35moe,
            _QWEN_ATTENTION | EXPERTS | SHARED_EXPERT | _DELTA_BY_TURNS,
            raised_norms=True,
        ),
        mtp=replace(MTP_APART, setting="mtp_num_hidden_layers"),
    ),
    "kimi-linear": decoder(
        "kimi_linear",
        "KimiLinearForCausalLM",
        state_spaces.kimi_linear,
        DENSE
        | MLA
        | MIXTRAL_EXPERTS
        | _KIMI_MODULES
        | {
            **{f"ssm_conv1d_{x}": Leaf(f"self_attn.{x}_conv1d", ones=(1,)) for x in "qkv"},
            "ssm_dt": Leaf("self_attn.dt", bias="_bias"),
            "ssm_a": Leaf("self_attn.A_log", change="log of negative", ones=(0, 1, 3)),
            "exp_probs_b": Leaf("block_sparse_moe.gate.e_score_correction", bias="_bias"),
            "ffn_gate_shexp": "block_sparse_moe.shared_experts.gate_proj",
            "ffn_up_shexp": "block_sparse_moe.shared_experts.up_proj",
            "ffn_down_shexp": "block_sparse_moe.shared_experts.down_proj",
        },
    ),
}
