"""Encoders, and models with an encoder and a decoder."""

from __future__ import annotations

from dataclasses import replace

from meldkit.checkpoint.gguf.architectures.architecture import Architecture, Leaf
from meldkit.checkpoint.gguf.architectures.leaves import DENSE
from meldkit.checkpoint.gguf.configs import encoders as configs

_EMBEDDINGS: dict[str, str | Leaf] = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "position_embd": "embeddings.position_embeddings",
}
_BERT = Architecture(
    "bert",
    "BertModel",
    configs.bert,
    _EMBEDDINGS,
    "encoder.layer",
    {
        "attn_q": "attention.self.query",
        "attn_k": "attention.self.key",
        "attn_v": "attention.self.value",
        "attn_output": "attention.output.dense",
        "attn_output_norm": "attention.output.LayerNorm",
        "ffn_up": "intermediate.dense",
        "ffn_down": "output.dense",
        "layer_output_norm": "output.LayerNorm",
    },
)
#: Another model that llama.cpp files under "bert".
XLM_ROBERTA = replace(
    _BERT,
    model_type="xlm-roberta",
    class_name="XLMRobertaModel",
    describe=configs.xlm_roberta,
    names=_EMBEDDINGS
    | {"position_embd": Leaf("embeddings.position_embeddings", padding=configs.ROBERTA_PADDING)},
)
#: Names of before there was a class for them; transformers knows them too.
_FLASH_NAMES = _EMBEDDINGS | {"token_embd_norm": "emb_ln"}
_FLASH_NORMS = {"attn_output_norm": "norm1", "layer_output_norm": "norm2"}

_SELF = {"attn_q": "SelfAttention.q", "attn_k": "SelfAttention.k", "attn_v": "SelfAttention.v"}
_OTHER = {"attn_o": "SelfAttention.o", "attn_rel_b": "SelfAttention.relative_attention_bias"}
_T5_ATTENTION = {
    key: f"layer.0.{name}" for key, name in (_SELF | _OTHER | {"attn_norm": "layer_norm"}).items()
}
_T5_MLP = {"ffn_gate": "wi_0", "ffn_up": "wi_1", "ffn_down": "wo"}


def _t5_mlp(layer: int) -> dict[str, str]:
    dense = {key: f"layer.{layer}.DenseReluDense.{name}" for key, name in _T5_MLP.items()}
    return dense | {"ffn_norm": f"layer.{layer}.layer_norm"}


_ENCODER = _T5_ATTENTION | _t5_mlp(1)
_DECODER = (
    _T5_ATTENTION
    | {f"cross_attn_{x}": f"layer.1.EncDecAttention.{x}" for x in "qkvo"}
    | {
        "cross_attn_norm": "layer.1.layer_norm",
        "cross_attn_rel_b": "layer.1.EncDecAttention.relative_attention_bias",
    }
    | _t5_mlp(2)
)
_T5 = Architecture(
    "t5",
    "T5ForConditionalGeneration",
    configs.t5,
    {
        "token_embd": "shared",
        "enc.output_norm": "encoder.final_layer_norm",
        "dec.output_norm": "decoder.final_layer_norm",
        "output": "lm_head",
    },
    "{stack}.block",
    {f"enc.{key}": name for key, name in _ENCODER.items()}
    | {f"dec.{key}": name for key, name in _DECODER.items()},
)
#: The first ones have no gates, and names without numbers.
T5_WITHOUT_GATES = replace(
    _T5,
    leaves={
        **_T5.leaves,
        "enc.ffn_up": "layer.1.DenseReluDense.wi",
        "dec.ffn_up": "layer.2.DenseReluDense.wi",
    },
)
UMT5 = replace(_T5, model_type="umt5", class_name="UMT5ForConditionalGeneration")
_T5_ENCODER = replace(_T5, class_name="T5EncoderModel", describe=configs.t5encoder)
T5_ENCODER_WITHOUT_GATES = replace(T5_WITHOUT_GATES, class_name="T5EncoderModel", describe=configs.t5encoder)
UMT5_ENCODER = replace(UMT5, class_name="UMT5EncoderModel", describe=configs.t5encoder)

ARCHITECTURES: dict[str, Architecture] = {
    "bert": _BERT,
    "nomic-bert": Architecture(
        "nomic_bert",
        "NomicBertModel",
        configs.rotated,
        _FLASH_NAMES,
        "encoder.layers",
        {
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.out_proj",
            "ffn_up": "mlp.fc11",
            "ffn_gate": "mlp.fc12",
            "ffn_down": "mlp.fc2",
            **_FLASH_NORMS,
        },
    ),
    "jina-bert-v3": Architecture(
        "jina_embeddings_v3",
        "JinaEmbeddingsV3Model",
        configs.rotated,
        _FLASH_NAMES,
        "encoder.layers",
        {
            "attn_qkv": "mixer.Wqkv",
            "attn_output": "mixer.out_proj",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
            **_FLASH_NORMS,
        },
    ),
    "modern-bert": Architecture(
        "modernbert",
        "ModernBertModel",
        configs.modern_bert,
        {
            "token_embd": "embeddings.tok_embeddings",
            "token_embd_norm": "embeddings.norm",
            "output_norm": "final_norm",
        },
        "layers",
        {
            "attn_norm": "attn_norm",
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.Wo",
            "ffn_norm": "mlp_norm",
            "ffn_up": "mlp.Wi",
            "ffn_down": "mlp.Wo",
        },
    ),
    "eurobert": Architecture(
        "eurobert",
        "EuroBertModel",
        configs.eurobert,
        {"token_embd": "embed_tokens", "output_norm": "norm"},
        "layers",
        DENSE,
    ),
    "t5": _T5,
    "t5encoder": _T5_ENCODER,
}
