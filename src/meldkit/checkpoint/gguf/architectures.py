"""What llama.cpp calls tensors, what Hugging Face calls them, and how what is stored differs.

Sources: https://github.com/ggml-org/llama.cpp (conversion from Hugging Face), tensor names of the gguf
package, and the modules of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from meldkit.checkpoint.gguf import configs
from meldkit.checkpoint.gguf.settings import Settings

#: What of config.json is particular to an architecture.
Describe = Callable[[Settings], Mapping[str, Any]]
#: Order of the rows of projections: rotated in pairs, or query, key and value of all heads one after the
#: other where Hugging Face has them head by head, or group by group.
Rows = Literal["query pairs", "key pairs", "heads", "groups"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture whose tensors are known.

    Attributes:
        model_type, class_name: of transformers.
        describe: gives its configuration.
        names: tensors outside of blocks, without `.weight` or `.bias`.
        blocks: what stands before a block's number.
        leaves: tensors in blocks; a `{}` stands for the number of an expert.
        rows: leaves whose rows are stored in another order.
        raised_norms: the weights of norms are stored with one added.
        transposed: leaves that are stored as columns.
        negated_logs: leaves x that are stored as -exp(x).
        unsqueezed: leaves that lack a dimension of size 1, by its place.
        left_out: tensors that Hugging Face does not store: copies, and settings in disguise.
    """

    model_type: str
    class_name: str
    describe: Describe
    names: Mapping[str, str]
    blocks: str
    leaves: Mapping[str, str]
    rows: Mapping[str, Rows] = field(default_factory=dict[str, Rows])
    raised_norms: bool = False
    transposed: frozenset[str] = frozenset()
    negated_logs: frozenset[str] = frozenset()
    unsqueezed: Mapping[str, int] = field(default_factory=dict[str, int])
    left_out: frozenset[str] = frozenset({"rope_freqs", "rope_factors_long", "rope_factors_short"})


_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCKS = "model.layers"
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_DENSE = _ATTENTION | {"ffn_norm": "post_attention_layernorm"} | _MLP
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_MIXTRAL_EXPERTS = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
}
_NORMS_AROUND = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PAIRS: dict[str, Rows] = {"attn_q": "query pairs", "attn_k": "key pairs"}
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT2_LEAVES = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_BLOOM_NAMES = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
}
_BLOOM_LEAVES = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_MAMBA_LEAVES = {
    "attn_norm": "norm",
    "ssm_in": "mixer.in_proj",
    "ssm_conv1d": "mixer.conv1d",
    "ssm_x": "mixer.x_proj",
    "ssm_dt": "mixer.dt_proj",
    "ssm_a": "mixer.A_log",
    "ssm_d": "mixer.D",
    "ssm_out": "mixer.out_proj",
}
_LFM2_LEAVES = {
    "attn_norm": "operator_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.conv": "conv.conv",
    "shortconv.out_proj": "conv.out_proj",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
}


def _decoder(
    model_type: str,
    class_name: str,
    describe: Describe,
    leaves: Mapping[str, str] = _DENSE,
    *,
    rows: Mapping[str, Rows] | None = None,
    raised_norms: bool = False,
    unsqueezed: Mapping[str, int] | None = None,
) -> Architecture:
    """An architecture named as Llama is."""
    return Architecture(
        model_type,
        class_name,
        describe,
        _NAMES,
        _BLOCKS,
        leaves,
        rows=rows or {},
        raised_norms=raised_norms,
        unsqueezed=unsqueezed or {},
    )


_LLAMA = _decoder("llama", "LlamaForCausalLM", configs.llama, rows=_PAIRS)
#: Other models that llama.cpp files under "llama".
MISTRAL = _decoder("mistral", "MistralForCausalLM", configs.mistral, rows=_PAIRS)
MIXTRAL = _decoder("mixtral", "MixtralForCausalLM", configs.llama, _DENSE | _MIXTRAL_EXPERTS, rows=_PAIRS)

_FALCON = Architecture(
    "falcon",
    "FalconForCausalLM",
    configs.falcon,
    _BLOOM_NAMES | {"output": "lm_head"},
    "transformer.h",
    _BLOOM_LEAVES,
    rows={"attn_qkv": "groups"},
)
#: The larger ones have norms of their own before attention and before the MLP.
FALCON_TWO_NORMS = replace(_FALCON, leaves=_BLOOM_LEAVES | {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"})

_MAMBA = Architecture(
    "mamba",
    "MambaForCausalLM",
    configs.mamba,
    {"token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f", "output": "lm_head"},
    "backbone.layers",
    _MAMBA_LEAVES,
    negated_logs=frozenset({"ssm_a"}),
    unsqueezed={"ssm_conv1d": 1},
)
FALCON_MAMBA = replace(_MAMBA, model_type="falcon_mamba", class_name="FalconMambaForCausalLM")

_OLMO2 = _decoder("olmo2", "Olmo2ForCausalLM", configs.decoder, _DENSE | _QK_NORM | _NORMS_AROUND)
OLMO3 = replace(_OLMO2, model_type="olmo3", class_name="Olmo3ForCausalLM", describe=configs.olmo3)

#: By the name that the file gives.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "qwen2": _decoder("qwen2", "Qwen2ForCausalLM", configs.qwen2),
    "qwen2moe": _decoder(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        configs.qwen2moe,
        _DENSE | _EXPERTS | _SHARED_EXPERT,
        unsqueezed={"ffn_gate_inp_shexp": 0},
    ),
    "qwen3": _decoder("qwen3", "Qwen3ForCausalLM", configs.qwen3, _DENSE | _QK_NORM),
    "qwen3moe": _decoder("qwen3_moe", "Qwen3MoeForCausalLM", configs.qwen3moe, _DENSE | _QK_NORM | _EXPERTS),
    "gemma": _decoder("gemma", "GemmaForCausalLM", configs.gemma, raised_norms=True),
    "gemma2": _decoder(
        "gemma2", "Gemma2ForCausalLM", configs.gemma2, _DENSE | _NORMS_AROUND, raised_norms=True
    ),
    "gemma3": _decoder(
        "gemma3_text",
        "Gemma3ForCausalLM",
        configs.gemma3,
        _DENSE | _QK_NORM | _NORMS_AROUND,
        raised_norms=True,
    ),
    "phi2": Architecture(
        "phi",
        "PhiForCausalLM",
        configs.phi2,
        _NAMES | {"output_norm": "model.final_layernorm"},
        _BLOCKS,
        _ATTENTION | {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
    ),
    "phi3": _decoder(
        "phi3",
        "Phi3ForCausalLM",
        configs.phi3,
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        configs.gpt2,
        _GPT2_NAMES,
        "transformer.h",
        _GPT2_LEAVES,
        transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
    ),
    "gptneox": Architecture(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        configs.gptneox,
        {
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
        },
        "gpt_neox.layers",
        _BLOOM_LEAVES | {"attn_qkv": "attention.query_key_value", "attn_output": "attention.dense"},
        rows={"attn_qkv": "heads"},
    ),
    "falcon": _FALCON,
    "bloom": Architecture(
        "bloom",
        "BloomForCausalLM",
        configs.bloom,
        _BLOOM_NAMES,
        "transformer.h",
        _BLOOM_LEAVES,
        rows={"attn_qkv": "heads"},
        left_out=frozenset({"output"}),
    ),
    "stablelm": _decoder("stablelm", "StableLmForCausalLM", configs.stablelm),
    "starcoder2": _decoder(
        "starcoder2",
        "Starcoder2ForCausalLM",
        configs.starcoder2,
        _DENSE | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    ),
    "mamba": _MAMBA,
    "nemotron": _decoder("nemotron", "NemotronForCausalLM", configs.nemotron, raised_norms=True),
    "command-r": _decoder("cohere", "CohereForCausalLM", configs.command_r, _DENSE | _QK_NORM),
    "cohere2": _decoder("cohere2", "Cohere2ForCausalLM", configs.cohere2),
    "olmo": _decoder("olmo", "OlmoForCausalLM", configs.olmo, rows=_PAIRS),
    "olmo2": _OLMO2,
    "olmoe": _decoder("olmoe", "OlmoeForCausalLM", configs.olmoe, _DENSE | _QK_NORM | _EXPERTS),
    "granite": _decoder("granite", "GraniteForCausalLM", configs.granite, rows=_PAIRS),
    "smollm3": _decoder("smollm3", "SmolLM3ForCausalLM", configs.decoder, rows=_PAIRS),
    "arcee": _decoder("arcee", "ArceeForCausalLM", configs.arcee, rows=_PAIRS),
    "lfm2": Architecture(
        "lfm2",
        "Lfm2ForCausalLM",
        configs.lfm2,
        {"token_embd": "model.embed_tokens", "token_embd_norm": "model.embedding_norm", "output": "lm_head"},
        _BLOCKS,
        _LFM2_LEAVES,
        unsqueezed={"shortconv.conv": 1},
    ),
    "seed_oss": _decoder(
        "seed_oss",
        "SeedOssForCausalLM",
        configs.seed_oss,
        _ATTENTION | {"post_attention_norm": "post_attention_layernorm"} | _MLP,
    ),
    "glm4": _decoder(
        "glm4",
        "Glm4ForCausalLM",
        configs.glm4,
        _ATTENTION
        | {
            "post_attention_norm": "post_self_attn_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
            "post_ffw_norm": "post_mlp_layernorm",
        },
    ),
    "ernie4_5": _decoder("ernie4_5", "Ernie4_5ForCausalLM", configs.ernie4_5),
    "exaone4": _decoder("exaone4", "Exaone4ForCausalLM", configs.exaone4, _DENSE | _QK_NORM | _NORMS_AROUND),
}
