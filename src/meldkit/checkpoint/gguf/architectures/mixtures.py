"""Mixtures of experts, and models whose keys and values are compressed (MLA)."""

from __future__ import annotations

from dataclasses import replace

from meldkit.checkpoint.gguf.architectures.architecture import Architecture, Leaf, Mtp
from meldkit.checkpoint.gguf.architectures.dense import decoder
from meldkit.checkpoint.gguf.architectures.leaves import (
    ATTENTION,
    DEEPSEEK_EXPERTS,
    DENSE,
    EXPERTS,
    GRANITE_EXPERTS,
    MIXTRAL_EXPERTS,
    MLA,
    MLP,
    PAIRS,
    QK_NORM,
    SCORE_BIAS,
    SHARED_EXPERT,
    SHARED_EXPERTS,
)
from meldkit.checkpoint.gguf.configs import mixtures as configs

_SCORE_BIAS_ABOVE = {"exp_probs_b": Leaf("mlp.e_score_correction", bias="_bias")}
_NEXTN = {
    "nextn.eh_proj": "eh_proj",
    "nextn.embed_tokens": "embed_tokens",
    "nextn.enorm": "enorm",
    "nextn.hnorm": "hnorm",
    "nextn.shared_head_head": "shared_head.head",
    "nextn.shared_head_norm": "shared_head.norm",
}
#: As DeepSeek and GLM store the blocks behind the last one, and as Qwen and EXAONE do.
_MTP_BEHIND = Mtp("model.layers.{block}", _NEXTN, setting="num_nextn_predict_layers")
MTP_APART = Mtp(
    "mtp.layers.{own}",
    names={
        "nextn.eh_proj": "mtp.fc",
        "nextn.enorm": "mtp.pre_fc_norm_embedding",
        "nextn.hnorm": "mtp.pre_fc_norm_hidden",
        "nextn.shared_head_norm": "mtp.norm",
    },
)

#: Another model that llama.cpp files under "llama".
MIXTRAL = decoder("mixtral", "MixtralForCausalLM", configs.mixtral, DENSE | MIXTRAL_EXPERTS | PAIRS)

_MLA = DENSE | MLA | DEEPSEEK_EXPERTS
_DEEPSEEK_V2 = decoder("deepseek_v2", "DeepseekV2ForCausalLM", configs.deepseek_v2, _MLA)
#: Other models that llama.cpp files under "deepseek2".
DEEPSEEK_V3 = replace(
    decoder("deepseek_v3", "DeepseekV3ForCausalLM", configs.deepseek_v3, _MLA), mtp=_MTP_BEHIND
)
GLM4_MOE_LITE = replace(
    decoder("glm4_moe_lite", "Glm4MoeLiteForCausalLM", configs.glm4_moe_lite, _MLA), mtp=_MTP_BEHIND
)

_GRANITE_MOE = decoder(
    "granitemoe", "GraniteMoeForCausalLM", configs.granitemoe, DENSE | PAIRS | GRANITE_EXPERTS
)
GRANITE_MOE_SHARED = replace(
    _GRANITE_MOE, model_type="granitemoeshared", class_name="GraniteMoeSharedForCausalLM"
)
_QWEN3_MOE = decoder("qwen3_moe", "Qwen3MoeForCausalLM", configs.qwen3moe, DENSE | QK_NORM | EXPERTS)

ARCHITECTURES: dict[str, Architecture] = {
    "qwen2moe": decoder(
        "qwen2_moe", "Qwen2MoeForCausalLM", configs.qwen2moe, DENSE | EXPERTS | SHARED_EXPERT
    ),
    "qwen3moe": _QWEN3_MOE,
    # The language half of a model of images; for texts it is the same.
    "qwen3vlmoe": _QWEN3_MOE,
    "olmoe": decoder("olmoe", "OlmoeForCausalLM", configs.olmoe, DENSE | QK_NORM | EXPERTS),
    "gpt-oss": decoder(
        "gpt_oss",
        "GptOssForCausalLM",
        configs.gpt_oss,
        ATTENTION
        | {
            "post_attention_norm": "post_attention_layernorm",
            "attn_sinks": Leaf("self_attn.sinks", weight=""),
            "ffn_gate_inp": "mlp.router",
            "ffn_gate_exps": Leaf(
                "mlp.experts.gate_up_proj", weight="", bias="_bias", turned=True, part=0, run="element"
            ),
            "ffn_up_exps": Leaf(
                "mlp.experts.gate_up_proj", weight="", bias="_bias", turned=True, part=1, run="element"
            ),
            "ffn_down_exps": Leaf("mlp.experts.down_proj", weight="", bias="_bias", turned=True),
        },
    ),
    "llama4": decoder(
        "llama4_text",
        "Llama4ForCausalLM",
        configs.llama4,
        DENSE
        | {
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
            "ffn_gate_inp": "feed_forward.router",
            "ffn_gate_exps": Leaf(
                "feed_forward.experts.gate_up_proj", weight="", turned=True, part=0, run="row"
            ),
            "ffn_up_exps": Leaf(
                "feed_forward.experts.gate_up_proj", weight="", turned=True, part=1, run="row"
            ),
            "ffn_down_exps": Leaf("feed_forward.experts.down_proj", weight="", turned=True),
            "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
            "ffn_up_shexp": "feed_forward.shared_expert.up_proj",
            "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
        },
    ),
    "deepseek2": _DEEPSEEK_V2,
    "glm-dsa": replace(
        decoder(
            "glm_moe_dsa",
            "GlmMoeDsaForCausalLM",
            configs.glm_moe_dsa,
            _MLA
            | {
                "indexer.k_norm": "self_attn.indexer.k_norm",
                "indexer.proj": "self_attn.indexer.weights_proj",
                "indexer.attn_k": "self_attn.indexer.wk",
                "indexer.attn_q_b": "self_attn.indexer.wq_b",
            },
        ),
        mtp=_MTP_BEHIND,
    ),
    "mistral4": decoder(
        "mistral4",
        "Mistral4ForCausalLM",
        configs.mistral4,
        _MLA
        | {
            "ffn_gate_exps": Leaf("mlp.experts.gate_up_proj", weight="", part=0, run="matrix"),
            "ffn_up_exps": Leaf("mlp.experts.gate_up_proj", weight="", part=1, run="matrix"),
            "ffn_down_exps": Leaf("mlp.experts.down_proj", weight=""),
        },
    ),
    "minicpm3": decoder("minicpm3", "MiniCPM3ForCausalLM", configs.minicpm3, DENSE | MLA),
    "glm4moe": replace(
        decoder(
            "glm4_moe",
            "Glm4MoeForCausalLM",
            configs.glm4_moe,
            ATTENTION
            | QK_NORM
            | MLP
            | {"post_attention_norm": "post_attention_layernorm"}
            | DEEPSEEK_EXPERTS,
        ),
        mtp=_MTP_BEHIND,
    ),
    "dots1": decoder("dots1", "Dots1ForCausalLM", configs.dots1, DENSE | QK_NORM | DEEPSEEK_EXPERTS),
    "exaone-moe": replace(
        decoder(
            "exaone_moe",
            "ExaoneMoeForCausalLM",
            configs.exaone_moe,
            DENSE | QK_NORM | EXPERTS | SHARED_EXPERTS | _SCORE_BIAS_ABOVE,
        ),
        mtp=replace(MTP_APART, setting="num_nextn_predict_layers"),
    ),
    "phimoe": decoder("phimoe", "PhimoeForCausalLM", configs.phimoe, DENSE | MIXTRAL_EXPERTS),
    "granitemoe": _GRANITE_MOE,
    "dbrx": Architecture(
        "dbrx",
        "DbrxForCausalLM",
        configs.dbrx,
        {"token_embd": "transformer.wte", "output_norm": "transformer.norm_f", "output": "lm_head"},
        "transformer.blocks",
        {
            "attn_norm": "norm_attn_norm.norm_1",
            "attn_qkv": "norm_attn_norm.attn.Wqkv",
            "attn_output": "norm_attn_norm.attn.out_proj",
            "attn_output_norm": "norm_attn_norm.norm_2",
            "ffn_gate_inp": "ffn.router.layer",
            "ffn_gate_exps": Leaf("ffn.experts.mlp.w1", weight="", flat=True),
            "ffn_up_exps": Leaf("ffn.experts.mlp.v1", weight="", flat=True),
            "ffn_down_exps": Leaf("ffn.experts.mlp.w2", weight="", turned=True, flat=True),
        },
    ),
    "minimax-m2": decoder(
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        configs.minimax_m2,
        DENSE
        | QK_NORM
        | MIXTRAL_EXPERTS
        | {"exp_probs_b": Leaf("block_sparse_moe.e_score_correction", bias="_bias")},
    ),
    "ernie4_5-moe": decoder(
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        configs.ernie4_5_moe,
        DENSE
        | EXPERTS
        | SHARED_EXPERTS
        | {"exp_probs_b": Leaf("mlp.moe_statics.e_score_correction_bias", bias="", ones=(0,))},
    ),
    "afmoe": decoder(
        "afmoe",
        "AfmoeForCausalLM",
        configs.afmoe,
        DENSE
        | QK_NORM
        | EXPERTS
        | SHARED_EXPERTS
        | {
            "attn_gate": "self_attn.gate_proj",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_mlp_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            "ffn_gate_inp": "mlp.router.gate",
            "exp_probs_b": Leaf("mlp.expert_bias", bias=""),
        },
    ),
    "hunyuan-moe": decoder(
        "hunyuan_v1_moe",
        "HunYuanMoEV1ForCausalLM",
        configs.hunyuan_moe,
        DENSE
        | EXPERTS
        | {
            "attn_q_norm": "self_attn.query_layernorm",
            "attn_k_norm": "self_attn.key_layernorm",
            "ffn_gate_inp": "mlp.gate.wg",
            "ffn_gate_shexp": "mlp.shared_mlp.gate_proj",
            "ffn_up_shexp": "mlp.shared_mlp.up_proj",
            "ffn_down_shexp": "mlp.shared_mlp.down_proj",
        },
    ),
    "mimo2": replace(
        decoder(
            "mimo_v2_flash",
            "MiMoV2FlashForCausalLM",
            configs.mimo2,
            DENSE | EXPERTS | SCORE_BIAS | {"attn_sinks": Leaf("self_attn.attention_sink_bias", weight="")},
        ),
        mtp=Mtp(
            "model.mtp.layers.{own}",
            _NEXTN | {"ffn_norm": "pre_mlp_layernorm", "layer_output_norm": "final_layernorm"},
        ),
    ),
}
