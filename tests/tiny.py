"""Real models, small enough to make in a moment: written by transformers, not by us."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
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


def decoder(
    folder: Path,
    seed: int = 0,
    *,
    layers: int = 2,
    hidden: int = 4,
    vocab: int = 6,
    dtype: torch.dtype = torch.float32,
    extra: dict[str, Tensor] | None = None,
    without: tuple[str, ...] = (),
    **config: object,
) -> Path:
    """Names and configuration of a small Llama, written tensor by tensor: made in a millisecond.

    Args:
        folder: where.
        seed: of the weights.
        layers, hidden, vocab, dtype: of the model.
        extra: more tensors.
        without: names left out.
        config: more entries of config.json.
    """
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (hidden,)
        shapes[f"model.layers.{i}.self_attn.q_proj.weight"] = (hidden, hidden)
        shapes[f"model.layers.{i}.mlp.up_proj.weight"] = (2 * hidden, hidden)
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    generator = torch.Generator().manual_seed(seed)
    weights = {
        n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items() if n not in without
    }
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "tie_word_embeddings": False,
    }
    return stored(folder, weights | (extra or {}), settings | config)


def stored(folder: Path, weights: dict[str, Tensor], config: dict[str, object] | None = None) -> Path:
    """A model folder of exactly these tensors, in the order of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def adapter(folder: Path, weights: dict[str, tuple[int, int]], *, rank: int = 2, alpha: float = 4) -> Path:
    """A LoRA adapter for linear layers, given as {module: (rows, columns)}."""
    generator = torch.Generator().manual_seed(7)
    factors: dict[str, Tensor] = {}
    for module, (rows, columns) in weights.items():
        factors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        factors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
