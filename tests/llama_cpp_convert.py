"""Converts models with llama.cpp's own program; run by itself, for it has a gguf package of its own.

Published models have settings that transformers does not write; they are given here.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

SOURCE, *FOLDERS = sys.argv[1:]
sys.path[:0] = [SOURCE, f"{SOURCE}/gguf-py"]

import gguf  # noqa: E402
import torch  # noqa: E402
from conversion import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    ModelBase,
    ModelType,
    get_model_architecture,
    get_model_class,
)

MORE: dict[str, dict[str, Any]] = {
    "cohere2": {"rotary_pct": 1.0},
    "eurobert": {"classifier_pooling": "mean"},
    "falcon-7b": {"num_kv_heads": None},
    "gpt2": {"n_ctx": 128},
    "gptneox": {"rotary_pct": 0.5},
    "granitehybrid": {"layer_types": ["mamba", "attention", "mamba", "mamba"]},
    "granitehybrid-dense": {"layer_types": ["mamba", "attention", "mamba", "mamba"]},
    "hunyuan-moe": {"moe_intermediate_size": [96, 96], "moe_topk": [2, 2], "num_shared_expert": [1, 1]},
    "jina-bert-v3": {"architectures": ["XLMRobertaModel"], "lora_adaptations": ["retrieval"]},
    "kimi-linear": {
        "linear_attn_config": {
            "full_attn_layers": [2],
            "kda_layers": [1, 3],
            "head_dim": 16,
            "num_heads": 4,
            "short_conv_kernel_size": 4,
        },
        "num_experts_per_token": 2,
        "num_experts": 4,
        "moe_intermediate_size": 32,
        "num_shared_experts": 1,
        "first_k_dense_replace": 0,
    },
    "mimo2": {
        "hybrid_layer_pattern": [0, 1, 1],
        "topk_method": "noaux_tc",
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 32,
        "swa_num_attention_heads": 4,
        "swa_v_head_dim": 16,
        "num_key_value_heads": 1,
        "attention_value_scale": 0.707,
        "partial_rotary_factor": 0.25,
        "rope_parameters": None,
        "rope_theta": 5e6,
        "swa_rope_theta": 1e4,
    },
    "mistral4": {"architectures": ["Mistral3ForConditionalGeneration"]},
    "mpt": {"architectures": ["MPTForCausalLM"]},
    "nemotron_h": {"num_experts_per_tok": None},
    "nomic-bert": {
        "n_positions": 8192,
        "max_trained_positions": 2048,
        "activation_function": "swiglu",
        "causal": False,
        "qkv_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "prenorm": False,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "n_embd": 64,
        "n_inner": 96,
        "n_head": 4,
        "n_layer": 2,
    },
    "phimoe": {"architectures": ["PhiMoEForCausalLM"]},
}
#: Such as end without a block that predicts further tokens.
NO_MTP = ("qwen3next", "qwen35", "qwen35moe")


def convert(folder: Path) -> None:
    """Convert the model of a folder."""
    key = folder.name
    more = MORE.get(key, {})
    hparams = ModelBase.load_hparams(folder, False) | more
    for name, value in more.items():
        if value is None and key != "nomic-bert":
            del hparams[name]
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {"model": {"type": "WordPiece", "vocab": {str(i): i for i in range(64)}}, "added_tokens": []}
        )
    )
    kind = get_model_class(get_model_architecture(hparams, ModelType.TEXT))

    def set_vocab(self: Any) -> None:
        model = "t5" if key == "xlm-roberta" else "none"
        self.gguf_writer.add_tokenizer_model(model)
        self.gguf_writer.add_tokenizer_pre("glm4" if key == "glm4-moe-lite" else "none")
        self.gguf_writer.add_pad_token_id(hparams.get("pad_token_id") or 0)

    methods = {"model_arch": kind.model_arch, "set_vocab": set_vocab}
    if key in NO_MTP:
        methods["no_mtp"] = True
    own = type(kind.__name__, (kind,), methods)
    model = own(folder, gguf.LlamaFileType.ALL_F32, folder / "llama_cpp.gguf", eager=True, hparams=hparams)
    if hasattr(model, "impl"):
        model.impl.set_vocab = lambda: None
    model.write()


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    for folder in map(Path, FOLDERS):
        print(folder.name, file=sys.stderr)
        convert(folder)


main()
