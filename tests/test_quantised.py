"""Quantised checkpoints: the values that their formats define, and refusal of what is not read."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from meldkit.api import merge, plan
from meldkit.checkpoint import Checkpoint, Scratch, open_checkpoint, open_files, read_all
from meldkit.errors import CheckpointError, FormatError, MeldError

# transformers says that quantised models want a GPU.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning")

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
#: Values of 4-bit floats, as the standard lists them.
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)


# ---- the formats, and what they stand for, computed over whole tensors in double precision


@dataclass(frozen=True)
class Case:
    """Tensors of a quantised checkpoint, its quantization_config, and the weight "w.weight" or "w"."""

    stored: dict[str, Tensor]
    settings: dict[str, Any] | None
    value: Tensor
    rest: frozenset[str] = frozenset()
    name: str = "w.weight"


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def f8(*shape: int, dtype: torch.dtype = E4M3) -> Tensor:
    """Every code of the type that is a finite number, many times."""
    codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng()).view(dtype)
    return torch.where(codes.float().isfinite(), codes.float(), 1.0).to(dtype)


def i8(*shape: int) -> Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=rng())


def u8(*shape: int, low: int = 0, high: int = 256) -> Tensor:
    return torch.randint(low, high, shape, dtype=torch.uint8, generator=rng(1))


def scales(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(shape, generator=rng(2)) * 0.01 + 1e-4).to(dtype)


def spread(grid: Tensor, height: int, width: int, shape: tuple[int, ...]) -> Tensor:
    """One number for each element."""
    full = grid.double().repeat_interleave(height, -2).repeat_interleave(width, -1)
    return full[..., : shape[-2], : shape[-1]]


def fp4(packed: Tensor) -> Tensor:
    """[…, n] bytes to […, 2 n] values."""
    low, high = (packed & 15).long(), (packed >> 4).long()
    return torch.stack([FP4[low], FP4[high]], -1).flatten(-2)


def e8m0(exponents: Tensor) -> Tensor:
    return torch.exp2(exponents.double() - 127)


def packed(values: Tensor, bits: int) -> Tensor:
    """Signed integers of a row, from the lowest bits of an int32 up, as compressed-tensors packs them."""
    unsigned = values.long() + (1 << (bits - 1))
    per_word = 32 // bits
    padded = torch.nn.functional.pad(unsigned, (0, -unsigned.shape[-1] % per_word))
    words = padded.unflatten(-1, (-1, per_word))
    total = (words << (torch.arange(per_word) * bits)).sum(-1)
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


FINE = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 8]}


def compressed(bits: int = 8, kind: str = "float", **weights: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "symmetric": True} | weights
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def scaled(
    codes: Tensor,
    grid: Tensor,
    block: tuple[int, int],
    settings: dict[str, Any] | None,
    *,
    name: str = "w.weight",
    ending: str = "_scale",
    shown: Tensor | None = None,
    **more: Tensor,
) -> Case:
    """Codes of one byte with a grid of scales, which may be stored in another shape."""
    value = codes.double() * spread(grid, *block, codes.shape)
    stored = {name: codes, f"{name}{ending}": grid if shown is None else shown}
    return Case(stored | {f"w.{key}": tensor for key, tensor in more.items()}, settings, value, name=name)


def fine() -> dict[str, Case]:
    ragged, even = f8(37, 21), f8(48, 24)
    return {
        "blocks": scaled(even, scales(3, 3), (16, 8), FINE, ending="_scale_inv"),
        "ragged blocks": scaled(ragged, scales(3, 3), (16, 8), FINE, ending="_scale_inv"),
        "e5m2": scaled(f8(37, 21, dtype=E5M2), scales(3, 3), (16, 8), FINE, ending="_scale_inv"),
        "bf16 scales": scaled(ragged, scales(3, 3, dtype=torch.bfloat16), (16, 8), FINE, ending="_scale_inv"),
        "static": scaled(
            even,
            scales(3, 3),
            (16, 8),
            FINE | {"activation_scheme": "static"},
            ending="_scale_inv",
            activation_scale=torch.tensor(2.0),
        ),
        "per tensor": scaled(
            even,
            scales(1, 1),
            (48, 24),
            FINE | {"weight_block_size": None},
            ending="_scale_inv",
            shown=scales(1, 1).reshape(()),
        ),
        "usual blocks": scaled(
            f8(200, 150), scales(2, 2), (128, 128), {"quant_method": "fp8"}, ending="_scale_inv"
        ),
        "experts": scaled(f8(3, 40, 24), scales(3, 3, 3), (16, 8), FINE, ending="_scale_inv", name="w"),
        "small gate and up": scaled(
            f8(2, 20, 24), scales(2, 2, 3), (10, 8), FINE, ending="_scale_inv", name="w.gate_up_proj"
        ),
        "mxfp8": Case(
            {"w.weight": f8(5, 96), "w.weight_scale_inv": u8(5, 3, low=100, high=140)},
            {"quant_method": "mxfp8", "weight_block_size": [1, 32]},
            f8(5, 96).double() * spread(e8m0(u8(5, 3, low=100, high=140)), 1, 32, (5, 96)),
        ),
        "deepseek v4 names": Case(
            {"w.weight": even, "w.scale": scales(3, 3)},
            FINE,
            even.double() * spread(scales(3, 3), 16, 8, (48, 24)),
        ),
    }


def by_others() -> dict[str, Case]:
    codes, experts, ints = f8(12, 10), f8(3, 6, 10), i8(12, 10)
    zero = torch.randint(-20, 20, (12, 1), dtype=torch.int8, generator=rng())
    group_zero = torch.randint(-20, 20, (12, 5), dtype=torch.int8, generator=rng())
    input_scale = torch.tensor([0.5])
    row, group = scales(12, 1), scales(12, 5)
    per_expert = scales(3, 1, 10)
    return {
        "compressed-tensors, tensor": scaled(
            codes,
            scales(1, 1),
            (12, 10),
            compressed(strategy="tensor"),
            shown=scales(1),
            input_scale=input_scale,
        ),
        "compressed-tensors, channel": scaled(codes, row, (1, 10), compressed(strategy="channel")),
        "compressed-tensors, group": scaled(codes, group, (1, 2), compressed(strategy="group", group_size=2)),
        "compressed-tensors, block": scaled(
            codes, scales(2, 3), (8, 4), compressed(strategy="block", block_structure="8x4")
        ),
        "int8, channel": scaled(ints, row, (1, 10), compressed(kind="int", strategy="channel")),
        "int8, bf16 scales": scaled(
            ints, scales(12, 1, dtype=torch.bfloat16), (1, 10), compressed(kind="int", strategy="channel")
        ),
        "int8 with zeros": Case(
            {"w.weight": ints, "w.weight_scale": row, "w.weight_zero_point": zero},
            compressed(kind="int", strategy="channel", symmetric=False),
            (ints.double() - zero.double()) * row.double(),
        ),
        "int8, groups with zeros": Case(
            {"w.weight": ints, "w.weight_scale": group, "w.weight_zero_point": group_zero},
            compressed(kind="int", strategy="group", group_size=2, symmetric=False),
            (ints.double() - spread(group_zero, 1, 2, (12, 10))) * spread(group, 1, 2, (12, 10)),
        ),
        "fbgemm": scaled(
            codes, row, (1, 10), {"quant_method": "fbgemm_fp8"}, input_scale_ub=torch.tensor([9.0])
        ),
        "fbgemm, gate and up": scaled(experts, per_expert, (6, 1), {"quant_method": "fbgemm_fp8"}, name="w"),
        "fbgemm, down": scaled(
            experts,
            per_expert,
            (6, 1),
            {"quant_method": "fbgemm_fp8"},
            name="w",
            shown=per_expert.transpose(1, 2).contiguous(),
        ),
        "modelopt, no settings": scaled(
            codes, scales(1, 1), (12, 10), None, shown=scales(1, 1).reshape(()), input_scale=input_scale
        ),
        "modelopt, rows": scaled(
            codes,
            row,
            (1, 10),
            {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
            shown=row[:, 0],
        ),
        "modelopt, blocks": scaled(
            f8(200, 150),
            scales(2, 2),
            (128, 128),
            {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"},
            shown=scales(2, 2)[:, None, :, None].contiguous(),
        ),
        "a scale for each expert": scaled(
            experts, scales(3, 1, 1), (6, 10), {"quant_method": "modelopt"}, name="w", shown=scales(3)
        ),
    }


def small_codes() -> dict[str, Case]:
    halves = u8(6, 32)
    exponents = u8(6, 2, low=100, high=140)
    mx = fp4(halves) * spread(e8m0(exponents), 1, 32, (6, 64))
    minor, major = scales(6, 4).mul(1e4).to(E4M3), torch.tensor([0.003])
    # The product of the two scales is rounded to float32 before a code is multiplied by it.
    times = fp4(halves) * spread((minor.float() * major).double(), 1, 16, (6, 64))
    over = fp4(halves) * spread((minor.float() / major).double(), 1, 16, (6, 64))
    four = torch.randint(-8, 8, (12, 64), generator=rng())
    eight = torch.randint(-128, 128, (12, 64), generator=rng())
    zeros = torch.randint(-8, 8, (12, 4), generator=rng(5))
    shape = torch.tensor([12, 64])
    grouped = scales(12, 4, dtype=torch.bfloat16)
    group = {"strategy": "group", "group_size": 16}
    blocks, of_blocks = u8(3, 10, 2, 16), u8(3, 10, 2, low=100, high=140)
    return {
        "mxfp4, compressed-tensors": Case(
            {"w.weight_packed": halves, "w.weight_scale": exponents}, compressed(4, group_size=32), mx
        ),
        "mxfp4, deepseek": Case(
            {"w.weight": halves.view(torch.int8), "w.scale": exponents}, FINE | {"expert_dtype": "fp4"}, mx
        ),
        "nvfp4, compressed-tensors": Case(
            {
                "w.weight_packed": halves,
                "w.weight_scale": minor,
                "w.weight_global_scale": major,
                "w.input_global_scale": torch.tensor([2.0]),
            },
            compressed(4, group_size=16),
            over,
        ),
        "nvfp4, modelopt": Case(
            {
                "w.weight": halves,
                "w.weight_scale": minor,
                "w.weight_scale_2": major.reshape(()),
                "w.input_scale": torch.tensor(2.0),
            },
            {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            times,
        ),
        "gpt-oss": Case(
            {"w_blocks": blocks, "w_scales": of_blocks},
            {"quant_method": "mxfp4"},
            (fp4(blocks) * e8m0(of_blocks)[..., None]).flatten(-2).transpose(1, 2),
            name="w",
        ),
        "packed int4": Case(
            {"w.weight_packed": packed(four, 4), "w.weight_scale": grouped, "w.weight_shape": shape},
            compressed(4, "int", **group),
            four.double() * spread(grouped, 1, 16, (12, 64)),
        ),
        "packed int4 with zeros": Case(
            {
                "w.weight_packed": packed(four, 4),
                "w.weight_scale": grouped,
                "w.weight_shape": shape,
                "w.weight_zero_point": packed(zeros.T, 4).T.contiguous(),
            },
            compressed(4, "int", symmetric=False, **group),
            (four.double() - spread(zeros, 1, 16, (12, 64))) * spread(grouped, 1, 16, (12, 64)),
        ),
        "packed int8": Case(
            {"w.weight_packed": packed(eight, 8), "w.weight_scale": scales(12, 1), "w.weight_shape": shape},
            compressed(8, "int", strategy="channel"),
            eight.double() * scales(12, 1).double(),
        ),
        "packed int8 with zeros": Case(
            {
                "w.weight_packed": packed(eight, 8),
                "w.weight_scale": grouped,
                "w.weight_shape": shape,
                "w.weight_zero_point": packed(zeros.T, 8).T.contiguous(),
            },
            compressed(8, "int", symmetric=False, **group),
            (eight.double() - spread(zeros, 1, 16, (12, 64))) * spread(grouped, 1, 16, (12, 64)),
        ),
    }


CASES = fine() | by_others() | small_codes()


def written(folder: Path, stored: dict[str, Tensor], quantization: object, **config: Any) -> Path:
    settings = {} if quantization is None else {"quantization_config": quantization}
    return tiny.stored(folder, stored, settings | config)


def read(folder: Path, name: str, start: int = 0, stop: int | None = None) -> Tensor:
    info = open_checkpoint("m", folder)[name]
    with open_files() as files:
        out = torch.full(((info.numel if stop is None else stop) - start,), torch.nan)
        info.open(files).read(start, start + out.numel(), out, Scratch())
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("formats")
    plain = {"norm.weight": torch.ones(4, dtype=torch.bfloat16)}
    return {
        name: written(root / name, case.stored | plain, case.settings, dtype="float16", hidden_size=4)
        for name, case in CASES.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_values_are_what_the_format_says(name: str, folders: dict[str, Path]) -> None:
    case = CASES[name]
    checkpoint = open_checkpoint("m", folders[name])
    assert {n: (i.dtype, i.shape) for n, i in checkpoint.items()} == {
        case.name: ("F16", tuple(case.value.shape)),
        "norm.weight": ("BF16", (4,)),
    }
    assert dict(checkpoint.config) == {"dtype": "float16", "hidden_size": 4}
    assert not checkpoint.plain(case.name)
    with open_files() as files:
        values = read_all(files, checkpoint[case.name])
    assert torch.equal(values, case.value.float())


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_tiles_are_parts_of_the_whole(data: st.DataObject, folders: dict[str, Path]) -> None:
    name = data.draw(st.sampled_from(sorted(CASES)))
    case = CASES[name]
    start = data.draw(st.integers(0, case.value.numel()))
    stop = data.draw(st.integers(start, case.value.numel()))
    tile = read(folders[name], case.name, start, stop)
    assert torch.equal(tile, case.value.float().flatten()[start:stop])


@pytest.mark.parametrize("name", ["gpt-oss", "experts", "packed int4 with zeros"])
def test_many_threads_read_the_same(name: str, folders: dict[str, Path]) -> None:
    case = CASES[name]
    info = open_checkpoint("m", folders[name])[case.name]
    with open_files() as files, ThreadPoolExecutor(8) as pool:
        source = info.open(files)

        def tile(start: int) -> Tensor:
            out = torch.empty(min(97, info.numel - start))
            source.read(start, start + out.numel(), out, Scratch())
            return out

        tiles = list(pool.map(tile, range(0, info.numel, 97)))
    assert torch.equal(torch.cat(tiles), case.value.float().flatten())


# ---- what transformers makes of the same files


def quantised(folder: Path, block: int = 16, **settings: Any) -> Path:
    """Turn the projections of a model folder into 8-bit floats, block by block."""
    path = folder / "model.safetensors"
    content: dict[str, Tensor] = {}
    for name, weight in load_file(path).items():
        content[name] = weight
        if name.endswith("_proj.weight"):
            blocks = weight.float().unflatten(0, (-1, block)).unflatten(2, (-1, block))
            grid = blocks.abs().amax((1, 3)) / 448
            codes = (blocks / grid[:, None, :, None]).to(E4M3)
            content[name] = codes.flatten(2).flatten(0, 1)
            content[f"{name}_scale_inv"] = grid
    save_file(content, path, metadata={"format": "pt"})
    configure(folder, quantization_config=FINE | {"weight_block_size": [block, block]} | settings)
    return folder


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def llama(folder: Path, seed: int) -> Path:
    return quantised(tiny.llama(folder, seed, layers=2, dtype="bfloat16"))


def qwen3_moe(folder: Path, seed: int) -> Path:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return quantised(folder)


def gpt_oss(folder: Path, seed: int) -> Path:
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(seed)
    config = GptOssConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=3,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    path = folder / "model.safetensors"
    content = load_file(path)
    for name in [n for n in content if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, rows, columns = content.pop(name).shape
        shape = (experts, columns, rows // 32)
        content[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        content[f"{name}_scales"] = torch.randint(118, 124, shape, dtype=torch.uint8)
    save_file(content, path, metadata={"format": "pt"})
    configure(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return folder


MODELS: dict[str, Callable[[Path, int], Path]] = {"llama": llama, "qwen3_moe": qwen3_moe, "gpt_oss": gpt_oss}


def loaded(folder: Path) -> dict[str, Tensor]:
    """A model's parameters as transformers loads them, without complaint; on a CPU it dequantises."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return dict(model.state_dict())


@pytest.mark.parametrize("kind", MODELS)
def test_merge_of_quantised_models_is_the_mean_of_what_transformers_loads(kind: str, tmp_path: Path) -> None:
    a, b = (MODELS[kind](tmp_path / name, seed) for seed, name in enumerate("ab"))
    half = {"parameters": {"weight": 0.5}}
    recipe = {"merge_method": "linear", "models": [{"model": str(a)} | half, {"model": str(b)} | half]}
    result = merge(recipe, tmp_path / "out")
    config = json.loads((result.path / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    assert {t.dtype for t in tiny.tensors(result.path).values()} == {torch.bfloat16}
    merged, first, second = loaded(result.path), loaded(a), loaded(b)
    assert merged.keys() == first.keys()
    for name, value in merged.items():
        mean = (first[name].float() + second[name].float()) / 2
        # transformers rounds each model to bfloat16 first, we once at the end.
        torch.testing.assert_close(value.float(), mean, rtol=2**-7, atol=2**-8 * float(mean.abs().max()))


@pytest.mark.parametrize("kind", MODELS)
def test_one_model_is_what_transformers_loads(kind: str, tmp_path: Path) -> None:
    a = MODELS[kind](tmp_path / "a", 0)
    result = merge({"merge_method": "passthrough", "models": [{"model": str(a)}]}, tmp_path / "out")
    merged, expected = loaded(result.path), loaded(a)
    assert merged.keys() == expected.keys()
    for name, value in merged.items():
        assert torch.equal(value, expected[name]), name


def test_gpt_oss_is_decoded_as_transformers_does(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, exponents = u8(2, 70, 3, 16), u8(2, 70, 3, low=1, high=250)
    folder = written(tmp_path / "m", {"w_blocks": blocks, "w_scales": exponents}, {"quant_method": "mxfp4"})
    expected = convert_moe_packed_tensors(blocks, exponents, dtype=torch.float32)
    assert torch.equal(read(folder, "w").view(expected.shape), expected)


def test_adapter_over_a_quantised_model(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    base = tiny.decoder(
        tmp_path / "base", extra={f"{name}.weight_scale": torch.tensor([[0.5], [1], [2], [4]])}
    )
    content = load_file(base / "model.safetensors")
    content[f"{name}.weight"] = content[f"{name}.weight"].to(E4M3)
    save_file(content, base / "model.safetensors")
    configure(base, quantization_config=compressed(strategy="channel"), dtype="float32")
    adapter = tiny.adapter(tmp_path / "adapter", {name: (4, 4)})
    factors = load_file(adapter / "adapter_model.safetensors")
    b, a = (factors[f"base_model.model.{name}.lora_{side}.weight"] for side in "BA")
    expected = content[f"{name}.weight"].float() * content[f"{name}.weight_scale"] + 2 * (b @ a)
    checkpoint = open_checkpoint("m", base, (adapter,))
    with open_files() as files:
        out = torch.empty(16)
        checkpoint.source(files, f"{name}.weight").read(0, 16, out, Scratch())
    torch.testing.assert_close(out.view(4, 4), expected)


# ---- what is left alone, left out and counted


def test_plain_8_bit_floats_stay_numbers(tmp_path: Path) -> None:
    codes = f8(4, 6)
    checkpoint = open_checkpoint("m", written(tmp_path / "m", {"w.weight": codes}, None))
    assert checkpoint["w.weight"].dtype == "F8_E4M3"
    assert checkpoint.plain("w.weight")


def test_settings_of_a_model_that_is_no_longer_quantised_are_dropped(tmp_path: Path) -> None:
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    stored = {"w.weight": torch.ones(2, 2), "w.weight_scale": torch.ones(1), "ids": torch.arange(3)}
    checkpoint = open_checkpoint("m", written(tmp_path / "m", stored, settings))
    assert dict(checkpoint.config) == {}
    assert set(checkpoint) == {"w.weight", "ids"}


def test_settings_of_the_language_model_of_a_larger_one(tmp_path: Path) -> None:
    case = CASES["ragged blocks"]
    config = {"text_config": {"quantization_config": FINE, "dtype": "float32", "n": 1}, "n": 2}
    folder = tiny.stored(tmp_path / "m", case.stored, dict(config))
    checkpoint = open_checkpoint("m", folder)
    assert dict(checkpoint.config) == {"text_config": {"dtype": "float32", "n": 1}, "n": 2}
    assert checkpoint["w.weight"].dtype == "F32"
    assert torch.equal(read(folder, "w.weight"), case.value.float().flatten())


def test_scales_of_caches_and_activations_are_left_out(tmp_path: Path) -> None:
    case = CASES["per tensor"]
    others = ("k_scale", "v_scale", "attn.k_scale", "attn.kv_scale", "w.input_scale", "w.output_scale")
    stored = case.stored | {name: torch.ones(()) for name in others} | {"layer.scale": torch.ones(3)}
    checkpoint = open_checkpoint("m", written(tmp_path / "m", stored, case.settings))
    assert set(checkpoint) == {"w.weight", "layer.scale"}


def test_values_are_bf16_where_the_configuration_names_no_type(tmp_path: Path) -> None:
    case = CASES["blocks"]
    for number, config in enumerate([{}, {"dtype": "float8_e4m3fn"}, {"torch_dtype": 7}]):
        folder = written(tmp_path / str(number), case.stored, case.settings, **config)
        assert open_checkpoint("m", folder)["w.weight"].dtype == "BF16"


def test_other_blocks_are_another_checkpoint(tmp_path: Path) -> None:
    def opened(name: str, block: list[int]) -> Checkpoint:
        settings = FINE | {"weight_block_size": block}
        stored = {"w.weight": f8(20, 20), "w.weight_scale_inv": scales(2, 2)}
        return open_checkpoint("m", written(tmp_path / name, stored, settings))

    assert opened("a", [16, 16]).fingerprint == opened("b", [16, 16]).fingerprint
    assert opened("a", [16, 16]).fingerprint != opened("c", [12, 12]).fingerprint


def test_a_plan_shows_the_values_and_reads_no_weight(tmp_path: Path) -> None:
    folder = quantised(tiny.decoder(tmp_path / "m", hidden=16, dtype=torch.bfloat16), 8)
    made = plan({"merge_method": "linear", "models": [{"model": str(folder), "parameters": {"weight": 1}}]})
    assert {job.dtype for job in made.jobs} == {"BF16"}
    assert not any("scale" in job.name for job in made.jobs)
    # Codes have one byte, where they have two as numbers.
    assert made.bytes_to_read < sum(job.nbytes for job in made.jobs)


# ---- refusals


@dataclass(frozen=True)
class Bad:
    stored: dict[str, Tensor]
    settings: dict[str, Any] | None
    says: tuple[str, ...]
    kind: type[MeldError] = FormatError
    config: dict[str, Any] = field(default_factory=dict)


BITS4 = {"w.weight": u8(64, 1), "w.weight.absmax": torch.ones(2), "w.weight.quant_map": torch.ones(16)}
INT32 = torch.ones(4, 4, dtype=torch.int32)
BAD = {
    "bitsandbytes 4 bits": Bad(
        BITS4,
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        ("bitsandbytes", "dequantize()", "original"),
    ),
    "bitsandbytes, no settings": Bad(BITS4, None, ("bitsandbytes", "'w.weight.absmax'")),
    "bitsandbytes 8 bits": Bad(
        {"w.weight": i8(4, 4), "w.SCB": torch.ones(4)}, None, ("bitsandbytes", "'w.SCB'")
    ),
    "gptq": Bad({"w.qweight": INT32, "w.g_idx": INT32 + 0}, {"quant_method": "gptq"}, ("GPTQ", "original")),
    "gptq, no settings": Bad({"w.qweight": INT32, "w.g_idx": INT32 + 0}, None, ("GPTQ", "'w.g_idx'")),
    "awq": Bad({"w.qweight": INT32, "w.qzeros": INT32 + 0}, {"quant_method": "awq"}, ("AWQ",)),
    "gptq or awq": Bad({"w.qweight": INT32, "w.qzeros": INT32 + 0}, None, ("GPTQ or AWQ", "'w.qweight'")),
    "autoround": Bad({"w.qweight": INT32}, {"quant_method": "intel/auto-round"}, ("AutoRound",)),
    "hqq": Bad({"w.W_q": u8(4, 4)}, {"quant_method": "hqq"}, ("HQQ",)),
    "eetq": Bad({"w.weight": i8(4, 4), "w.weight_scales": torch.ones(4)}, None, ("EETQ",)),
    "quanto": Bad({"w.weight._data": i8(4, 4), "w.weight._scale": torch.ones(4)}, None, ("Quanto",)),
    "torchao": Bad({"w._weight_qdata": i8(4, 4)}, None, ("torchao",)),
    "aqlm": Bad({"w.codes": i8(4, 4), "w.codebooks": torch.ones(4)}, None, ("AQLM",)),
    "sparse": Bad({"w.weight.compressed": f8(4), "w.weight.bitmask": u8(4)}, compressed(), ("sparse",)),
    "unknown method": Bad(
        {"w.weight": u8(4, 4)}, {"quant_method": "bitnet"}, ("'bitnet'", "'w.weight' is U8", "fp8")
    ),
    "no scale": Bad(
        {"w.weight": f8(4, 4)},
        FINE,
        ("model 'm'", "'w.weight' is F8_E4M3", "'w.weight_scale_inv'", "'w.weight_scale'"),
        CheckpointError,
    ),
    "wrong scale": Bad(
        {"w.weight": f8(40, 40), "w.weight_scale_inv": torch.ones(3, 4)},
        FINE,
        ("'w.weight_scale_inv', F32 [3, 4]", "'w.weight', F8_E4M3 [40, 40]", "16 × 8"),
        CheckpointError,
    ),
    "scales of columns only": Bad(
        {"w.weight": f8(4, 6), "w.weight_scale": torch.ones(6)},
        compressed(),
        ("[6]", "[4, 6]"),
        CheckpointError,
    ),
    "integer scales": Bad(
        {"w.weight": f8(4, 6), "w.weight_scale": torch.ones(4, 1, dtype=torch.int64)},
        compressed(),
        ("I64 scales",),
    ),
    "bad block size": Bad(
        {"w.weight": f8(4, 4), "w.weight_scale_inv": torch.ones(1, 1)},
        FINE | {"weight_block_size": [128, 0]},
        ("weight_block_size [128, 0]",),
        CheckpointError,
    ),
    "zeros of another shape": Bad(
        {"w.weight": i8(4, 6), "w.weight_scale": torch.ones(4, 1), "w.weight_zero_point": i8(4, 2)},
        compressed(kind="int"),
        ("'w.weight_zero_point', I8 [4, 2]",),
        CheckpointError,
    ),
    "mxfp4 scales": Bad(
        {"w_blocks": u8(2, 3, 4, 16), "w_scales": u8(2, 3, 5)},
        {"quant_method": "mxfp4"},
        ("[2, 3, 5]", "[2, 3, 4, 16]"),
        CheckpointError,
    ),
    "mxfp4 without scales": Bad(
        {"w_blocks": u8(2, 3, 4, 16)}, {"quant_method": "mxfp4"}, ("'w_blocks'", "U8")
    ),
    "mxfp4 matrices": Bad(
        {"w_blocks": u8(3, 4, 16), "w_scales": u8(3, 4)}, {"quant_method": "mxfp4"}, ("[3, 4, 16]",)
    ),
    "6-bit floats": Bad(
        {"w.weight_packed": u8(4, 48), "w.weight_scale": u8(4, 2)},
        compressed(6, group_size=32),
        ("not of 4-bit floats",),
    ),
    "awq of modelopt": Bad(
        {"w.weight": u8(4, 4), "w.weight_scale": torch.ones(4, 1)},
        {"quant_method": "modelopt"},
        ("F32 scales",),
    ),
    "scaled inputs": Bad(
        {"w.weight": f8(4, 4), "w.weight_scale": torch.ones(()), "w.pre_quant_scale": torch.ones(4)},
        {"quant_method": "modelopt"},
        ("pre_quant_scale",),
    ),
    "other order of columns": Bad(
        CASES["packed int4"].stored | {"w.weight_g_idx": torch.zeros(64, dtype=torch.int32)},
        CASES["packed int4"].settings,
        ("another order",),
    ),
    "three bits": Bad(
        CASES["packed int4"].stored,
        compressed(3, "int", group_size=16),
        ("[12, 8]", "no bits"),
        CheckpointError,
    ),
    "another group size": Bad(
        CASES["packed int4"].stored, compressed(4, "int", group_size=32), ("groups of 32",), CheckpointError
    ),
    "packed without settings": Bad(CASES["packed int4"].stored, None, ("no bits",), CheckpointError),
    "unknown codes": Bad({"w.weight_packed": INT32}, compressed(4, "int"), ("'w.weight_packed' as I32",)),
    "twice": Bad(
        CASES["packed int4"].stored | {"w.weight": torch.ones(12, 64)},
        CASES["packed int4"].settings,
        ("'w.weight' is stored twice",),
        CheckpointError,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refusals_say_what_and_where(name: str, tmp_path: Path) -> None:
    bad = BAD[name]
    folder = written(tmp_path / "m", bad.stored, bad.settings, **bad.config)
    with pytest.raises(MeldError) as caught:
        open_checkpoint("m", folder)
    assert type(caught.value) is bad.kind
    assert "model 'm'" in str(caught.value)
    assert caught.value.hint
    for part in bad.says:
        assert part in str(caught.value)


def test_a_stated_shape_that_is_not_the_packed_one(tmp_path: Path) -> None:
    case = CASES["packed int4"]
    folder = written(tmp_path / "m", case.stored | {"w.weight_shape": torch.tensor([12, 60])}, case.settings)
    with pytest.raises(CheckpointError, match=r"says \[12, 60\].*imply \[12, 64\]"):
        read(folder, "w.weight")


def test_a_scale_that_is_no_number_is_refused_while_merging(tmp_path: Path) -> None:
    case = CASES["mxfp8"]
    exponents = case.stored["w.weight_scale_inv"].clone()
    exponents[2, 1] = 255
    folder = written(tmp_path / "m", case.stored | {"w.weight_scale_inv": exponents}, case.settings)
    recipe = {"merge_method": "linear", "models": [{"model": str(folder), "parameters": {"weight": 1}}] * 2}
    with pytest.raises(MeldError, match="nan"):
        merge(recipe, tmp_path / "out")


NAMES = (
    *(
        "w.weight",
        "w.weight_scale",
        "w.weight_scale_inv",
        "w.scale",
        "w.weight_packed",
        "w.weight_zero_point",
    ),
    *("w.weight_shape", "w.weight_global_scale", "w.weight_scale_2", "w.weight_g_idx", "w.input_scale"),
    *("w", "w_scale", "w_blocks", "w_scales", "x.gate_up_proj", "x.gate_up_proj_scale_inv"),
)
TYPES = (E4M3, E5M2, torch.int8, torch.uint8, torch.int32, torch.int64, torch.float32, torch.bfloat16)
SIZES = st.sampled_from([0, 1, 2, 3, 4, 16, 32])
SHAPES = st.one_of(
    st.just([]), st.lists(SIZES, min_size=1, max_size=2), st.lists(SIZES, min_size=3, max_size=4)
)
ODD = st.one_of(st.none(), st.booleans(), st.integers(-1, 8), st.sampled_from(["", "fp8", "8x4", "x"]))
SETTINGS = st.one_of(
    st.none(),
    st.sampled_from([case.settings for case in CASES.values()]),
    st.fixed_dictionaries(
        {},
        optional={
            "quant_method": st.one_of(
                ODD, st.sampled_from(["compressed-tensors", "mxfp4", "fbgemm_fp8", "modelopt"])
            ),
            "weight_block_size": st.one_of(ODD, st.lists(ODD, max_size=3)),
            "group_size": ODD,
            "config_groups": st.one_of(
                ODD,
                st.dictionaries(
                    st.sampled_from("ab"),
                    st.one_of(
                        ODD,
                        st.fixed_dictionaries(
                            {
                                "weights": st.one_of(
                                    ODD,
                                    st.dictionaries(st.sampled_from(["num_bits", "group_size", "type"]), ODD),
                                )
                            }
                        ),
                    ),
                ),
            ),
        },
    ),
)


@settings(max_examples=150, deadline=None)
@given(
    described=st.dictionaries(
        st.sampled_from(NAMES), st.tuples(st.sampled_from(TYPES), SHAPES), min_size=1, max_size=4
    ),
    quantization=SETTINGS,
)
def test_whatever_is_stored_is_read_or_refused(
    described: dict[str, tuple[torch.dtype, list[int]]],
    quantization: object,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    stored = {name: torch.zeros(shape).to(dtype) for name, (dtype, shape) in described.items()}
    folder = written(tmp_path_factory.mktemp("m"), stored, quantization)
    hint = "read"
    try:
        checkpoint = open_checkpoint("m", folder)
        with open_files() as files:
            for info in checkpoint.values():
                assert read_all(files, info).shape == info.shape
    except MeldError as e:
        hint = e.hint
    assert hint
