"""Architectures whose blocks are attention and one MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from meldkit.checkpoint.gguf.architectures.architecture import Architecture, Describe, Leaf
from meldkit.checkpoint.gguf.architectures.leaves import (
    ATTENTION,
    BLOCKS,
    DENSE,
    MLP,
    NAMES,
    NORMS_AROUND,
    PAIRS,
    QK_NORM,
)
from meldkit.checkpoint.gguf.configs import dense as configs
from meldkit.checkpoint.gguf.configs.common import decoder as plain
from meldkit.checkpoint.gguf.contents import bad
from meldkit.checkpoint.gguf.settings import Settings

_Leaves = Mapping[str, str | Leaf]
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
_TURNED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
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
_GATES_AND_UPS = {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}


def decoder(
    model_type: str,
    class_name: str,
    describe: Describe,
    leaves: _Leaves = DENSE,
    *,
    raised_norms: bool = False,
) -> Architecture:
    """An architecture named as Llama is."""
    return Architecture(model_type, class_name, describe, NAMES, BLOCKS, leaves, raised_norms=raised_norms)


def _xielu(s: Settings) -> dict[str, tuple[tuple[int, ...], float]]:
    """The numbers of Apertus' activation function, which it has learned."""
    constants: dict[str, tuple[tuple[int, ...], float]] = {}
    for key, shape in {"alpha_n": (1,), "alpha_p": (1,), "beta": (), "eps": ()}.items():
        values = cast("object", s.contents.settings.get(f"xielu.{key}"))
        numbers = cast("tuple[object, ...]", values) if isinstance(values, tuple) else (values,) * s.depth
        if len(numbers) != s.depth or not all(isinstance(number, float) for number in numbers):
            raise bad(s.contents.path, f"does not have a number xielu.{key} for each layer")
        for layer, number in enumerate(cast("tuple[float, ...]", numbers)):
            constants[f"{BLOCKS}.{layer}.mlp.act_fn.{key}"] = (shape, number)
    return constants


_LLAMA = decoder("llama", "LlamaForCausalLM", configs.llama, DENSE | PAIRS)
#: Another model that llama.cpp files under "llama", and one under "mistral3".
MISTRAL = decoder("mistral", "MistralForCausalLM", configs.mistral, DENSE | PAIRS)

_FALCON = Architecture(
    "falcon",
    "FalconForCausalLM",
    configs.falcon,
    _BLOOM_NAMES | {"output": "lm_head"},
    "transformer.h",
    _BLOOM_LEAVES | {"attn_qkv": Leaf("self_attention.query_key_value", rows="groups")},
)
#: The larger ones have norms of their own before attention and before the MLP.
FALCON_TWO_NORMS = replace(
    _FALCON, leaves={**_FALCON.leaves, "attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}
)

_OLMO2 = decoder("olmo2", "Olmo2ForCausalLM", plain, DENSE | QK_NORM | NORMS_AROUND)
OLMO3 = replace(_OLMO2, model_type="olmo3", class_name="Olmo3ForCausalLM", describe=configs.olmo3)

_GEMMA3 = decoder(
    "gemma3_text", "Gemma3ForCausalLM", configs.gemma3, DENSE | QK_NORM | NORMS_AROUND, raised_norms=True
)
_PER_LAYER_NAMES = {
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}
_PER_LAYER = {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
_QWEN3 = decoder("qwen3", "Qwen3ForCausalLM", configs.qwen3, DENSE | QK_NORM)
_QWEN2 = decoder("qwen2", "Qwen2ForCausalLM", configs.qwen2)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral3": decoder("ministral3", "Ministral3ForCausalLM", configs.ministral3, DENSE | PAIRS),
    "qwen2": _QWEN2,
    # The language half of a model of images; for texts it is the same.
    "qwen2vl": _QWEN2,
    "qwen3": _QWEN3,
    "qwen3vl": _QWEN3,
    "gemma": decoder("gemma", "GemmaForCausalLM", configs.gemma, raised_norms=True),
    "gemma2": decoder("gemma2", "Gemma2ForCausalLM", configs.gemma2, DENSE | NORMS_AROUND, raised_norms=True),
    "gemma3": _GEMMA3,
    "gemma-embedding": replace(
        _GEMMA3,
        class_name="Gemma3TextModel",
        describe=configs.gemma_embedding,
        names={"token_embd": "embed_tokens", "output_norm": "norm"},
        blocks="layers",
    ),
    "gemma3n": Architecture(
        "gemma3n_text",
        "Gemma3nForCausalLM",
        configs.gemma3n,
        NAMES
        | _PER_LAYER_NAMES
        | {
            "altup_proj": "model.altup_projections.{}",
            "altup_unembd_proj": "model.altup_unembed_projections.{}",
        },
        BLOCKS,
        DENSE
        | QK_NORM
        | NORMS_AROUND
        | _PER_LAYER
        | {
            "altup_correct_coef": "altup.correction_coefs",
            "altup_correct_scale": Leaf("altup.correct_output_scale", weight=""),
            "altup_predict_coef": "altup.prediction_coefs",
            "altup_router": "altup.modality_router",
            "altup_router_norm": "altup.router_norm",
            "laurel_l": "laurel.linear_left",
            "laurel_r": "laurel.linear_right",
            "laurel_post_norm": "laurel.post_laurel_norm",
        },
    ),
    "gemma4": Architecture(
        "gemma4_text",
        "Gemma4ForCausalLM",
        configs.gemma4,
        NAMES | _PER_LAYER_NAMES,
        BLOCKS,
        DENSE
        | QK_NORM
        | NORMS_AROUND
        | _PER_LAYER
        | {
            "layer_output_scale": Leaf("layer_scalar", weight=""),
            "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
            "post_ffw_norm_1": "post_feedforward_layernorm_1",
            "post_ffw_norm_2": "post_feedforward_layernorm_2",
            "ffn_gate_inp": "router.proj",
            "ffn_gate_inp.scale": "router.scale",
            "ffn_gate_up_exps": Leaf("experts.gate_up_proj", weight=""),
            "ffn_down_exps": Leaf("experts.down_proj", weight=""),
            "ffn_down_exps.scale": "router.per_expert_scale",
        },
    ),
    "phi2": Architecture(
        "phi",
        "PhiForCausalLM",
        configs.phi2,
        NAMES | {"output_norm": "model.final_layernorm"},
        BLOCKS,
        ATTENTION | {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
    ),
    "phi3": decoder(
        "phi3",
        "Phi3ForCausalLM",
        configs.phi3,
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            **_GATES_AND_UPS,
        },
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        configs.gpt2,
        _GPT2_NAMES,
        "transformer.h",
        _GPT2_LEAVES | {key: Leaf(_GPT2_LEAVES[key], turned=True) for key in _TURNED},
    ),
    "starcoder": Architecture(
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        configs.starcoder,
        _GPT2_NAMES,
        "transformer.h",
        _GPT2_LEAVES,
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
        _BLOOM_LEAVES
        | {
            "attn_qkv": Leaf("attention.query_key_value", rows="heads"),
            "attn_output": "attention.dense",
        },
    ),
    "falcon": _FALCON,
    "bloom": Architecture(
        "bloom",
        "BloomForCausalLM",
        configs.bloom,
        _BLOOM_NAMES,
        "transformer.h",
        _BLOOM_LEAVES | {"attn_qkv": Leaf("self_attention.query_key_value", rows="heads")},
        left_out=frozenset({"output"}),
    ),
    "mpt": Architecture(
        "mpt",
        "MptForCausalLM",
        configs.mpt,
        {"token_embd": "transformer.wte", "output_norm": "transformer.norm_f", "output": "lm_head"},
        "transformer.blocks",
        {
            "attn_norm": "norm_1",
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.out_proj",
            "ffn_norm": "norm_2",
            "ffn_up": "ffn.up_proj",
            "ffn_down": "ffn.down_proj",
        },
    ),
    "stablelm": decoder(
        "stablelm",
        "StableLmForCausalLM",
        configs.stablelm,
        DENSE
        | {
            "attn_q_norm": "self_attn.q_layernorm.norms.{}",
            "attn_k_norm": "self_attn.k_layernorm.norms.{}",
        },
    ),
    "starcoder2": decoder(
        "starcoder2",
        "Starcoder2ForCausalLM",
        configs.starcoder2,
        DENSE | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    ),
    "nemotron": decoder("nemotron", "NemotronForCausalLM", configs.nemotron, raised_norms=True),
    "command-r": decoder("cohere", "CohereForCausalLM", configs.command_r, DENSE | QK_NORM),
    "cohere2": decoder("cohere2", "Cohere2ForCausalLM", configs.cohere2),
    "olmo": decoder("olmo", "OlmoForCausalLM", configs.olmo, DENSE | PAIRS),
    "olmo2": _OLMO2,
    "granite": decoder("granite", "GraniteForCausalLM", configs.granite, DENSE | PAIRS),
    "smollm3": decoder("smollm3", "SmolLM3ForCausalLM", plain, DENSE | PAIRS),
    "arcee": decoder("arcee", "ArceeForCausalLM", configs.arcee, DENSE | PAIRS),
    "apertus": replace(
        decoder(
            "apertus",
            "ApertusForCausalLM",
            configs.apertus,
            DENSE | QK_NORM | {"attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"},
        ),
        constants=_xielu,
    ),
    "seed_oss": decoder(
        "seed_oss",
        "SeedOssForCausalLM",
        configs.seed_oss,
        ATTENTION | {"post_attention_norm": "post_attention_layernorm"} | MLP,
    ),
    "glm4": decoder(
        "glm4",
        "Glm4ForCausalLM",
        configs.glm4,
        ATTENTION
        | {
            "post_attention_norm": "post_self_attn_layernorm",
            "ffn_norm": "post_attention_layernorm",
            **_GATES_AND_UPS,
            "post_ffw_norm": "post_mlp_layernorm",
        },
    ),
    "chatglm": decoder(
        "glm",
        "GlmForCausalLM",
        configs.glm,
        ATTENTION
        | {
            "ffn_norm": "post_attention_layernorm",
            **_GATES_AND_UPS,
        },
    ),
    "ernie4_5": decoder("ernie4_5", "Ernie4_5ForCausalLM", configs.ernie4_5),
    "exaone4": decoder("exaone4", "Exaone4ForCausalLM", configs.exaone4, DENSE | QK_NORM | NORMS_AROUND),
    "hunyuan-dense": decoder(
        "hunyuan_v1_dense",
        "HunYuanDenseV1ForCausalLM",
        configs.hunyuan,
        DENSE | {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
    ),
    "jais2": decoder("jais2", "Jais2ForCausalLM", configs.jais2),
}
