"""Merges of every method and kind, by every way that must not change a byte; `test_same_bytes.py` tries them.

As a program it prints the sums of merges, for processes with other surroundings:

    python tests/same_bytes.py MODELS METHOD…
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

import killed
import tiny
from gguf_files import write_gguf
from meldkit import merge, merge_state_dicts, plan
from meldkit.api import tensor_sums
from meldkit.engine import TensorRun, fused, jobs, run_jobs
from meldkit.errors import RunError
from meldkit.kernels import library
from meldkit.methods import METHODS, Base
from meldkit.methods.statistics import CHUNK
from meldkit.options import MergeOptions
from meldkit.output import RECORD, sum_of

#: Tensors of a few chunks, of whole rows and of less than one.
SHAPES = {
    "model.embed_tokens.weight": (301, 32),
    "model.layers.0.self_attn.q_proj.weight": (1031, 129),
    "model.layers.0.input_layernorm.weight": (33,),
    "model.layers.1.self_attn.q_proj.weight": (1031, 129),
    "model.layers.1.input_layernorm.weight": (33,),
}
NAMES = ("base", "x", "y", "z")
CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
}
#: Parameters that make a method do something else than with its usual ones, by method and in words.
VARIANTS: dict[str, dict[str, Any]] = {
    "passthrough, scaled": {"scale": 0.5},
    "ties, all kept": {"density": 1},
    "ties, rescaled": {"rescale": True},
    "ties, of the model": {"trim_scope": "model"},
    "dare_linear, by density": {"rescale": "inverse_density"},
    "della, by probability": {"rescale": "keep_probability"},
    "breadcrumbs, rescaled": {"rescale": True},
    "sce, selected": {"select_topk": 0.1},
    "nuslerp, rows": {"nuslerp_flatten": False},
    "nuslerp, columns": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    "model_stock, rows": {"filter_wise": True},
}
#: The same names in llama.cpp, for an architecture that leaves the rows of matrices where they are.
_GGUF = {
    "model.embed_tokens.weight": "token_embd.weight",
    **{f"model.layers.{i}.self_attn.q_proj.weight": f"blk.{i}.attn_q.weight" for i in range(2)},
    **{f"model.layers.{i}.input_layernorm.weight": f"blk.{i}.attn_norm.weight" for i in range(2)},
}
_KEYS: dict[str, Any] = {
    "context_length": 64,
    "embedding_length": 32,
    "block_count": 2,
    "feed_forward_length": 64,
    "attention.head_count": 1,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
#: Name of a tensor → sum of its bytes.
Sums = Mapping[str, str]


def state_dicts() -> dict[str, dict[str, Tensor]]:
    """The models. Their values are numbers of bfloat16 and of float16, so that they can be stored in each."""
    generator = torch.Generator().manual_seed(3)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    models = {"base": base}
    for name in NAMES[1:]:
        models[name] = {k: t + 0.05 * torch.randn(t.shape, generator=generator) for k, t in base.items()}
    return {
        name: {k: t.bfloat16().half().float() for k, t in model.items()} for name, model in models.items()
    }


def write_models(folder: Path) -> None:
    """The models in every form: whole, in shards, pickled, in other types, as GGUF."""
    types = {"base": torch.float32, "x": torch.float16, "y": torch.bfloat16, "z": torch.float16}
    for name, weights in state_dicts().items():
        tiny.stored(folder / "whole" / name, weights, CONFIG)
        for form, dtype in (("bfloat16", torch.bfloat16), ("types", types[name])):
            tiny.stored(folder / form / name, {k: t.to(dtype) for k, t in weights.items()}, CONFIG)
        for form, each in (("gguf", 0), ("gguf parts", 2)):
            (folder / form / name).mkdir(parents=True)
            arrays = {_GGUF[k]: t.numpy() for k, t in (weights if each else _reversed(weights)).items()}
            write_gguf(folder / form / name / "m.gguf", "qwen2", _KEYS, arrays, each=each)
        pickled = folder / "pickled" / name
        pickled.mkdir(parents=True)
        torch.save(weights, pickled / "pytorch_model.bin")
        sharded = folder / "sharded" / name
        sharded.mkdir(parents=True)
        files = {
            k: f"model-{i + 1:05}-of-{len(weights):05}.safetensors" for i, k in enumerate(reversed(weights))
        }
        for k, file in files.items():
            save_file({k: weights[k]}, sharded / file, metadata={"format": "pt"})
        index = sharded / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
        for other in (pickled, sharded):
            (other / "config.json").write_text(json.dumps(CONFIG))


def _reversed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(reversed(weights.items()))


@dataclass(frozen=True)
class Kind:
    """What is merged by a recipe of those that are killed.

    Attributes:
        name: of the recipe.
    """

    name: str

    def recipe(self, folder: Path) -> dict[str, Any]:
        """The recipe for models in a folder."""
        return _below(killed.RECIPES[self.name], folder)


def _below(value: Any, folder: Path, key: str = "") -> Any:
    """The recipe with models of a folder."""
    if isinstance(value, dict):
        return {k: _below(v, folder, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_below(v, folder) for v in value]
    return (
        "+".join(f"{folder / name}" for name in value.split("+")) if key in ("model", "base_model") else value
    )


@dataclass(frozen=True)
class Merge:
    """What is merged by a method.

    Attributes:
        method: its name.
        base: whether it gets a base.
        models: names of the models.
        parameters: by their names in recipes.
    """

    method: str
    base: bool
    models: tuple[str, ...]
    parameters: Mapping[str, Any]

    def recipe(self, folder: Path) -> dict[str, Any]:
        """The recipe for models in a folder."""
        recipe: dict[str, Any] = {
            "merge_method": self.method,
            "models": [{"model": str(folder / name)} for name in self.models],
            "parameters": dict(self.parameters),
            "dtype": "float32",
        }
        if self.base:
            recipe["base_model"] = str(folder / "base")
        return recipe


def usual(name: str) -> Merge:
    """Up to three models and default parameters; those that have none, and density, at something usual."""
    method = METHODS[name]
    base = method.base in (Base.DELTA, Base.OPTIONAL_DELTA, Base.ENDPOINT)
    num = min(3, method.num_models[1] or 3) - (method.base is Base.ENDPOINT)
    parameters: dict[str, Any] = {}
    for p in method.parameters:
        if p.of_recipe:
            continue
        value: Any = (0.5 if p.required else p.default) if p.default is not None else 1.0
        parameters[p.name] = 0.4 if p.name == "density" else value
    return Merge(name, base, NAMES[1 : 1 + num], parameters)


def case_of(name: str) -> Merge:
    """The usual merge of a method, or one of the variants."""
    case = usual(name.partition(",")[0])
    return replace(case, parameters={**case.parameters, **VARIANTS.get(name, {})})


def recorded(folder: Path) -> Sums:
    """The sums that a merge has recorded."""
    weights = json.loads((folder / RECORD).read_text())["weights"]
    return {name: value for file in weights.values() for name, value in file["sums"].items()}


def on_disk(folder: Path) -> Sums:
    """The sums of what lies in an output's files, read by the safetensors library."""
    return {name: _sum(tensor) for name, tensor in tiny.tensors(folder).items()}


def _sum(tensor: Tensor) -> str:
    return str(sum_of(tensor.contiguous().view(-1).view(torch.uint8).numpy().data))


@contextmanager
def cut_into(tile: int, span: int) -> Generator[None]:
    """Merge in tiles and spans of so many elements, in compiled loops too."""
    init: Any = TensorRun.__init__
    with (
        mock.patch.dict(init.__kwdefaults__, {"span": span}),
        mock.patch.dict(run_jobs.__kwdefaults__, {"tile": tile}),
        mock.patch.object(fused, "tile_factor", return_value=1),
        mock.patch.object(jobs, "tile_factor", return_value=1),
    ):
        yield


def streamed(case: Merge | Kind, models: Path, out: Path, threads: int = 1) -> Sums:
    """From files to files."""
    shutil.rmtree(out, ignore_errors=True)
    merge(case.recipe(models), out, MergeOptions(num_threads=threads, write_model_card=False))
    sums = on_disk(out)
    assert recorded(out) == sums
    return sums


def resumed(case: Merge | Kind, models: Path, out: Path) -> Sums:
    """Stopped by a full disk after the second write, and continued."""
    shutil.rmtree(out, ignore_errors=True)
    options = MergeOptions(num_threads=1, write_model_card=False, out_shard_size="100K")
    headers = len(plan(case.recipe(models), options).files)
    real, calls = os.pwrite, iter(range(10**6))

    def write(*args: Any) -> int:
        if next(calls) >= headers + 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with mock.patch.object(os, "pwrite", write):
        try:
            merge(case.recipe(models), out, options)
        except RunError:
            pass
        else:
            raise AssertionError("it was not stopped")
    result = merge(case.recipe(models), out, options)
    assert result.num_resumed, "nothing was left to continue with"
    sums = on_disk(out)
    assert recorded(out) == sums
    return sums


def in_memory(case: Merge, tile: int = 2 * CHUNK, threads: int = 1) -> Sums:
    """From tensors to tensors."""
    weights = state_dicts()
    merged = merge_state_dicts(
        [weights[name] for name in case.models],
        case.method,
        base=weights["base"] if case.base else None,
        tile=tile,
        threads=threads,
        **case.parameters,
    )
    return {name: _sum(tensor) for name, tensor in merged.items()}


def unwritten(case: Merge | Kind, models: Path) -> Sums:
    """From files to nowhere, as `meldkit reproduce` does."""
    return {n: str(s) for n, s in tensor_sums(plan(case.recipe(models))).items()}


Way = Callable[[Merge, Path, Path], Sums]
#: The same, given the folder of the models themselves.
Run = Callable[[Merge | Kind, Path, Path], Sums]


def _in(form: str, run: Run = streamed) -> Way:
    return lambda case, models, out: run(case, models / form, out)


def _cut(tile: int, span: int, threads: int) -> Run:
    def run(case: Merge | Kind, models: Path, out: Path) -> Sums:
        with cut_into(tile, span):
            return streamed(case, models, out, threads)

    return run


def without_kernels(case: Merge, models: Path, out: Path) -> Sums:
    """With PyTorch in place of the compiled kernels."""
    with mock.patch.object(library, "FUNCTIONS", None):
        return streamed(case, models / "whole", out)


#: Ways that give the bytes of one thread and the usual tiles, of whatever is merged.
RUNS: dict[str, Run] = {
    "again": streamed,
    "2 threads": _cut(CHUNK, CHUNK, 2),
    "4 threads": _cut(CHUNK, CHUNK, 4),
    "tiles of 64 Ki": _cut(CHUNK, 4 * CHUNK, 1),
    "tiles of 2 Mi": _cut(32 * CHUNK, 32 * CHUNK, 1),
    "resumed": resumed,
    "not written": lambda case, models, _: unwritten(case, models),
}
#: These, models in other forms, and tensors in memory.
WAYS: dict[str, Way] = {
    **{name: _in("whole", run) for name, run in RUNS.items()},
    "in memory": lambda case, *_: in_memory(case),
    "inputs in shards": _in("sharded"),
    "inputs pickled": _in("pickled"),
    "inputs in bfloat16": _in("bfloat16"),
    "inputs in float32, float16 and bfloat16": _in("types"),
    "inputs as GGUF": _in("gguf"),
    "inputs as GGUF in parts": _in("gguf parts"),
}


def main() -> None:
    """Print the sums of merges."""
    models, *names = sys.argv[1:]
    out = Path("out")
    result = {name: dict(streamed(usual(name), Path(models) / "whole", out, 2)) for name in names}
    print(json.dumps({"kernels": torch.backends.cpu.get_cpu_capability(), "sums": result}))


if __name__ == "__main__":
    main()
