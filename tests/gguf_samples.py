"""Tiny models of the architectures of GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

TOKENS = torch.arange(3, 43).view(2, 20)

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA = {"head_dim": 32, "num_hidden_layers": 7}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GPT2_SIZES = {
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
LONG = [1.5, 2.25, 3.0, 4.125, 5.0, 6.0, 7.0, 8.1]

DELTA = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "partial_rotary_factor": 0.25,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
GEMMA4 = {
    "num_hidden_layers": 6,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}
DEEPSEEK_SIZES = SIZES | {
    "num_hidden_layers": 3,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "n_group": 1,
    "topk_group": 1,
}
DEEPSEEK = DEEPSEEK_SIZES | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
}
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
GRANITE = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.125,
}
HYBRID = {
    "num_hidden_layers": 4,
    "layer_types": ["mamba", "attention", "mamba", "mamba"],
    "shared_intermediate_size": 48,
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "position_embedding_type": "nope",
}
MAMBA2: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_heads": 8,
    "head_dim": 16,
    "n_groups": 2,
    "state_size": 16,
}
NEMOTRON_H = SIZES | {
    "head_dim": 16,
    "ssm_state_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
}
BERT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
#: Such files have no pooler.
WITHOUT_POOLER = {"add_pooling_layer": False}
T5: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
}


@dataclass(frozen=True)
class Sample:
    """A model that transformers makes.

    Attributes:
        architecture: llama.cpp's.
        model_type: of transformers.
        config: its configuration.
        auto: the class that makes it.
        options: of that class.
    """

    architecture: str
    model_type: str
    config: Mapping[str, Any]
    auto: str = "AutoModelForCausalLM"
    options: Mapping[str, Any] = field(default_factory=dict)

    def configuration(self) -> Any:
        """The configuration, of transformers."""
        from transformers import AutoConfig

        return AutoConfig.for_model(self.model_type, **self.config)

    def model(self, config: Any) -> Any:
        """A model with weights of which none is a plain zero or one."""
        import transformers

        torch.manual_seed(0)
        kind = getattr(transformers, self.auto)
        model = kind.from_config(config, **self.options) if self.auto.startswith("Auto") else kind(config)
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() == 1:  # norms of ones and biases of zeros would hide mistakes
                    p.add_(0.1 * torch.randn_like(p))
            for name, p in model.named_parameters():
                if self.model_type == "xlm-roberta" and "position_embeddings" in name:
                    p[: config.pad_token_id + 1] = 0  # positions of padding, which such files do not have
        return model

    def outputs(self, model: Any) -> Tensor:
        """What a model makes of some tokens."""
        inputs = {"input_ids": TOKENS}
        if "Seq2Seq" in self.auto:
            inputs["decoder_input_ids"] = TOKENS.flip(1)
        with torch.no_grad():
            outputs = model.eval()(**inputs)
        return outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state


SAMPLES = {
    "llama": Sample("llama", "llama", SIZES | {"tie_word_embeddings": True}),
    "llama-3": Sample("llama", "llama", SIZES | {"head_dim": 32, "rope_parameters": LLAMA3}),
    "llama-biases": Sample("llama", "llama", SIZES | {"attention_bias": True, "mlp_bias": True}),
    "mistral": Sample("llama", "mistral", SIZES | {"sliding_window": None, "head_dim": 16}),
    "mixtral": Sample("llama", "mixtral", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": Sample("qwen2", "qwen2", SIZES | {"rope_parameters": YARN}),
    "qwen2moe": Sample("qwen2moe", "qwen2_moe", SIZES | EXPERTS | {"shared_expert_intermediate_size": 48}),
    "qwen3": Sample("qwen3", "qwen3", SIZES | {"head_dim": 32}),
    "qwen3moe": Sample("qwen3moe", "qwen3_moe", SIZES | EXPERTS | {"head_dim": 32, "norm_topk_prob": True}),
    "gemma": Sample("gemma", "gemma", SIZES | GEMMA),
    "gemma2": Sample("gemma2", "gemma2", SIZES | GEMMA | {"query_pre_attn_scalar": 32, "sliding_window": 8}),
    "gemma3": Sample(
        "gemma3", "gemma3_text", SIZES | GEMMA | {"query_pre_attn_scalar": 32, "sliding_window": 8}
    ),
    "phi2": Sample("phi2", "phi", SIZES | {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "phi3": Sample(
        "phi3",
        "phi3",
        SIZES
        | {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "long_factor": LONG,
                "short_factor": [1.0] * 8,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "gpt2": Sample("gpt2", "gpt2", GPT2_SIZES | {"n_inner": 96}),
    "gptneox": Sample("gptneox", "gpt_neox", SIZES | {"rotary_pct": 0.5, "use_parallel_residual": False}),
    "falcon-7b": Sample("falcon", "falcon", SIZES | {"multi_query": True, "ffn_hidden_size": 96}),
    "falcon-40b": Sample(
        "falcon",
        "falcon",
        SIZES | {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 96},
    ),
    "bloom": Sample("bloom", "bloom", {"vocab_size": 64, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "stablelm": Sample("stablelm", "stablelm", SIZES | {"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "starcoder2": Sample("starcoder2", "starcoder2", SIZES),
    "mamba": Sample("mamba", "mamba", SIZES | {"state_size": 8, "intermediate_size": 128}),
    "falcon-mamba": Sample("mamba", "falcon_mamba", SIZES | {"state_size": 8, "intermediate_size": 128}),
    "nemotron": Sample("nemotron", "nemotron", SIZES | {"partial_rotary_factor": 0.5}),
    "command-r": Sample("command-r", "cohere", SIZES | {"use_qk_norm": True, "logit_scale": 0.25}),
    "cohere2": Sample("cohere2", "cohere2", SIZES | {"sliding_window": 8, "num_hidden_layers": 4}),
    "olmo": Sample("olmo", "olmo", SIZES | {"clip_qkv": 2.0}),
    "olmo2": Sample("olmo2", "olmo2", SIZES),
    "olmo3": Sample("olmo2", "olmo3", SIZES | {"num_hidden_layers": 4, "sliding_window": 8}),
    "olmoe": Sample("olmoe", "olmoe", SIZES | {"num_experts": 4, "num_experts_per_tok": 2}),
    "granite": Sample("granite", "granite", SIZES | {"embedding_multiplier": 3.0, "logits_scaling": 2.0}),
    "smollm3": Sample("smollm3", "smollm3", SIZES | {"num_hidden_layers": 4}),
    "arcee": Sample("arcee", "arcee", SIZES),
    "lfm2": Sample(
        "lfm2",
        "lfm2",
        SIZES
        | {
            "num_hidden_layers": 4,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        },
    ),
    "glm4": Sample("glm4", "glm4", SIZES | {"head_dim": 32, "attention_bias": True}),
    "ernie4_5": Sample("ernie4_5", "ernie4_5", SIZES | {"head_dim": 16}),
    "exaone4": Sample(
        "exaone4",
        "exaone4",
        SIZES
        | {"num_hidden_layers": 4, "head_dim": 16, "sliding_window": 8, "sliding_window_pattern": 4}
        | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    ),
    "seed_oss": Sample("seed_oss", "seed_oss", SIZES | {"head_dim": 32, "attention_bias": True}),
    "mistral3": Sample(
        "mistral3",
        "ministral3",
        SIZES
        | {
            "head_dim": 32,
            "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
        },
    ),
    "mistral3-plain": Sample("mistral3", "mistral", SIZES | {"sliding_window": None, "head_dim": 16}),
    "qwen2vl": Sample("qwen2vl", "qwen2", SIZES),
    "qwen3vl": Sample("qwen3vl", "qwen3", SIZES | {"head_dim": 32}),
    "qwen3vlmoe": Sample(
        "qwen3vlmoe", "qwen3_moe", SIZES | EXPERTS | {"head_dim": 32, "norm_topk_prob": True}
    ),
    "qwen3next": Sample(
        "qwen3next",
        "qwen3_next",
        SIZES | EXPERTS | DELTA | {"shared_expert_intermediate_size": 48, "norm_topk_prob": True},
    ),
    "qwen35": Sample("qwen35", "qwen3_5_text", SIZES | DELTA),
    "qwen35moe": Sample(
        "qwen35moe", "qwen3_5_moe_text", SIZES | EXPERTS | DELTA | {"shared_expert_intermediate_size": 48}
    ),
    "gemma-embedding": Sample(
        "gemma-embedding",
        "gemma3_text",
        SIZES
        | GEMMA
        | {"query_pre_attn_scalar": 32, "sliding_window": 8, "use_bidirectional_attention": True},
        "AutoModel",
    ),
    "gemma3n": Sample(
        "gemma3n",
        "gemma3n_text",
        SIZES
        | {
            "head_dim": 16,
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 3,
            "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0],
            "sliding_window": 8,
            "vocab_size_per_layer_input": 64,
            "hidden_size_per_layer_input": 16,
            "laurel_rank": 8,
        },
    ),
    "gemma4": Sample(
        "gemma4",
        "gemma4_text",
        SIZES
        | GEMMA4
        | {
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 64,
        },
    ),
    "gemma4-experts": Sample(
        "gemma4",
        "gemma4_text",
        SIZES
        | GEMMA4
        | {
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "starcoder": Sample("starcoder", "gpt_bigcode", GPT2_SIZES | {"n_inner": 96, "multi_query": True}),
    "mpt": Sample(
        "mpt",
        "mpt",
        {
            "vocab_size": 64,
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 128,
            "attn_config": {"clip_qkv": 2.0},
        },
    ),
    "stablelm-norms": Sample("stablelm", "stablelm", SIZES | {"qk_layernorm": True}),
    "apertus": Sample("apertus", "apertus", SIZES | {"rope_parameters": LLAMA3 | {"factor": 4.0}}),
    "chatglm": Sample(
        "chatglm", "glm", SIZES | {"head_dim": 16, "attention_bias": True, "rms_norm_eps": 1e-5}
    ),
    "hunyuan-dense": Sample("hunyuan-dense", "hunyuan_v1_dense", SIZES | {"head_dim": 32}),
    "jais2": Sample("jais2", "jais2", SIZES),
    "gpt-oss": Sample(
        "gpt-oss",
        "gpt_oss",
        SIZES
        | {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "rope_parameters": YARN | {"truncate": False},
        },
    ),
    "llama4": Sample(
        "llama4",
        "llama4_text",
        SIZES
        | {
            "head_dim": 16,
            "num_hidden_layers": 4,
            "intermediate_size_mlp": 80,
            "interleave_moe_layer_step": 2,
            "num_local_experts": 4,
            "rope_parameters": LLAMA3 | {"high_freq_factor": 1.0},
        },
    ),
    "deepseek-v2": Sample("deepseek2", "deepseek_v2", DEEPSEEK | {"q_lora_rank": None}),
    "deepseek-v2-groups": Sample(
        "deepseek2",
        "deepseek_v2",
        DEEPSEEK | {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1},
    ),
    "deepseek-v3": Sample(
        "deepseek2",
        "deepseek_v3",
        DEEPSEEK
        | {"n_group": 2, "topk_group": 1}
        | {"rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    ),
    "glm4-moe-lite": Sample("deepseek2", "glm4_moe_lite", {**DEEPSEEK, "n_group": 1, "topk_group": 1}),
    "glm-dsa": Sample(
        "glm-dsa",
        "glm_moe_dsa",
        {**DEEPSEEK, "n_group": 1, "topk_group": 1}
        | {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8},
    ),
    "mistral4": Sample(
        "mistral4",
        "mistral4",
        {**DEEPSEEK, "n_group": 1, "topk_group": 1}
        | {
            "first_k_dense_replace": 0,
            "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
        },
        "Mistral4ForCausalLM",
    ),
    "minicpm3": Sample("minicpm3", "minicpm3", {**DEEPSEEK, "v_head_dim": 16}),
    "glm4moe": Sample("glm4moe", "glm4_moe", DEEPSEEK_SIZES | {"head_dim": 16, "use_qk_norm": True}),
    "dots1": Sample("dots1", "dots1", DEEPSEEK_SIZES | {"head_dim": 16, "sliding_window": None}),
    "exaone-moe": Sample(
        "exaone-moe",
        "exaone_moe",
        DEEPSEEK_SIZES
        | {"num_experts": 4, "num_shared_experts": 1, "head_dim": 16, "sliding_window": 8}
        | {"layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    ),
    "phimoe": Sample(
        "phimoe",
        "phimoe",
        SIZES
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True}
        | {
            "rope_parameters": {
                "rope_type": "longrope",
                "long_factor": LONG,
                "short_factor": [1.0] * 8,
                "long_mscale": 1.243163121016122,
                "short_mscale": 1.243163121016122,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "granitemoe": Sample("granitemoe", "granitemoe", SIZES | GRANITE | MIXTURE),
    "granitemoeshared": Sample(
        "granitemoe", "granitemoeshared", SIZES | GRANITE | MIXTURE | {"shared_intermediate_size": 48}
    ),
    "granitehybrid": Sample("granitehybrid", "granitemoehybrid", SIZES | GRANITE | MIXTURE | HYBRID),
    "granitehybrid-dense": Sample(
        "granitehybrid",
        "granitemoehybrid",
        SIZES | GRANITE | HYBRID | {"num_local_experts": 0, "num_experts_per_tok": 0},
    ),
    "dbrx": Sample(
        "dbrx",
        "dbrx",
        {
            "vocab_size": 64,
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 128,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 500000.0},
            "ffn_config": {
                "hidden_size": 64,
                "ffn_hidden_size": 48,
                "moe_num_experts": 4,
                "moe_top_k": 2,
                "ffn_act_fn": {"name": "silu"},
            },
        },
    ),
    "minimax-m2": Sample("minimax-m2", "minimax_m2", SIZES | MIXTURE | {"head_dim": 32, "rotary_dim": 16}),
    "ernie4_5-moe": Sample(
        "ernie4_5-moe",
        "ernie4_5_moe",
        SIZES
        | {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 32,
            "moe_num_shared_experts": 2,
            "tie_word_embeddings": True,
        },
    ),
    "afmoe": Sample(
        "afmoe",
        "afmoe",
        SIZES
        | EXPERTS
        | {
            "head_dim": 16,
            "num_hidden_layers": 4,
            "num_dense_layers": 1,
            "num_shared_experts": 1,
            "sliding_window": 8,
            "route_scale": 2.5,
            "mup_enabled": True,
        },
    ),
    "hunyuan-moe": Sample(
        "hunyuan-moe", "hunyuan_v1_moe", SIZES | {"num_experts": 4, "moe_topk": 2, "head_dim": 16}
    ),
    "mimo2": Sample(
        "mimo2",
        "mimo_v2_flash",
        DEEPSEEK_SIZES
        | {
            "head_dim": 32,
            "routed_scaling_factor": 1.0,
            "v_head_dim": 16,
            "sliding_window": 8,
            "num_key_value_heads": 1,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "partial_rotary_factor": 0.25,
                },
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.25,
                },
            },
        },
    ),
    "mamba2": Sample("mamba2", "mamba2", MAMBA2 | {"tie_word_embeddings": True}),
    "lfm2moe": Sample(
        "lfm2moe",
        "lfm2_moe",
        SIZES
        | EXPERTS
        | {
            "num_hidden_layers": 4,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        },
    ),
    "jamba": Sample(
        "jamba",
        "jamba",
        SIZES
        | {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
    ),
    "nemotron_h": Sample("nemotron_h", "nemotron_h", NEMOTRON_H | {"hybrid_override_pattern": "M-*M-"}),
    "nemotron_h_moe": Sample(
        "nemotron_h_moe",
        "nemotron_h",
        NEMOTRON_H
        | {
            "hybrid_override_pattern": "ME*M",
            "n_routed_experts": 4,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 48,
            "moe_latent_size": 32,
            "num_experts_per_tok": 2,
        },
    ),
    "kimi-linear": Sample(
        "kimi-linear",
        "kimi_linear",
        DEEPSEEK
        | {
            "first_k_dense_replace": 0,
            "num_local_experts": 4,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "bert": Sample("bert", "bert", BERT, "AutoModel", WITHOUT_POOLER),
    "xlm-roberta": Sample(
        "bert",
        "xlm-roberta",
        BERT | {"type_vocab_size": 1, "pad_token_id": 1},
        "AutoModel",
        WITHOUT_POOLER,
    ),
    "nomic-bert": Sample("nomic-bert", "nomic_bert", BERT, "AutoModel"),
    "jina-bert-v3": Sample(
        "jina-bert-v3", "jina_embeddings_v3", BERT | {"type_vocab_size": 1}, "AutoModel", WITHOUT_POOLER
    ),
    "modern-bert": Sample(
        "modern-bert", "modernbert", BERT | IDS | {"num_hidden_layers": 4, "local_attention": 8}, "AutoModel"
    ),
    "eurobert": Sample("eurobert", "eurobert", SIZES | {"mask_token_id": 3}, "AutoModel"),
    "t5": Sample("t5", "t5", T5, "AutoModelForSeq2SeqLM"),
    "t5-gated": Sample(
        "t5",
        "t5",
        T5 | {"feed_forward_proj": "gated-gelu"},
        "AutoModelForSeq2SeqLM",
    ),
    "umt5": Sample("t5", "umt5", T5 | {"feed_forward_proj": "gated-gelu"}, "AutoModelForSeq2SeqLM"),
    "t5encoder": Sample("t5encoder", "t5", T5 | {"feed_forward_proj": "gated-gelu"}, "T5EncoderModel"),
}
