"""Small models in every format, and what they should be read as; for formats.py.

The samples are those of the tests. What they should be read as is computed by other libraries (safetensors,
torch, gguf, peft) or from the formulas of the format, over whole tensors.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import torch
import transformers
from torch import Tensor

import test_adapter
import test_experts
import test_gguf
import test_pickled
import test_quantised
import tiny
from gguf_conversion import llama_cpp_keys, llama_cpp_tensors
from gguf_files import write_gguf
from gguf_made import Made
from gguf_samples import SAMPLES, SIZES
from meldkit.checkpoint import DTYPES
from meldkit.checkpoint.gguf.architectures import ARCHITECTURES
from meldkit.checkpoint.gguf.blocks import KINDS
from meldkit.checkpoint.weights import PICKLED

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """A model in some format, and another one to merge it with.

    Attributes:
        model: as a recipe names it.
        values: its tensors, read without meldkit.
        other: a model to merge it with; a plain one of random weights if it is empty.
        other_values: that model's tensors, by the names and in the shapes of the first.
    """

    model: str | Path
    values: Values
    other: str | Path = ""
    other_values: Values = field(default_factory=dict)


#: Makes samples in a folder.
Make = Callable[[Path], Iterator[Sample]]


@dataclass(frozen=True)
class Row:
    """A format: the cells of the page before the result, and what makes samples of it."""

    cells: tuple[str, ...]
    make: Make


# ---- safetensors and torch.save


def safetensors_rows() -> Iterator[Row]:
    def whole(folder: Path) -> Iterator[Sample]:
        model = tiny.llama(folder / "m", 0, layers=2)
        yield Sample(model, tiny.tensors(model))
        yield Sample(model / "model.safetensors", tiny.tensors(model))

    def sharded(folder: Path) -> Iterator[Sample]:
        model = transformers.LlamaForCausalLM.from_pretrained(tiny.llama(folder / "m", 0, layers=2))
        model.save_pretrained(folder / "s", max_shard_size="20KB")
        yield Sample(folder / "s", tiny.tensors(folder / "s"))

    def of(dtype: torch.dtype) -> Make:
        def make(folder: Path) -> Iterator[Sample]:
            more = {"ids": torch.arange(5), "wide": torch.randn(9, dtype=torch.float64).to(dtype)}
            model = tiny.decoder(folder / "m", dtype=dtype, extra=more)
            yield Sample(model, {n: t.double() if n != "ids" else t for n, t in tiny.tensors(model).items()})

        return make

    yield Row(("`model.safetensors` in a folder, or such a file alone",), whole)
    yield Row(("several files and `model.safetensors.index.json`",), sharded)
    for dtype in (d for d in DTYPES.values() if d.floating):
        yield Row((f"numbers of type {dtype.torch}",), of(getattr(torch, dtype.torch)))


_CONTAINERS = {
    "plain": "a state dict, in a file of any name",
    "parallel": "`module.` before all names (DataParallel)",
    "compiled": "`_orig_mod.` before all names (torch.compile)",
    "one key": "a state dict under any key, if only one holds tensors",
    "nested": '`{"state_dict": {"model": …}}`',
    "beside others": "beside an optimizer's state, which is left out",
    "beside tensors": "beside counters and random states, which are left out",
    "average": "two copies of the weights: those under a usual name are taken",
    "lightning": "a checkpoint of PyTorch Lightning",
    "two networks": "two networks, whose names get the key in front",
    "numbered": "lists by number",
}


def pickled_rows() -> Iterator[Row]:
    def llama(folder: Path) -> Values:
        return tiny.tensors(tiny.llama(folder, 0, layers=2))

    def one_file(folder: Path) -> Iterator[Sample]:
        values = llama(folder / "a")
        for old in (False, True):
            model = shutil.copytree(folder / "a", folder / f"b{old}")
            (model / "model.safetensors").unlink()
            torch.save(values, model / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
            yield Sample(model, values)

    def sharded(folder: Path) -> Iterator[Sample]:
        yield Sample(test_pickled.llama_bin(folder / "b", 0, shards=3), llama(folder / "a"))

    def views(folder: Path) -> Iterator[Sample]:
        base = torch.randn(6, 8)
        values = {"t": base.T, "rows": base[2:4], "steps": base[::2, 1::3], "tied": base, "again": base}
        torch.save(values, folder / "w.pt")
        yield Sample(folder / "w.pt", torch.load(folder / "w.pt", weights_only=True))

    def container(kind: str) -> Make:
        def make(folder: Path) -> Iterator[Sample]:
            content, values = test_pickled.containers()[kind]
            for suffix, old in itertools.product(PICKLED, (False, True)):
                path = folder / f"{old}{suffix}"
                torch.save(content, path, _use_new_zipfile_serialization=not old)
                yield Sample(path, values)

        return make

    yield Row(("`pytorch_model.bin`, of today's torch and of torch before 1.6",), one_file)
    yield Row(("several files and `pytorch_model.bin.index.json`",), sharded)
    yield Row(("transposed, cut and tied tensors",), views)
    for kind in test_pickled.containers():
        yield Row((_CONTAINERS.get(kind, kind),), container(kind))


# ---- quantised checkpoints

_QUANTISED = {
    "FP8, a scale for each block": (
        *("blocks", "ragged blocks", "usual blocks", "bf16 scales", "static", "e5m2", "deepseek v4 names"),
        *("compressed-tensors, block", "modelopt, blocks", "experts", "small gate and up"),
    ),
    "FP8, a scale for each row": (
        *("compressed-tensors, channel", "fbgemm", "fbgemm, gate and up", "fbgemm, down", "modelopt, rows"),
    ),
    "FP8, a scale for each group of a row": ("compressed-tensors, group",),
    "FP8, a scale for the tensor, or for each expert": (
        *("per tensor", "compressed-tensors, tensor", "modelopt, no settings", "a scale for each expert"),
    ),
    "MXFP8": ("mxfp8",),
    "MXFP4": ("mxfp4, compressed-tensors", "mxfp4, deepseek", "gpt-oss"),
    "NVFP4": ("nvfp4, compressed-tensors", "nvfp4, modelopt"),
    "int8": (
        *("int8, channel", "int8, bf16 scales", "int8 with zeros", "int8, groups with zeros"),
        *("packed int8", "packed int8 with zeros"),
    ),
    "int4, packed": ("packed int4", "packed int4 with zeros"),
}


def _grouped(groups: Mapping[str, Sequence[str]], known: Mapping[str, object]) -> dict[str, Sequence[str]]:
    """Groups of those that are known; what is in no group is one of its own."""
    listed = set(itertools.chain(*groups.values()))
    return {**groups, **{name: (name,) for name in known if name not in listed}}


def quantised_rows() -> Iterator[Row]:
    cases = test_quantised.CASES

    def of(names: Sequence[str]) -> Make:
        def make(folder: Path) -> Iterator[Sample]:
            for name in names:
                case = cases[name]
                norm = {"norm.weight": torch.randn(4)}
                model = test_quantised.written(folder / name, case.stored | norm, case.settings)
                yield Sample(model, {case.name: case.value.float()} | norm)

        return make

    for title, names in _grouped(_QUANTISED, cases).items():
        methods = {(cases[name].settings or {}).get("quant_method", "none named") for name in names}
        yield Row((title, ", ".join(sorted(f"`{m}`" if " " not in m else m for m in methods))), of(names))


# ---- GGUF


def kind_rows() -> Iterator[Row]:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**(SIZES | sizes))
    sample = SAMPLES["llama"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)

    def of(kind: gguf.GGMLQuantizationType) -> Make:
        def make(folder: Path) -> Iterator[Sample]:
            weights = transformers.LlamaForCausalLM(config).state_dict()
            stored = llama_cpp_tensors(sample, config, weights)
            kinds: dict[str, gguf.GGMLQuantizationType] = {}
            values: dict[str, Tensor] = {}
            for seed, (name, weight) in enumerate(weights.items()):
                leaf = names.get_name(name.removesuffix(".weight")) + ".weight"
                value = weight
                if weight.ndim == 2:
                    stored[leaf] = test_gguf.raw_blocks(kind, stored[leaf].shape, seed)
                    kinds[leaf] = kind
                    value = torch.from_numpy(gguf.quants.dequantize(stored[leaf], kind)).view(weight.shape)
                    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
                    if count := heads.get(leaf.split(".")[-2]):
                        # llama.cpp turns pairs of neighbouring rows, transformers a head's two halves.
                        value = value.view(count, -1, 2, 256).transpose(1, 2).reshape(weight.shape)
                values[name] = value
            keys = llama_cpp_keys(sample, config, weights)
            yield Sample(write_gguf(folder / "m.gguf", "llama", keys, stored, kinds), values)

        return make

    for kind in KINDS.values():
        block = f"{kind.block} numbers in {kind.nbytes} bytes" if kind.block > 1 else ""
        yield Row((kind.name, block), of(gguf.GGMLQuantizationType[kind.name]))


def architecture_rows() -> Iterator[Row]:
    def of(keys: Sequence[str]) -> Make:
        def make(folder: Path) -> Iterator[Sample]:
            for key in keys:
                (folder / key).mkdir()
                made = Made(key, folder / key)
                yield Sample(made.file, made.weights)

        return make

    for architecture in ARCHITECTURES:
        keys = [k for k, s in SAMPLES.items() if s.architecture == architecture]
        types = dict.fromkeys(SAMPLES[key].model_type for key in keys)
        yield Row((architecture, ", ".join(types)), of(keys))


# ---- adapters

_ADAPTERS = {
    "LoRA": ("plain", "one module", "fractional alpha", "negative alpha", "rank one", "lm_head"),
    "other initialisations": ("gaussian", "orthogonal", "mica"),
    "rank-stabilised: `use_rslora`": ("rslora", "patterns and rslora"),
    "`rank_pattern`, `alpha_pattern`": ("patterns", "first pattern counts", "anchored patterns"),
    "DoRA": ("dora", "dora and rslora", "Conv1D, DoRA", "convolutions, DoRA", "embedding, dora"),
    "embeddings": ("embedding", "embeddings"),
    "single tokens: `trainable_token_indices`": ("tokens", "tokens of a module"),
    "whole modules: `modules_to_save`": ("saved modules", "saved norms", "saved block"),
    '`bias: "all"`, `bias: "lora_only"`, `lora_bias`': (
        *("Conv1D and biases", "Conv1D and own biases", "biases of factors"),
    ),
    "Conv1D of GPT-2: `fan_in_fan_out`": ("Conv1D",),
    "convolutions": ("convolutions", "convolutions in one dimension"),
    "encoders": ("encoder",),
    "vision-language models": ("language and vision",),
    "parameters: `target_parameters`": ("parameters of linear layers", "router", "one parameter"),
    "experts": (
        *("Mixtral's experts", "Mixtral's old names", "Qwen's experts"),
        *("transposed experts", "transposed square experts", "biases of experts"),
    ),
}


def adapter_rows() -> Iterator[Row]:
    llama = ("LlamaForCausalLM", "LlamaConfig", test_adapter.SMALL)
    kinds = {name: (llama, settings) for name, settings in test_adapter.KINDS.items()}
    for name, (model, loader, settings) in test_adapter.ARCHITECTURES.items():
        if not loader:  # trained under another class than it is stored as; the names of its tensors differ
            kinds[name] = test_adapter.MODELS[model], settings

    def of(names: Sequence[str]) -> Make:
        def make(folder: Path) -> Iterator[Sample]:
            for name in names:
                (model, config, sizes), settings = kinds[name]
                base = test_adapter.made(folder / f"{name} base", model, config, **sizes)
                adapter = test_adapter.train(base, folder / name, 2, model, **settings)
                yield Sample(f"{base}+{adapter}", test_adapter.merged_by_peft(base, adapter, loader=model))

        return make

    def variants(folder: Path) -> Iterator[Sample]:
        base = tiny.llama(folder / "base", 0, layers=2)
        a = test_adapter.train(base, folder / "a", 1)
        values = test_adapter.merged_by_peft(base, a)
        yield Sample(a, values)
        torch.save(test_adapter.load_file(a / "adapter_model.safetensors"), a / "adapter_model.bin")
        (a / "adapter_model.safetensors").unlink()
        yield Sample(f"{base}+{a}", values)

    def several(folder: Path) -> Iterator[Sample]:
        base = tiny.llama(folder / "base", 0, layers=2)
        a = test_adapter.train(base, folder / "a", 1)
        b = test_adapter.train(base, folder / "b", 3, r=2, use_dora=True, target_modules=["q_proj"])
        yield Sample(f"{base}+{a}+{b}", test_adapter.merged_by_peft(base, a, b))

    def of_another_dtype(folder: Path) -> Iterator[Sample]:
        name = "model.layers.0.self_attn.q_proj"
        base = tiny.decoder(folder / "base", dtype=torch.bfloat16)
        adapter = tiny.adapter(folder / "a", {name: (4, 4)})
        head = torch.randn(6, 4)
        test_adapter.configure(adapter, modules_to_save=["lm_head"])
        test_adapter.rewrite(adapter, lambda t: t.update({"base_model.model.lm_head.weight": head}))
        factors = test_adapter.load_file(adapter / "adapter_model.safetensors")
        b, a = (factors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "BA")
        values = {name: t.double() for name, t in tiny.tensors(base).items()}
        values[f"{name}.weight"] += 2 * (b @ a)
        values["lm_head.weight"] = head.double()
        yield Sample(f"{base}+{adapter}", values)

    def over_codes(folder: Path) -> Iterator[Sample]:
        base = test_adapter.made(folder / "base", *llama[:2], **test_adapter.SMALL)
        a = test_adapter.train(base, folder / "a", 1)
        block = test_quantised.quantised(shutil.copytree(base, folder / "fp8"))
        plain = shutil.copytree(base, folder / "plain")
        tiny.stored(plain, dict(of_blocks(block)))
        yield Sample(f"{block}+{a}", test_adapter.merged_by_peft(plain, a))

    for title, names in _grouped(_ADAPTERS, kinds).items():
        yield Row((title,), of(names))
    yield Row(("several adapters over each other: `base+a+b`",), several)
    yield Row(("an adapter alone, whose base its configuration names; `adapter_model.bin`",), variants)
    yield Row(("an adapter in float32 over a model in bfloat16",), of_another_dtype)
    yield Row(("over a quantised model",), over_codes)


def of_blocks(model: Path, block: int = 16) -> Values:
    """The numbers of a model that `test_quantised.quantised` has made."""
    stored = tiny.tensors(model)
    return {
        name: (t.double() * test_quantised.spread(stored[f"{name}_scale_inv"], block, block, t.shape)).float()
        if f"{name}_scale_inv" in stored
        else t
        for name, t in stored.items()
        if not name.endswith("_scale_inv")
    }


# ---- models that are stored in different ways


def mixed_rows() -> Iterator[Row]:
    def dtypes(folder: Path) -> Iterator[Sample]:
        a, b = (tiny.decoder(folder / d, dtype=getattr(torch, d)) for d in ("bfloat16", "float16"))
        yield Sample(a, tiny.tensors(a), b, tiny.tensors(b))

    def tied(folder: Path) -> Iterator[Sample]:
        head = "lm_head.weight"
        a = tiny.decoder(folder / "tied", without=(head,), tie_word_embeddings=True)
        b = tiny.decoder(folder / "own", 1)
        tied, own = tiny.tensors(a), tiny.tensors(b)
        yield Sample(b, own, a, tied | {head: tied["model.embed_tokens.weight"]})
        del own[head]
        yield Sample(a, tied, b, own)

    def kinds(folder: Path) -> Iterator[Sample]:
        made = Made("llama-biases", folder)
        path, values = made.file, made.weights
        fp8 = test_quantised.quantised(shutil.copytree(folder / "hf", folder / "fp8"))
        yield Sample(path, values, fp8, of_blocks(fp8))
        yield Sample(fp8, of_blocks(fp8), path, values)

    def experts(first: str) -> Make:
        def make(folder: Path) -> Iterator[Sample]:
            values = test_experts.written(folder / first, first)
            for form in test_experts.FORMS:
                halves = {n: t / 2 for n, t in test_experts.written(folder / f"b {form}", form).items()}
                other = tiny.stored(folder / f"b {form}", halves, {})
                yield Sample(folder / first, values, other, {name: t / 2 for name, t in values.items()})

        return make

    yield Row(("bfloat16 and float16",), dtypes)
    yield Row(("a head that is tied to the embedding, and one of its own",), tied)
    yield Row(("GGUF and FP8",), kinds)
    for form in test_experts.FORMS:
        yield Row((f"experts: {_FORMS.get(form, form)}; with each of the others",), experts(form))


_FORMS = {
    "qwen": "one by one, as Qwen, DeepSeek and OLMoE have them",
    "mixtral": "one by one, as Mixtral has them",
    "fc": "one by one, `fc1`, `fc2`, `fc3`",
    "half fused": "one by one, gates and ups in one",
    "fused": "all in one tensor, as transformers 5 has them in memory",
    "transposed": "all in one tensor, transposed",
    "granite": "all in one tensor, as Granite has them",
    "stacked": "three tensors: gates, ups and downs",
    "stacked, transposed": "three tensors, transposed",
}
