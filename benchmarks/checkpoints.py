"""Makes the checkpoints to merge: a random Llama-shaped base and siblings that differ by about 1 %.

Numbers are drawn per tensor from a generator keyed by (seed, model, tensor) and written in small pieces, so
the files come out the same whatever the number of threads, and memory stays small. As a program it makes
those that are not there yet:

    python benchmarks/checkpoints.py full .cache/bench/full base sibling-1
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SEED = 20260101
WEIGHT_STD = 0.02  # initializer_range of Llama's config
SIBLING_NOISE = 0.01  # standard deviation of sibling - base, relative to that of the base
PIECE = 1 << 18  # elements drawn at a time: stays in cache
SHARD_BYTES = 5e9  # largest weight file, as transformers has long written them
BASE = "base"


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every weight, in the order in which safetensors files are laid out."""
        hidden, kv = self.hidden, self.hidden // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {
            "lm_head.weight": (self.vocab, hidden),
            "model.embed_tokens.weight": (self.vocab, hidden),
            "model.norm.weight": (hidden,),
        }
        for layer in range(self.layers):
            shapes |= {
                f"model.layers.{layer}.{leaf}.weight": shape
                for leaf, shape in {
                    "input_layernorm": (hidden,),
                    "post_attention_layernorm": (hidden,),
                    "mlp.down_proj": (hidden, self.intermediate),
                    "mlp.gate_proj": (self.intermediate, hidden),
                    "mlp.up_proj": (self.intermediate, hidden),
                    "self_attn.k_proj": (kv, hidden),
                    "self_attn.o_proj": (hidden, hidden),
                    "self_attn.q_proj": (hidden, hidden),
                    "self_attn.v_proj": (kv, hidden),
                }.items()
            }
        return dict(sorted(shapes.items()))

    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors().values())

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "initializer_range": WEIGHT_STD,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


#: By name, from 1 MB to 16 GB each. Shapes are those of real models where there is one of the size.
SIZES = {
    "tiny": Shape(layers=2, hidden=64, intermediate=256, heads=4, kv_heads=2, vocab=3000),
    "small": Shape(layers=8, hidden=768, intermediate=2048, heads=12, kv_heads=4, vocab=32000),  # 0.1 B
    "medium": Shape(layers=20, hidden=1024, intermediate=2816, heads=16, kv_heads=4, vocab=32000),  # 0.3 B
    "full": Shape(
        layers=22, hidden=2048, intermediate=5632, heads=32, kv_heads=4, vocab=32000
    ),  # 1.1 B, TinyLlama's
    "big": Shape(
        layers=28, hidden=3072, intermediate=8192, heads=24, kv_heads=8, vocab=32000
    ),  # 3.0 B, the layers of Llama-3.2-3B
    "large": Shape(
        layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, vocab=128256
    ),  # 8.0 B, Llama-3.1-8B's
}


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A safetensors file: its header, length field included, and the offset of each tensor."""

    name: str
    head: bytes
    offsets: dict[str, int]
    size: int


def weight_files(shape: Shape, shard_bytes: float = SHARD_BYTES) -> list[WeightFile]:
    """The files of a model, none of more than `shard_bytes` of weights."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, dims in shape.tensors().items():
        nbytes = 2 * math.prod(dims)
        if shards[-1] and filled + nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = dims
        filled += nbytes
    if len(shards) == 1:
        return [weight_file("model.safetensors", shards[0])]
    return [
        weight_file(f"model-{i:05}-of-{len(shards):05}.safetensors", shard)
        for i, shard in enumerate(shards, start=1)
    ]


def weight_file(filename: str, tensors: Mapping[str, tuple[int, ...]]) -> WeightFile:
    """One file of these tensors, one after the other."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    position = 0
    for name, dims in tensors.items():
        starts[name], end = position, position + 2 * math.prod(dims)
        entries[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    offsets = {name: len(head) + start for name, start in starts.items()}
    return WeightFile(filename, head, offsets, len(head) + position)


def index(shape: Shape) -> dict[str, Any]:
    """What model.safetensors.index.json says of a model of several files."""
    names = {name: file.name for file in weight_files(shape) for name in file.offsets}
    return {"metadata": {"total_size": 2 * shape.num_parameters()}, "weight_map": names}


def spec(shape: Shape, model: str) -> dict[str, object]:
    return {"model": model, "seed": SEED, "std": WEIGHT_STD, "noise": SIBLING_NOISE, **asdict(shape)}


def marker_file(folder: Path, model: str) -> Path:
    """Says what a model was made from; written last, so that a model that has one is complete."""
    return folder / f"{model}.json"


def paths(folder: Path, shape: Shape, model: str) -> list[Path]:
    """The weight files of a model."""
    return [folder / model / file.name for file in weight_files(shape)]


def is_complete(folder: Path, shape: Shape, model: str) -> bool:
    marker = marker_file(folder, model)
    if not marker.exists() or json.loads(marker.read_text()) != spec(shape, model):
        return False
    sizes = {folder / model / file.name: file.size for file in weight_files(shape)}
    return all(path.exists() and path.stat().st_size == size for path, size in sizes.items())


def missing(folder: Path, shape: Shape, models: Sequence[str]) -> list[str]:
    return [model for model in models if not is_complete(folder, shape, model)]


def tokenizer_files(vocab: int) -> dict[str, dict[str, Any]]:
    """A word-level tokenizer with as many tokens as the embedding has rows."""
    special = ["<unk>", "<s>", "</s>"]
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, token in enumerate(special)
    ]
    tokens = special + [f"token{i}" for i in range(len(special), vocab)]
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {token: i for i, token in enumerate(tokens)},
                "unk_token": "<unk>",
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "model_max_length": 2048,
        },
    }


def write_weights(folder: Path, shape: Shape, model: str) -> None:
    """Write one model's weights a piece at a time; a sibling reads those of the base, and adds noise."""
    import numpy as np
    import torch

    torch.set_num_threads(1)  # the pool below keeps every core busy
    mine = threading.local()

    def draw(generator: np.random.Generator, count: int) -> torch.Tensor:
        if not hasattr(mine, "buffer"):
            mine.buffer = np.empty(PIECE, np.float32)
        piece: np.ndarray[tuple[int], np.dtype[np.float32]] = mine.buffer[:count]
        generator.standard_normal(out=piece, dtype=np.float32)
        return torch.from_numpy(piece)

    def write_tensor(file: int, base_file: int, offset: int, number: int, dims: tuple[int, ...]) -> None:
        generator = np.random.Generator(np.random.SFC64([SEED, model_number(model), number]))
        numel = math.prod(dims)
        for start in range(0, numel, PIECE):
            count, at = min(PIECE, numel - start), offset + 2 * start
            weight = draw(generator, count)
            if model != BASE:
                base = torch.frombuffer(bytearray(os.pread(base_file, 2 * count, at)), dtype=torch.bfloat16)
                weight.mul_(WEIGHT_STD * SIBLING_NOISE).add_(base)
            elif len(dims) == 1:
                weight.mul_(WEIGHT_STD).add_(1)  # norms sit around one
            else:
                weight.mul_(WEIGHT_STD)
            data = weight.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
            if os.pwrite(file, data, at) != len(data):
                raise OSError(f"short write of {folder / model}; is the disk full?")

    shapes = shape.tensors()
    numbers = {name: number for number, name in enumerate(shapes)}
    for weights in weight_files(shape):
        file = os.open(folder / model / weights.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        base_file = os.open(folder / BASE / weights.name, os.O_RDONLY)
        try:
            os.pwrite(file, weights.head, 0)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = [
                    pool.submit(write_tensor, file, base_file, offset, numbers[name], shapes[name])
                    for name, offset in weights.offsets.items()
                ]
                for job in jobs:
                    job.result()
        finally:
            os.close(file)
            os.close(base_file)


def model_number(model: str) -> int:
    """0 for the base, else the sibling's number."""
    return 0 if model == BASE else int(model.rpartition("-")[2])


def make(folder: Path, shape: Shape, models: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Make the checkpoints that are missing from `folder`, the base first; yields (model, seconds taken)."""
    for model in sorted(missing(folder, shape, models), key=model_number):
        begin = time.perf_counter()
        target = folder / model
        marker_file(folder, model).unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        (target / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
        for name, content in tokenizer_files(shape.vocab).items():
            (target / name).write_text(json.dumps(content) + "\n")
        if len(weight_files(shape)) > 1:
            (target / "model.safetensors.index.json").write_text(json.dumps(index(shape), indent=2) + "\n")
        write_weights(folder, shape, model)
        marker_file(folder, model).write_text(json.dumps(spec(shape, model)) + "\n")
        yield model, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the benchmark's checkpoints.")
    parser.add_argument("size", choices=list(SIZES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+", help="base, sibling-1, sibling-2, … (siblings need the base)")
    args = parser.parse_args()
    for model, seconds in make(args.folder, SIZES[args.size], args.models):
        print(f"made {args.folder / model} in {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
