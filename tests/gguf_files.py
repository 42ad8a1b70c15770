"""GGUF files made by the gguf package, and what is read of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from torch import Tensor

from meldkit.checkpoint import TensorInfo, open_files, read_all
from meldkit.checkpoint.gguf import read_gguf, write_generation_config, write_tokenizer
from meldkit.errors import CheckpointError


def write_gguf(
    path: Path,
    architecture: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    each: int = 0,
) -> Path:
    """A file made by the gguf package.

    Args:
        path: where.
        architecture: llama.cpp's.
        keys: settings; those without a known first part get the architecture's.
        tensors: float32, by llama.cpp's names; raw bytes where `kinds` says so.
        kinds: of tensors that are given as raw bytes.
        each: how many tensors are in a part, if the model is split.

    Returns:
        The file; the first one, if the model is split.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=each)
    for key, value in keys.items():
        whole = (
            key if key.startswith(("general.", "tokenizer.", "split.", "xielu.")) else f"{architecture}.{key}"
        )
        if isinstance(value, list):
            writer.add_array(whole, value)
        elif isinstance(value, bool):
            writer.add_bool(whole, value)
        elif isinstance(value, str):
            writer.add_string(whole, value)
        elif isinstance(value, float):
            writer.add_float32(whole, value)
        else:
            writer.add_uint32(whole, value)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values), raw_dtype=(kinds or {}).get(name))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(path.parent.glob(f"{path.stem}-*")) if each else path


LLAMA_KEYS: dict[str, Any] = {
    "context_length": 64,
    "embedding_length": 64,
    "block_count": 1,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500000.0,
}


def llama_tensors(seed: int = 0, hidden: int = 64) -> dict[str, np.ndarray[Any, Any]]:
    """A Llama of one block, by llama.cpp's names."""
    rng = np.random.default_rng(seed)
    shapes = {
        "token_embd.weight": (32, hidden),
        "blk.0.attn_norm.weight": (hidden,),
        "blk.0.attn_q.weight": (hidden, hidden),
        "blk.0.attn_k.weight": (hidden // 2, hidden),
        "blk.0.attn_v.weight": (hidden // 2, hidden),
        "blk.0.attn_output.weight": (hidden, hidden),
        "blk.0.ffn_norm.weight": (hidden,),
        "blk.0.ffn_gate.weight": (2 * hidden, hidden),
        "blk.0.ffn_up.weight": (2 * hidden, hidden),
        "blk.0.ffn_down.weight": (hidden, 2 * hidden),
        "output_norm.weight": (hidden,),
    }
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def values(info: TensorInfo) -> Tensor:
    with open_files() as files:
        return read_all(files, info)


def all_values(path: Path) -> dict[str, Tensor]:
    return {name: values(info) for name, info in read_gguf(path).tensors.items()}


TEXTS = [
    "Hello, world! It's 12345 o'clock; we'll see.\n\n  Two  spaces\tand a tab.",
    "naïve café – ½ Größe 你好，世界 🎉 \r\n /path/to  x=3.14e-10",
    "<|turn|>user<think>no</think>   ",
    "DON'T SHOUT camelCaseWords   \n",
    "",
]


def tokenizers(path: Path, folder: Path) -> tuple[Any, Any]:
    """Ours, and the one that transformers makes of the file."""
    from transformers import AutoTokenizer

    folder.mkdir()
    write_tokenizer(path, folder)
    write_generation_config(path, folder)
    return AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name
    )


def refusal(path: Path) -> str:
    """The one line that reading a file ends with."""
    with pytest.raises(CheckpointError) as caught:
        read_gguf(path)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message
