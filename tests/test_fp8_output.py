"""Merges written as 8-bit floats with a scale for each block of 128 × 128: read by transformers and by us."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from meldkit import merge, plan
from meldkit.checkpoint import open_files, open_model, read_all
from meldkit.cli.plan import describe
from meldkit.engine import TensorRun, run
from meldkit.errors import MismatchError, RecipeError, RunError
from meldkit.methods.statistics import CHUNK
from meldkit.options import MergeOptions
from meldkit.output import PARTIAL
from meldkit.output.journal import read_journal
from meldkit.plan import Input, TensorJob
from meldkit.recipe import ModelRef
from meldkit.report import summarise_plan
from test_engine import Memory, Store, make_job, runs, seeded

E4M3 = torch.float8_e4m3fn
LINEAR = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"weight": 0.5}}
FP8 = {**LINEAR, "dtype": "bfloat16", "out_dtype": "float8_e4m3fn"}
EXACT = {**LINEAR, "dtype": "float32"}


def shapes(hidden: int = 128, kv: int = 128, inner: int = 256) -> dict[str, tuple[int, ...]]:
    """Matrices of the layer of a Llama."""
    return {
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }


def model(folder: Path, seed: int, layer: dict[str, tuple[int, ...]], **config: object) -> Path:
    """A model of two such layers, bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (128, 128), "model.norm.weight": (128,)}
    sizes |= {"lm_head.weight": (128, 128)}
    sizes |= {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    weights = {n: torch.randn(s, generator=generator).bfloat16() for n, s in sizes.items()}
    return tiny.stored(folder, weights, {"num_hidden_layers": 2, "dtype": "bfloat16", **config})


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models a and b in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        model(tmp_path / name, seed, shapes())
    return tmp_path


def config(folder: str = "out") -> dict[str, Any]:
    return json.loads(Path(folder, "config.json").read_text())


def weights(folder: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(folder).glob("*.safetensors*"))}


def spread(scales: Tensor) -> Tensor:
    """A scale for each element."""
    return scales.repeat_interleave(128, -2).repeat_interleave(128, -1)


def expected(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales by the definition, block by block."""
    codes, scales = torch.empty(values.shape, dtype=E4M3), torch.empty(*values.shape[:-2], 0, 0)
    flat = values.view(-1, *values.shape[-2:])
    rows, columns = (size // 128 for size in values.shape[-2:])
    scales = torch.empty(len(flat), rows, columns)
    for m, matrix in enumerate(flat):
        for i in range(rows):
            for j in range(columns):
                part = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
                scale = matrix[part].abs().max() / 448
                scales[m, i, j] = scale if scale else 1
                codes.view(flat.shape)[m][part] = (matrix[part] / scales[m, i, j]).to(E4M3)
    return codes, scales.view(*values.shape[:-2], rows, columns)


def check(folder: str, exact: str) -> None:
    """Every tensor of the merge against the same merge in float32."""
    found, wanted = tiny.tensors(Path(folder)), tiny.tensors(Path(exact))
    names = {name for name in found if not name.endswith("_scale_inv")}
    assert names == set(wanted)
    for name in names:
        if f"{name}_scale_inv" not in found:
            assert torch.equal(found[name], wanted[name].bfloat16())
            continue
        codes, scales = expected(wanted[name])
        assert torch.equal(found[name].view(torch.uint8), codes.view(torch.uint8)), name
        assert torch.equal(found[f"{name}_scale_inv"], scales), name


def quantised(folder: str = "out") -> set[str]:
    """Leaves of what is stored as codes; all layers are alike."""
    found = tiny.tensors(Path(folder))
    names = {name for name, tensor in found.items() if tensor.dtype == E4M3}
    assert {f"{name}_scale_inv" for name in names} == {n for n in found if n.endswith("_scale_inv")}
    leaves = {name.split(".", 3)[3] for name in names}
    assert names == {f"model.layers.{i}.{leaf}" for i in range(2) for leaf in leaves}
    return leaves


def test_every_matrix_of_the_layers_is_rounded_by_the_definition() -> None:
    merge(FP8, "out")
    merge(EXACT, "exact")
    assert quantised() == set(shapes())
    check("out", "exact")
    assert config()["dtype"] == "bfloat16"
    assert config()["quantization_config"] == {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "model.embed_tokens", ".experts"],
    }


def test_what_is_read_back_is_codes_times_scales() -> None:
    merge(FP8, "out")
    stored = tiny.tensors(Path("out"))
    checkpoint = open_model(ModelRef("out"))
    assert set(checkpoint) == {name for name in stored if not name.endswith("_scale_inv")}
    assert "quantization_config" not in checkpoint.config
    with open_files() as files:
        for name, info in checkpoint.items():
            assert info.dtype == "BF16"
            value = stored[name].float()
            if f"{name}_scale_inv" in stored:
                value *= spread(stored[f"{name}_scale_inv"])
            assert torch.equal(read_all(files, info), value)


def test_writing_what_was_read_gives_the_same_codes() -> None:
    merge(FP8, "out")
    merge({"merge_method": "passthrough", "models": [{"model": "out"}], "dtype": "float8_e4m3fn"}, "again")
    first, second = tiny.tensors(Path("out")), tiny.tensors(Path("again"))
    assert list(first) == list(second)
    for name, tensor in first.items():
        if name.endswith("_scale_inv"):
            assert torch.allclose(tensor, second[name], rtol=2**-23, atol=0)
        else:
            assert torch.equal(tensor.view(torch.uint8), second[name].view(torch.uint8))
    assert config() == config("again")


# transformers


def llama(folder: Path, seed: int, *, tied: bool = False) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(settings).bfloat16().save_pretrained(folder)
    return folder


def moe(folder: Path, seed: int, *, original: bool, inner: int = 128) -> Path:
    """Qwen3-MoE, with its experts one by one (as on the Hub) or joined (as in memory)."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(seed)
    settings = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
    )
    network = Qwen3MoeForCausalLM(settings).bfloat16()
    network.save_pretrained(folder, save_original_format=original)
    return folder


def make(kind: str, folder: Path, seed: int) -> Path:
    match kind:
        case "llama" | "tied":
            return llama(folder, seed, tied=kind == "tied")
        case "moe" | "joined" | "small experts":
            return moe(folder, seed, original=kind != "joined", inner=64 if kind == "small experts" else 128)
        case _:
            raise ValueError(kind)


KINDS = ("llama", "tied", "moe", "joined", "small experts")


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_it(kind: str) -> None:
    from transformers import AutoModelForCausalLM

    for seed, name in enumerate("ab"):
        shutil.rmtree(name)
        make(kind, Path(name), seed)
    merge(FP8, "out")
    merge(EXACT, "exact")
    check("out", "exact")
    loaded, report = AutoModelForCausalLM.from_pretrained("out", output_loading_info=True)
    assert not any(report.values())
    exact = AutoModelForCausalLM.from_pretrained("exact", dtype="float32").state_dict()
    scales = [t for n, t in tiny.tensors(Path("out")).items() if n.endswith("_scale_inv")]
    largest = max(scale.max().item() for scale in scales)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        difference = (tensor.float() - exact[name]).abs()
        # Three bits of fraction, and once more rounded to bfloat16.
        assert torch.all(difference <= (2**-4 + 2**-8) * exact[name].abs() + largest * 2**-10), name
    ids = torch.arange(8)[None]
    assert loaded(ids).logits.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_expects_blocks_where_they_are(kind: str) -> None:
    """What a device with 8-bit arithmetic gets: modules with scales where, and only where, there are some."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.quantizers.auto import AutoHfQuantizer

    for seed, name in enumerate("ab"):
        shutil.rmtree(name)
        make(kind, Path(name), seed)
    merge(FP8, "out")
    settings = AutoConfig.from_pretrained("out")
    quantizer = AutoHfQuantizer.from_config(settings.quantization_config, pre_quantized=True)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(settings)
        quantizer._process_model_before_weight_loading(network)  # pyright: ignore[reportPrivateUsage]
    expects = {n: p for n, p in network.named_parameters() if not n.startswith("lm_head") or kind != "tied"}
    stored = tiny.tensors(Path("out"))
    if kind == "moe":
        stored = joined(stored)
    if kind in ("joined", "small experts"):
        assert not any("experts" in name for name in expects if name.endswith("_scale_inv"))
        stored = {name: tensor for name, tensor in stored.items() if ".experts." not in name}
        expects = {name: tensor for name, tensor in expects.items() if ".experts." not in name}
    assert {n: t.shape for n, t in stored.items()} == {n: p.shape for n, p in expects.items()}
    codes = {name for name, tensor in stored.items() if tensor.dtype == E4M3}
    assert codes == {name for name, p in expects.items() if p.dtype == E4M3}
    assert len(codes) >= 8


def joined(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The experts of each layer in one tensor, and their scales too."""
    result = {name: tensor for name, tensor in stored.items() if ".experts." not in name}
    for i in range(2):
        prefix = f"model.layers.{i}.mlp.experts"
        for ending in ("", "_scale_inv"):
            gate, up, down = (
                torch.stack([stored[f"{prefix}.{e}.{leaf}.weight{ending}"] for e in range(4)])
                for leaf in ("gate_proj", "up_proj", "down_proj")
            )
            result[f"{prefix}.gate_up_proj{ending}"] = torch.cat([gate, up], 1)
            result[f"{prefix}.down_proj{ending}"] = down
    return result


# what is stored in blocks


def remade(layer: dict[str, tuple[int, ...]], **settings: object) -> None:
    for seed, name in enumerate("ab"):
        shutil.rmtree(name)
        model(Path(name), seed, layer, **settings)


def test_ragged_matrices_and_what_is_joined_with_them_stay_wide() -> None:
    remade(shapes(kv=64))
    done = merge(FP8, "out")
    assert quantised() == {leaf for leaf in shapes() if leaf[10:11] not in ("q", "k", "v")}
    left = config()["quantization_config"]["modules_to_not_convert"]
    assert {f"model.layers.1.self_attn.{x}_proj" for x in "qkv"} < set(left)
    q, k, v = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv")
    assert f"{k}, {q}, {v}: in a wider type; not made of blocks of 128 × 128: {k}, {v}" in done.plan.notes


@pytest.mark.parametrize(
    ("leaf", "shape"),
    [
        ("input_layernorm.weight", (128,)),
        ("mlp.gate.weight", (128, 128)),
        ("mlp.up_proj.bias", (256,)),
        ("mixer.in_proj.weight", (128, 128)),
        ("self_attn.positions", (128, 128)),
        ("self_attn.conv.weight", (128, 128, 128)),
        ("self_attn.indexer.weights_proj.weight", (128, 128)),
        ("mlp.experts.0.w1.weight", (128, 64)),
        ("mlp.experts.gate_up_proj", (2, 256, 128)),
    ],
)
def test_other_tensors_stay_wide(leaf: str, shape: tuple[int, ...]) -> None:
    remade({**shapes(), leaf: shape})
    merge(FP8, "out")
    assert quantised() == set(shapes())
    left = config()["quantization_config"]["modules_to_not_convert"]
    stored = {name.removesuffix(".weight") for name in tiny.tensors(Path("out")) if "scale" not in name}
    for name in left:
        assert name == ".experts" or any(s == name or s.startswith(f"{name}.") for s in stored)


SINGLE = {f"mlp.experts.{e}.{leaf}.weight": (128, 128) for e in range(2) for leaf in ("w1", "w2", "w3")}
JOINED = {"mlp.experts.gate_up_proj": (2, 256, 128), "mlp.experts.down_proj": (2, 128, 128)}


def test_single_experts_are_stored_in_blocks() -> None:
    remade(shapes() | SINGLE | {"mlp.experts.e_score_correction_bias": (2,)})
    merge(FP8, "out")
    assert quantised() == set(shapes() | SINGLE)
    assert ".experts" not in config()["quantization_config"]["modules_to_not_convert"]


@pytest.mark.parametrize(
    ("experts", "first"),
    [
        (JOINED, "down_proj"),
        (SINGLE | {"mlp.experts.1.w2.weight": (128, 64)}, "1.w2.weight"),
        (SINGLE | {"mlp.experts.0.w1.bias": (128,)}, "0.w1.bias"),
        (SINGLE | {"mlp.experts.extra": (128, 128)}, "extra"),
    ],
    ids=["joined", "ragged", "biases", "unknown"],
)
def test_experts_that_are_not_read_in_blocks_stay_wide(
    experts: dict[str, tuple[int, ...]], first: str
) -> None:
    remade(shapes() | experts)
    done = merge(FP8, "out")
    assert quantised() == set(shapes())
    left = config()["quantization_config"]["modules_to_not_convert"]
    assert {".experts", "model.layers.0.mlp.experts", "model.layers.1.mlp.experts"} < set(left)
    assert (
        "experts: in a wider type, as they are joined, have biases, or are not made of blocks of 128 × 128 "
        f"(model.layers.0.mlp.experts.{first})" in done.plan.notes
    )


def test_towers_stay_wide() -> None:
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        prefixes = ("model.language_model.layers", "model.visual.blocks")
        names = [f"{prefix}.{i}.mlp.up_proj.weight" for prefix in prefixes for i in range(2)]
        tiny.stored(
            Path(name),
            {n: torch.randn(128, 128, generator=generator) for n in names},
            {"num_hidden_layers": 2},
        )
    merge({**LINEAR, "out_dtype": "fp8"}, "out")
    found = tiny.tensors(Path("out"))
    assert found["model.visual.blocks.0.mlp.up_proj.weight"].dtype == torch.float32
    assert found["model.language_model.layers.0.mlp.up_proj.weight"].dtype == E4M3


def test_name_at_the_end_of_others_is_meant_alone() -> None:
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        sizes = {"q_proj.weight": (128, 128)} | {f"layers.{i}.attn.q_proj.weight": (128, 128) for i in (0, 1)}
        tiny.stored(
            Path(name),
            {n: torch.randn(s, generator=generator) for n, s in sizes.items()},
            {"num_hidden_layers": 2},
        )
    merge({**LINEAR, "out_dtype": "fp8"}, "out")
    # Output layers that are the embedding have no tensor, whatever they are called.
    tied = ["lm_head", "proj_out", "predictions.decoder", "^decoder$"]
    assert config()["quantization_config"]["modules_to_not_convert"] == ["^q_proj$", ".experts", *tied]


@pytest.mark.parametrize(
    ("change", "dtypes"),
    [
        ({"dtype": "float8_e4m3fn", "out_dtype": None}, {E4M3, torch.float32, torch.bfloat16}),
        ({"dtype": None}, {E4M3, torch.float32, torch.bfloat16}),
        ({"dtype": "float16"}, {E4M3, torch.float32, torch.float16}),
        ({"compat": "mergekit"}, {E4M3}),
    ],
)
def test_the_rest_has_the_type_of_computing_or_its_own(change: dict[str, Any], dtypes: set[object]) -> None:
    recipe = {k: v for k, v in {**FP8, **change}.items() if v is not None}
    for name in "ab":  # small enough for a cast without scales
        found = {n: t / 64 for n, t in tiny.tensors(Path(name)).items()}
        tiny.stored(Path(name), found, config(name))
    merge(recipe, "out")
    assert {tensor.dtype for tensor in tiny.tensors(Path("out")).values()} == dtypes
    assert ("quantization_config" in config()) is ("compat" not in change)


def test_without_configuration_values_are_cast() -> None:
    for name in "ab":
        Path(name, "config.json").unlink()
    merge(FP8, "out")
    assert {tensor.dtype for tensor in tiny.tensors(Path("out")).values()} == {E4M3}


@pytest.mark.parametrize("layer", [shapes(hidden=64, kv=64, inner=64), {"mixer.in_proj.weight": (128, 128)}])
def test_nothing_to_store_in_blocks_is_an_error(layer: dict[str, tuple[int, ...]]) -> None:
    remade(layer)
    with pytest.raises(RecipeError) as caught:
        plan(FP8)
    assert str(caught.value) == (
        "no weight of 'a' can be stored as float8_e4m3fn, in blocks of 128 × 128\n"
        "  choose bfloat16; or 'compat: mergekit', which rounds all tensors without scales"
    )


def test_models_of_other_linear_layers_are_refused() -> None:
    remade(shapes(), model_type="gpt2")
    with pytest.raises(RecipeError, match="no weight of 'a' can be stored"):
        plan(FP8)


def test_tensor_in_the_place_of_scales_is_an_error() -> None:
    remade({**shapes(), "mlp.up_proj.weight_scale_inv": (3,)})
    with pytest.raises(
        MismatchError, match=r"which is what the scales of 'model.layers.0.mlp.up_proj.weight'"
    ):
        plan(FP8)


# sizes, files and interruptions


def test_plan_counts_what_is_written() -> None:
    done = merge(FP8, "out", MergeOptions(out_shard_size="100KB"))
    assert sum(p.stat().st_size for p in Path("out").glob("*.safetensors")) == done.plan.bytes_to_write
    assert len(done.plan.files) > 3
    stored = tiny.tensors(Path("out"))
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(stored)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())
    text = " ".join(describe(summarise_plan(done.plan)).split())
    count = sum(t.numel() for n, t in stored.items() if not n.endswith("_scale_inv"))
    assert f"{count:,} parameters, 17 tensors, 2 layers, " in text
    assert "F8_E4M3, BF16" in text or "BF16, F8_E4M3" in text
    assert (
        "14 weights are stored as F8_E4M3 with a scale for each block of 128 × 128, "
        "3 tensors in a wider type" in text
    )


def test_where_scales_lie_is_part_of_the_plan() -> None:
    made = plan(FP8)
    first = next(job for job in made.jobs if job.scales is not None)
    assert first.scales is not None
    moved = replace(first, scales=replace(first.scales, offset=first.scales.offset + 4))
    jobs = tuple(moved if job is first else job for job in made.jobs)
    assert replace(made, jobs=jobs).digest() != made.digest()


@pytest.mark.parametrize("writes", [3, 12, 25])
def test_interrupted_merge_continues_with_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    options = MergeOptions(num_threads=1, out_shard_size="100KB")
    real, calls = os.pwrite, iter(range(10**6))
    headers = len(plan(FP8, options).files)

    def full(*args: Any) -> int:
        if next(calls) >= headers + writes:
            raise OSError(28, "No space left on device")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(RunError, match="No space left"):
            merge(FP8, "out", options)
    done = read_journal(Path("out", PARTIAL, "journal")).done
    assert len(done) < 17
    assert done or writes < 25
    assert merge(FP8, "out", options).num_resumed == len(done)
    merge(FP8, "undisturbed", options)
    assert weights("out") == weights("undisturbed")


# the engine: tiles, threads, values


def block_job(
    store: Store, shape: tuple[int, ...], method: str | None, values: Tensor | None = None
) -> TensorJob:
    numel = math.prod(shape)
    given = None if values is None else [values.view(-1)]
    job = make_job(store, "w", numel, method, dtype=E4M3, tensors=given)
    for key, tensor in store.tensors.items():
        store.tensors[key] = tensor.float() if given else seeded(numel, key.checkpoint)
    small = (*shape[:-2], shape[-2] // 128, shape[-1] // 128)
    scales = TensorJob("w_scale_inv", "F32", small, None, {}, (), None, 0, 12)
    return replace(job, shape=shape, offset=4096, scales=scales)


def carried_out(store: Store, job: TensorJob, **options: Any) -> tuple[Tensor, Tensor]:
    """Codes and scales that the engine writes."""
    sink = Memory()
    threads = options.pop("threads", 1)
    run([TensorRun(job, store, sink, **options)], threads=threads)
    assert sink.finished == ["w"]
    assert job.scales is not None
    assert (sink.times["w_scale_inv"] == 1).all()
    return sink.tensor(job, E4M3).view(job.shape), sink.tensor(job.scales).view(job.scales.shape)


def same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> bool:
    return all(
        torch.equal(f.view(torch.uint8), w.view(torch.uint8)) for f, w in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("method", ["linear", "ties", "slerp", None])
@pytest.mark.parametrize("shape", [(128, 128), (640, 384), (384, 1408), (3, 256, 640), (128, 8320)])
def test_tiles_spans_and_threads_change_nothing(method: str | None, shape: tuple[int, ...]) -> None:
    store = Store()
    job = block_job(store, shape, method)
    plain = replace(job, dtype="F32", scales=None)
    sink = Memory()
    run(runs([plain], store, sink), threads=1)
    wanted = expected(sink.tensor(plain).view(shape))
    for tile, span, threads in (
        (CHUNK, CHUNK, 1),
        (CHUNK, 3 * CHUNK, 3),
        (4 * CHUNK, CHUNK, 2),
        (2**23, 2**23, 1),
    ):
        assert same(carried_out(store, job, tile=tile, span=span, threads=threads), wanted)


@pytest.mark.parametrize("exponent", [-149, -140, -127, -126, -40, 0, 40, 127])
def test_values_of_every_size_keep_their_bits(exponent: int) -> None:
    values = seeded(128 * 256, 5).view(128, 256).clamp(-1.9, 1.9) * 2.0**exponent
    values[:, :128] = 0
    store = Store()
    codes, scales = carried_out(store, block_job(store, (128, 256), None, values))
    assert scales[0, 0] == 1
    assert scales[0, 1] >= torch.finfo(torch.float32).tiny
    error = (codes.double() * spread(scales).double() - values.double()).abs()
    assert torch.all(error <= values.double().abs() * 2**-4 * (1 + 2**-20) + spread(scales).double() * 2**-10)
    if exponent >= -110:
        assert codes.float().abs().max() == 448


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["linear", None])
def test_values_that_are_no_numbers(bad: float, method: str | None) -> None:
    values = seeded(256 * 256, 1).view(256, 256)
    values[200, 3] = bad
    store = Store()
    job = block_job(store, (256, 256), method)
    store.tensors[Input(0, "w")] = values.view(-1)
    with pytest.raises(RunError, match=r"'w' of 'model 0' has the value -?(nan|inf) at element 51,203"):
        carried_out(store, job)
    codes, scales = carried_out(store, job, allow_nonfinite=True)
    assert scales.isfinite().all()
    assert codes.float().isnan().nonzero().tolist() == [[200, 3]]
    assert codes.float().abs().nan_to_num().max() == 448
