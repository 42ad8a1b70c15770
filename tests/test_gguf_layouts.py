"""How GGUF files store tensors: quantised, in the ways of older files, and such as fit no model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gguf_files import LLAMA_KEYS, all_values, llama_tensors, refusal, values, write_gguf
from gguf_made import Made, maker
from meldkit.checkpoint import Scratch, TensorInfo, open_files
from meldkit.checkpoint.gguf import read_gguf
from meldkit.checkpoint.gguf.architectures import ARCHITECTURES, REFUSED
from meldkit.errors import FormatError


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    return maker(tmp_path_factory)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=2e-7, msg=name)


# ---- quantised


def quantised(made: Made, kind: GGMLQuantizationType) -> Path:
    """A file with everything in blocks that llama.cpp would quantise."""
    tensors, kinds = dict(made.tensors), {}
    for name, array in made.tensors.items():
        if array.ndim > 1 and array.shape[-1] % 32 == 0 and "norm" not in name:
            tensors[name], kinds[name] = gguf.quants.quantize(array, kind), kind
    return made.written("quantised.gguf", tensors=tensors, kinds=kinds)


#: Whatever rearranges or joins tensors; with the kind of numbers that the published file of gpt-oss has.
QUANTISED = {
    "gpt-oss": GGMLQuantizationType.MXFP4,
    **dict.fromkeys(
        (
            "bloom",
            "chatglm",
            "dbrx",
            "deepseek-v3",
            "falcon-40b",
            "falcon-7b",
            "glm4moe",
            "gpt2",
            "granitemoe",
            "llama",
            "llama4",
            "mamba2",
            "minimax-m2",
            "qwen2moe",
            "qwen35moe",
            "qwen3next",
        ),
        GGMLQuantizationType.Q8_0,
    ),
}


@pytest.mark.parametrize("key", QUANTISED)
def test_quantised_tensors_come_to_the_same_places(key: str, make: Callable[[str], Made]) -> None:
    """Converted once more, what is read gives the numbers of the file."""
    made = make(key)
    path = quantised(made, QUANTISED[key])
    found = all_values(path)
    assert found.keys() == made.weights.keys()
    back = made.converted(found)
    reader = gguf.GGUFReader(path)
    assert back.keys() == {tensor.name for tensor in reader.tensors}
    blocks = 0
    for tensor in reader.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        blocks += tensor.tensor_type == QUANTISED[key]
        np.testing.assert_allclose(
            back[tensor.name].reshape(expected.shape), expected, rtol=1e-6, atol=2e-7, err_msg=tensor.name
        )
    assert blocks > 4


@pytest.fixture(scope="module")
def tiled(make: Callable[[str], Made]) -> dict[str, tuple[TensorInfo, Tensor]]:
    """Quantised tensors of several models that are not read as they are stored."""
    found: dict[str, tuple[TensorInfo, Tensor]] = {}
    for key in (
        "gpt-oss",
        "llama4",
        "deepseek-v3",
        "granitemoe",
        "qwen3next",
        "qwen35moe",
        "apertus",
        "xlm-roberta",
    ):
        made = make(key)
        path = quantised(made, QUANTISED.get(key, GGMLQuantizationType.Q8_0))
        for name, info in read_gguf(path).tensors.items():
            if info.encoding is not None and (len(found) < 12 or ".0." in name):
                found[f"{key} {name}"] = info, values(info).flatten()
    return found


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_tiles_do_not_show(tiled: dict[str, tuple[TensorInfo, Tensor]], data: st.DataObject) -> None:
    info, expected = tiled[data.draw(st.sampled_from(list(tiled)))]
    start = data.draw(st.integers(0, info.numel - 1))
    stop = data.draw(st.integers(start + 1, info.numel))
    out = torch.full((stop - start,), torch.nan)
    with open_files() as files:
        info.open(files).read(start, stop, out, Scratch())
    assert torch.equal(out, expected[start:stop])


# ---- other ways of storing the same


@pytest.mark.parametrize("key", ["qwen3moe", "deepseek-v3", "glm4moe", "granitemoe", "llama4"])
def test_gates_and_ups_in_one(key: str, make: Callable[[str], Made]) -> None:
    made = make(key)
    tensors = dict(made.tensors)
    for name in made.tensors:
        if name.endswith("ffn_gate_exps.weight"):
            up = name.replace("gate", "up")
            both = np.concatenate([tensors.pop(name), tensors.pop(up)], 1)
            tensors[name.replace("gate", "gate_up")] = both
    assert len(tensors) < len(made.tensors)
    same(all_values(made.written("fused.gguf", tensors=tensors)), made.weights)


@pytest.mark.parametrize(
    "key", ["llama", "llama-biases", "qwen3", "gemma4", "gemma3n", "mimo2", "jamba", "chatglm"]
)
@pytest.mark.parametrize("kind", [None, GGMLQuantizationType.Q8_0])
def test_queries_keys_and_values_in_one(
    key: str, kind: GGMLQuantizationType | None, make: Callable[[str], Made]
) -> None:
    made = make(key)
    tensors, kinds = dict(made.tensors), {}
    expected = dict(made.weights)
    for name in made.tensors:
        parts = [name.replace("attn_q.", f"attn_{which}.") for which in "qkv"]
        if "attn_q." in name and tensors.keys() >= set(parts):
            whole = np.concatenate([tensors.pop(part) for part in parts])
            fused = name.replace("attn_q.", "attn_qkv.")
            tensors[fused] = whole
            if kind is not None and whole.ndim == 2:
                tensors[fused], kinds[fused] = gguf.quants.quantize(whole, kind), kind
    assert len(tensors) < len(made.tensors)
    found = all_values(made.written("fused.gguf", tensors=tensors, kinds=kinds))
    if kind is None:
        same(found, expected)
    else:
        assert kinds
        again = made.converted(found)
        for fused in kinds:
            parts = [again[fused.replace("attn_qkv.", f"attn_{which}.")] for which in "qkv"]
            whole = gguf.quants.dequantize(tensors[fused], kind)
            np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("key", ["deepseek-v2", "deepseek-v3"])
def test_keys_and_values_expanded_together(key: str, make: Callable[[str], Made]) -> None:
    made = make(key)
    tensors = {
        name: a for name, a in made.tensors.items() if "attn_k_b" not in name and "attn_v_b" not in name
    }
    for name, weight in made.weights.items():
        if "kv_b_proj" in name:
            tensors[f"blk.{name.split('.')[2]}.attn_kv_b.weight"] = weight.numpy()
    same(all_values(made.written("old.gguf", tensors=tensors)), made.weights)


def test_state_spaces_inputs_in_one(make: Callable[[str], Made]) -> None:
    made = make("qwen3next")
    tensors = dict(made.tensors)
    for name, weight in made.weights.items():
        if "in_proj_qkvz" in name:
            block = f"blk.{name.split('.')[2]}"
            del tensors[f"{block}.attn_qkv.weight"], tensors[f"{block}.attn_gate.weight"]
            tensors[f"{block}.ssm_in.weight"] = weight.numpy()
    same(all_values(made.written("old.gguf", tensors=tensors)), made.weights)


def test_experts_one_by_one_are_refused(make: Callable[[str], Made]) -> None:
    made = make("mixtral")
    tensors = dict(made.tensors)
    stack = tensors.pop("blk.0.ffn_up_exps.weight")
    tensors |= {f"blk.0.ffn_up.{i}.weight": matrix for i, matrix in enumerate(stack)}
    assert "has a tensor 'blk.0.ffn_up.0.weight', which has no known Hugging Face name" in refusal(
        made.written("old.gguf", tensors=tensors)
    )


# ---- blocks behind the last one


def more_blocks(made: Made, extra: dict[str, tuple[int, ...]]) -> tuple[Path, dict[str, Tensor]]:
    """A file with one more block, like its last one, and what that block has besides."""
    depth = made.config.num_hidden_layers
    generator = torch.Generator().manual_seed(7)
    added = {name: torch.randn(shape, generator=generator) for name, shape in extra.items()}
    tensors = made.tensors | {
        name.replace(f"blk.{depth - 1}.", f"blk.{depth}."): array
        for name, array in made.tensors.items()
        if name.startswith(f"blk.{depth - 1}.")
    }
    tensors |= {f"blk.{depth}.nextn.{name}.weight": tensor.numpy() for name, tensor in added.items()}
    keys = {"block_count": depth + 1, "nextn_predict_layers": 1}
    return made.written("more.gguf", keys=keys, tensors=tensors), added


@pytest.mark.parametrize("key", ["glm4moe", "deepseek-v3"])
def test_further_tokens_are_predicted_by_blocks_like_others(key: str, make: Callable[[str], Made]) -> None:
    made = make(key)
    depth = made.config.num_hidden_layers
    path, added = more_blocks(made, {"eh_proj": (64, 128), "enorm": (64,), "shared_head_norm": (64,)})
    last, behind = f"model.layers.{depth - 1}.", f"model.layers.{depth}."
    expected = made.weights | {
        name.replace(last, behind): tensor for name, tensor in made.weights.items() if name.startswith(last)
    }
    expected |= {
        f"{behind}{name.replace('shared_head_norm', 'shared_head.norm')}.weight": tensor
        for name, tensor in added.items()
    }
    same(all_values(path), expected)
    config = read_gguf(path).config
    assert (config["num_hidden_layers"], config["num_nextn_predict_layers"]) == (depth, 1)


@pytest.mark.parametrize("key", ["qwen35", "qwen35moe", "qwen3next"])
def test_further_tokens_are_predicted_by_a_module_of_its_own(key: str, make: Callable[[str], Made]) -> None:
    made = make(key)
    depth = made.config.num_hidden_layers
    path, added = more_blocks(made, {"eh_proj": (64, 128), "enorm": (64,), "shared_head_norm": (64,)})
    last = f"model.layers.{depth - 1}."
    expected = made.weights | {
        name.replace(last, "mtp.layers.0."): tensor
        for name, tensor in made.weights.items()
        if name.startswith(last)
    }
    expected |= {
        "mtp.fc.weight": added["eh_proj"],
        "mtp.pre_fc_norm_embedding.weight": added["enorm"] - 1,
        "mtp.norm.weight": added["shared_head_norm"] - 1,
    }
    same(all_values(path), expected)
    assert read_gguf(path).config["num_hidden_layers"] == depth


def test_further_tokens_of_mimo(make: Callable[[str], Made]) -> None:
    made = make("mimo2")
    depth = made.config.num_hidden_layers
    block, behind = f"blk.{depth}.", "model.mtp.layers.0."
    shapes = {
        "attn_norm.weight": ("input_layernorm.weight", (64,)),
        "attn_qkv.weight": ("", (4 * 32 + 2 * 32 + 2 * 16, 64)),
        "ffn_norm.weight": ("pre_mlp_layernorm.weight", (64,)),
        "layer_output_norm.weight": ("final_layernorm.weight", (64,)),
        "nextn.eh_proj.weight": ("eh_proj.weight", (64, 128)),
        "nextn.enorm.weight": ("enorm.weight", (64,)),
    }
    rng = np.random.default_rng(0)
    tensors = {block + name: rng.standard_normal(shape, np.float32) for name, (_, shape) in shapes.items()}
    keys: dict[str, Any] = {
        "block_count": depth + 1,
        "nextn_predict_layers": 1,
        "attention.head_count_kv": [*made.keys["attention.head_count_kv"], 2],
        "attention.sliding_window_pattern": [*made.keys["attention.sliding_window_pattern"], True],
    }
    expected = made.weights | {
        behind + name: torch.from_numpy(tensors[block + own]) for own, (name, _) in shapes.items() if name
    }
    qkv = torch.from_numpy(tensors[f"{block}attn_qkv.weight"]).split([128, 64, 32])
    expected |= {f"{behind}self_attn.{which}_proj.weight": w for which, w in zip("qkv", qkv, strict=True)}
    same(all_values(made.written("more.gguf", keys=keys, tensors=made.tensors | tensors)), expected)


def test_more_blocks_than_are_known(make: Callable[[str], Made]) -> None:
    path, _ = more_blocks(make("llama"), {"eh_proj": (64, 128)})
    assert "has a tensor 'blk.2.attn_" in refusal(path)


# ---- what does not fit


@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        ("gpt-oss", "blk.0.ffn_up_exps.weight", "does not have both parts of what would be"),
        ("gpt-oss", "blk.0.ffn_gate_exps.bias", "does not have both parts of what would be"),
        ("deepseek-v3", "blk.0.attn_k_b.weight", "does not have both parts of what would be"),
        ("qwen3next", "blk.0.attn_gate.weight", "does not have both parts of what would be"),
    ],
)
def test_half_of_a_tensor(key: str, name: str, message: str, make: Callable[[str], Made]) -> None:
    made = make(key)
    tensors = dict(made.tensors)
    del tensors[name]
    assert message in refusal(made.written("half.gguf", tensors=tensors))


@pytest.mark.parametrize(
    ("key", "name", "shape", "message"),
    [
        ("gpt-oss", "blk.0.ffn_up_exps.weight", (4, 8, 64), "has parts of the shapes"),
        ("gpt-oss", "blk.0.ffn_up_exps.weight", (64,), "has parts of the shapes"),
        ("deepseek-v3", "blk.0.attn_k_b.weight", (2, 16, 32), "has parts of the shapes"),
        ("deepseek-v3", "blk.1.ffn_up_exps.weight", (64,), "not that of several"),
        ("qwen3next", "blk.0.attn_gate.weight", (63, 64), "has parts of the shapes"),
        ("qwen3next", "blk.0.attn_qkv.weight", (63, 64), "does not fit the heads of its state space"),
        ("qwen35", "blk.0.ssm_out.weight", (64, 48), "does not fit the heads of its state space"),
        ("llama", "blk.0.attn_q.weight", (63, 64), "does not fit 4 heads (2 for keys and values)"),
        ("chatglm", "blk.0.attn_qkv.weight", (64, 64), "cannot be cut into queries, keys and values"),
    ],
)
def test_shapes_that_do_not_fit(
    key: str, name: str, shape: tuple[int, ...], message: str, make: Callable[[str], Made]
) -> None:
    made = make(key)
    array = np.zeros(shape, np.float32)
    assert message in refusal(made.written("odd.gguf", tensors=made.tensors | {name: array}))


@pytest.mark.parametrize(
    ("key", "keys", "message"),
    [
        ("qwen35", {"ssm.time_step_rank": 0}, "ssm.time_step_rank: 0"),
        ("deepseek-v3", {"attention.kv_lora_rank": 0}, "attention.kv_lora_rank: 0"),
        ("glm4moe", {"nextn_predict_layers": 3}, "nextn_predict_layers: 3"),
        ("granitehybrid", {"attention.head_count_kv": [0, 2, 1, 0]}, "attention.head_count_kv"),
    ],
)
def test_settings_that_make_no_sense(
    key: str, keys: dict[str, Any], message: str, make: Callable[[str], Made]
) -> None:
    assert message in refusal(make(key).written("odd.gguf", keys=keys))


# ---- what is not read


def test_every_architecture_is_read_or_refused() -> None:
    known = set(gguf.MODEL_ARCH_NAMES.values())
    assert known == ARCHITECTURES.keys() | REFUSED.keys()
    assert not ARCHITECTURES.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_why_an_architecture_is_refused(name: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", name, LLAMA_KEYS, llama_tensors())
    with pytest.raises(FormatError) as caught:
        read_gguf(path)
    assert caught.value.message == (f"not supported: {path} is of the architecture '{name}': {REFUSED[name]}")
    assert caught.value.hint == "merge the original model"


@pytest.mark.parametrize(
    "name",
    ["blk.0.attn_q.scale", "cls.weight", "blk.0.attn_q.lora_a", "blk.00.attn_q.weight", "dense_2.weight"],
)
def test_tensors_that_no_model_has(name: str, tmp_path: Path) -> None:
    tensors = llama_tensors() | {name: np.zeros((4, 4), np.float32)}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA_KEYS, tensors)
    with pytest.raises(FormatError, match=f"has a tensor '{name}', which has no known Hugging Face name"):
        read_gguf(path)
