"""Real models, small enough to make in a moment: written by transformers, not by us."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


def llama(
    folder: Path, seed: int, *, layers: int = 4, hidden: int = 32, vocab: int = 64, dtype: str = "float32"
) -> Path:
    """A Llama of random weights, saved by transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def gpt2(folder: Path, seed: int) -> Path:
    """A GPT-2 of random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=32)
    ).save_pretrained(folder)
    return folder


def bert(folder: Path, seed: int) -> Path:
    """A BERT encoder of random weights."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model folder, read by the safetensors library."""
    index = folder / "model.safetensors.index.json"
    files = (
        sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if index.exists()
        else ["model.safetensors"]
    )
    result: dict[str, Tensor] = {}
    for file in files:
        with safe_open(folder / file, framework="pt") as f:
            result |= {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - not a mapping
    return result
