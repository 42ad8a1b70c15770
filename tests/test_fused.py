"""What compiled loops make: the same bytes as the general way, and PyTorch is not imported."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from ctypes import c_long
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tiny
from meldkit.checkpoint import DTYPES, HeldTensor, OpenFiles, StoredTensor, TileSource, open_files
from meldkit.checkpoint.safetensors import read_header
from meldkit.checkpoint.tensor import read_all
from meldkit.engine import TensorRun, run
from meldkit.engine.fused import FusedRun, fused_sources, without_torch
from meldkit.errors import CheckpointError, RunError
from meldkit.kernels import library
from meldkit.kernels.tile import Tile, in_file, in_memory
from meldkit.methods import METHODS, Values
from meldkit.methods.statistics import CHUNK
from meldkit.plan import Input, TensorJob
from test_engine import Memory

#: Elements: whole and broken chunks, and pieces that kernels read at a time.
SIZES = (1, 1000, 16 * 1024 + 3, 2 * CHUNK + 17)
SHAPES = {1000: (8, 125), 16 * 1024 + 3: (7, 2341)}
STORED = ("F32", "BF16", "F16")
#: Levels of x86-64 for which there are loops that this processor can run; the first is for any machine.
LEVELS = [level for level in (1, 3, 4) if level <= max(1, library.FUNCTIONS.level())]
_THREE = (0.7, 1.0, -0.4)
SPARSE: Values = {"weight": _THREE, "density": (0.5, 0.2, 1.0), "lambda": 0.9, "rescale": False}
EDGES: Values = SPARSE | {"gamma": (0.01, 0.1, 0.0)}
RANKED: Values = SPARSE | {"density": (0.5, 0.3, 1.0), "epsilon": (0.15, 0.1, 0.2)}
#: Methods with values of their parameters, how many models they take, and whether there is a base.
CASES: dict[str, tuple[str, Values, int, bool]] = {
    "copied": ("", {}, 1, False),
    "linear": ("linear", {"weight": (0.25, 0.5, 1.5), "normalize": True}, 3, False),
    "linear, one": ("linear", {"weight": (1.0,), "normalize": False}, 1, False),
    "passthrough": ("passthrough", {"scale": (0.3,)}, 1, False),
    "task arithmetic": (
        "task_arithmetic",
        {"weight": (0.7, -0.4), "normalize": False, "lambda": 0.9},
        2,
        True,
    ),
    "slerp": ("slerp", {"t": 0.3}, 2, False),
    "nuslerp": (
        "nuslerp",
        {"weight": (0.3, 0.6), "nuslerp_flatten": True, "nuslerp_row_wise": False},
        2,
        False,
    ),
    "nuslerp, base": (
        "nuslerp",
        {"weight": (0.3, 0.6), "nuslerp_flatten": True, "nuslerp_row_wise": False},
        2,
        True,
    ),
    "multislerp": (
        "multislerp",
        {"weight": (0.2, 0.3, 0.7), "normalize_weights": True, "eps": 1e-8},
        3,
        False,
    ),
    "karcher": (
        "karcher",
        {"weight": (1.0, 2.0, 1.0), "max_iter": 10.0, "tol": 1e-5, "compat": False},
        3,
        False,
    ),
    "model stock": ("model_stock", {"filter_wise": False, "compat": False}, 4, True),
    "nearswap": ("nearswap", {"t": 0.2}, 1, True),
    "ties": ("ties", SPARSE | {"normalize": True, "elect": "weighted", "trim_scope": "tensor"}, 3, True),
    "ties, rescaled": (
        "ties",
        SPARSE | {"normalize": False, "elect": "unweighted", "trim_scope": "tensor", "rescale": True},
        3,
        True,
    ),
    "breadcrumbs": ("breadcrumbs", EDGES | {"normalize": False}, 3, True),
    "breadcrumbs_ties": ("breadcrumbs_ties", EDGES | {"normalize": True, "rescale": True}, 3, True),
    "dare_linear": ("dare_linear", SPARSE | {"normalize": False, "rescale": "l1"}, 3, True),
    "dare_ties": ("dare_ties", SPARSE | {"normalize": True, "rescale": "inverse_density"}, 3, True),
    "della": ("della", RANKED | {"normalize": True, "rescale": "l1"}, 3, True),
    "della_linear": ("della_linear", RANKED | {"normalize": False, "rescale": "keep_probability"}, 3, True),
    "della, not rescaled": ("della", RANKED | {"normalize": True, "rescale": "none"}, 3, True),
    "sce": ("sce", {"select_topk": 0.3, "fuse": "selected", "compat": False}, 3, True),
    "sce, all": ("sce", {"select_topk": 0.3, "fuse": "all", "compat": True}, 3, True),
    "sce, of all": ("sce", {"select_topk": 1.0, "fuse": "selected", "compat": False}, 3, True),
    "ram": ("ram", {"epsilon": 0.3}, 3, True),
    "ramplus_tl": ("ramplus_tl", {"r": 0.1, "alpha": 0.2, "epsilon": 0.3}, 3, True),
    "arcee_fusion": ("arcee_fusion", {}, 2, False),
}


class Stored:
    """Inputs that lie in files: checkpoint number and name of a tensor."""

    def __init__(self, files: OpenFiles, paths: Sequence[Path]) -> None:
        self.files = files
        self.headers = [read_header(path).tensors for path in paths]

    def open(self, tensor: Input) -> TileSource:
        return self.headers[tensor.checkpoint][tensor.tensor].open(self.files)

    def label(self, tensor: Input) -> str:
        return f"model {tensor.checkpoint}"

    def open_raw(self, tensor: Input, dtype: str | None) -> StoredTensor | None:
        info = self.headers[tensor.checkpoint][tensor.tensor]
        return StoredTensor(self.files, info) if dtype in (None, info.dtype) else None


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five related models, with a tensor of each size and type."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    first = {n: rng.standard_normal(n) for n in SIZES}
    result: list[Path] = []
    for model in range(5):
        tensors: dict[str, torch.Tensor] = {}
        for dtype in STORED:
            for n in SIZES:
                values = torch.from_numpy(first[n] + 0.4 * model * rng.standard_normal(n))
                tensors[f"{dtype} {n}"] = values.to(getattr(torch, DTYPES[dtype].torch))
        result.append(folder / f"{model}.safetensors")
        save_file(tensors, result[-1])
    return result


@pytest.fixture
def inputs(paths: list[Path]) -> Iterator[Stored]:
    with open_files() as files:
        yield Stored(files, paths)


def job_of(case: str, name: str, dtype: str, numel: int) -> TensorJob:
    method, values, num_models, has_base = CASES[case]
    base = Input(4, name) if has_base else None
    models = tuple(Input(i, name) for i in range(num_models))
    shape = SHAPES.get(numel, (numel,))
    return TensorJob(name, dtype, shape, METHODS.get(method), values, models, base, 0, 8)


def test_there_is_a_case_for_each_method() -> None:
    assert {method for method, *_ in CASES.values()} == {"", *METHODS}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stored", STORED)
def test_kernels_give_the_bytes_of_the_general_way(case: str, stored: str, inputs: Stored) -> None:
    for dtype in STORED:
        for n in SIZES:
            job = job_of(case, f"{stored} {n}", dtype, n)
            sources = fused_sources(job, inputs)
            assert sources
            fast, general = Memory(), Memory()
            before = inputs.files.bytes_read
            run([FusedRun(sources, job, inputs, fast, tile=CHUNK)])
            read = inputs.files.bytes_read - before
            run([TensorRun(job, inputs, general, tile=CHUNK)])
            assert fast.bytes[job.name] == general.bytes[job.name]
            assert read == inputs.files.bytes_read - before - read


@pytest.mark.parametrize("dtype", STORED)
def test_numbers_are_rounded_as_pytorch_rounds_them(dtype: str) -> None:
    # Every half and bfloat16 number, what lies half way between two of them, and its neighbours.
    halves = np.arange(2**16, dtype=np.uint16)
    exact = [halves.view(np.float16).astype(np.float32), (halves.astype(np.uint32) << 16).view(np.float32)]
    finite = np.concatenate(exact)
    finite = finite[np.isfinite(finite)]
    middle = (finite.astype(np.float64) + np.nextafter(finite, np.float32(np.inf)).astype(np.float64)) / 2
    ties = (finite.view(np.uint32) + 0x8000).view(np.float32)
    near = (finite.view(np.uint32) + 0x1000).view(np.float32)
    values = np.concatenate([finite, middle.astype(np.float32), ties, near])
    limit = torch.finfo(getattr(torch, DTYPES[dtype].torch)).max
    values = values[np.isfinite(values) & (np.abs(values) <= limit)]
    out = np.empty(len(values) * DTYPES[dtype].itemsize, np.uint8)
    tile = Tile([in_memory(values, "F32")], len(values), grain=CHUNK)
    tile.run(tile[0], dtype, out)
    expected = torch.from_numpy(values).to(getattr(torch, DTYPES[dtype].torch))
    assert np.array_equal(out, expected.view(torch.uint8).numpy())


@pytest.mark.parametrize("case", ["linear", "slerp", "task arithmetic", "copied"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_in_the_general_way(
    case: str, bad: float, tmp_path: Path
) -> None:
    n = 3 * CHUNK
    values = torch.ones(n)
    values[CHUNK + 5] = bad
    for model in range(5):
        save_file({"x": values if model == 0 else torch.ones(n)}, tmp_path / f"{model}")
    with open_files() as files:
        inputs = Stored(files, [tmp_path / f"{i}" for i in range(5)])
        job = job_of(case, "x", "F16", n)
        sources = fused_sources(job, inputs)
        assert sources
        with pytest.raises(RunError, match=rf"value {bad}.*{CHUNK + 5:,}"):
            run([FusedRun(sources, job, inputs, Memory(), tile=CHUNK)])
        let, general = Memory(), Memory()
        run([FusedRun(sources, job, inputs, let, tile=CHUNK, allow_nonfinite=True)])
        run([TensorRun(job, inputs, general, tile=CHUNK, allow_nonfinite=True)])
        assert let.nonfinite == general.nonfinite == {"x"}
        assert let.bytes == general.bytes


def test_what_a_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.full((100,), 1e6)}, tmp_path / "0")
    with open_files() as files:
        inputs = Stored(files, [tmp_path / "0"])
        job = job_of("linear, one", "x", "F16", 100)
        with pytest.raises(RunError, match="which float16 cannot hold"):
            run([FusedRun(fused_sources(job, inputs), job, inputs, Memory())])


def test_a_file_that_ends_too_early_is_named(tmp_path: Path) -> None:
    for model in range(2):
        save_file({"x": torch.ones(4 * CHUNK)}, tmp_path / f"{model}")
    with open_files() as files:
        inputs = Stored(files, [tmp_path / "0", tmp_path / "1"])
        job = job_of("slerp", "x", "BF16", 4 * CHUNK)
        sources = fused_sources(job, inputs)
        with (tmp_path / "1").open("r+b") as f:
            f.truncate(9 * CHUNK)
        with pytest.raises(CheckpointError, match=r"1 ends at byte 589,824"):
            run([FusedRun(sources, job, inputs, Memory())])


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F64"])
def test_other_types_are_rounded_by_pytorch(dtype: str, inputs: Stored) -> None:
    for case, name in (("linear", "BF16 1000"), ("ties", "F16 1000")):
        job = replace(job_of(case, name, "BF16", 1000), dtype=dtype)
        sources = fused_sources(job, inputs)
        assert sources
        assert not without_torch(job, sources)
        fast, general = Memory(), Memory()
        run([FusedRun(sources, job, inputs, fast)])
        run([TensorRun(job, inputs, general)])
        assert fast.bytes[job.name] == general.bytes[job.name]
    assert not fused_sources(replace(job_of("copied", "F32 1000", "F32", 1000), dtype=dtype), inputs)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES)
def test_loops_for_any_processor_make_the_same_bytes(
    level: int, case: str, inputs: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = getattr(ctypes.CDLL(str(library.PATH)), f"meldkit_tile_v{level}")
    for size in SIZES[1:]:
        job = job_of(case, f"BF16 {size}", "F32", size)
        usual, other = Memory(), Memory()
        run([FusedRun(fused_sources(job, inputs), job, inputs, usual, tile=CHUNK)])
        with monkeypatch.context() as patch:
            patch.setattr(library.FUNCTIONS, "tile", lambda tile: loops(tile, c_long(0), c_long(tile._obj.n)))
            run([FusedRun(fused_sources(job, inputs), job, inputs, other, tile=CHUNK)])
        assert other.bytes == usual.bytes


@pytest.mark.parametrize("dtype", STORED)
def test_numbers_may_lie_anywhere_in_a_file(dtype: str, tmp_path: Path) -> None:
    """Past what is mapped at once, and where no number of the type would lie in memory."""
    n = 70 * 16 * 1024 + 5
    values = np.random.default_rng(1).standard_normal(n).astype(np.float32)
    raw = torch.from_numpy(values).to(getattr(torch, DTYPES[dtype].torch)).view(torch.uint8).numpy()
    expected = torch.from_numpy(raw).view(getattr(torch, DTYPES[dtype].torch)).float().numpy()
    for offset in (0, 8, 4093, 8191):
        path = tmp_path / str(offset)
        path.write_bytes(bytes(offset) + raw.tobytes())
        out = np.empty(n, np.float32)
        with path.open("rb") as file:
            for grain in (CHUNK, 1001, n):
                tile = Tile([in_file(file.fileno(), offset, dtype)], n, grain=grain)
                tile.run(tile[0], "F32", out)
                np.testing.assert_array_equal(out, expected)


#: Works on a tile of a file again and again, while another thread cuts the file off and fills it again:
#: for a second at least, and until both a whole and a cut file were met.
_CUT_OFF = """
import os, sys, threading, time
import numpy as np
from meldkit.kernels.tile import Failed, Tile, in_file

descriptor, n = os.open(sys.argv[1], os.O_RDWR), 1 << 20
content, out, begin = bytes(2 * n), np.empty(n, np.float32), time.monotonic()
over = threading.Event()

def cut() -> None:
    pause = 0.001
    while not over.is_set():
        os.ftruncate(descriptor, 0)
        time.sleep(pause)
        os.pwrite(descriptor, content, 0)
        time.sleep(pause)
        pause = 0.001 if pause > 0.1 else 2 * pause  # Some pause is long enough, however slow the machine.

thread = threading.Thread(target=cut)
thread.start()
made = failed = 0
while (spent := time.monotonic() - begin) < 60 and (spent < 1 or not (made and failed)):
    tile = Tile([in_file(descriptor, 0, "BF16")], n, grain=n)
    try:
        tile.run(tile[0], "F32", out)
        made += 1
    except Failed:
        failed += 1
over.set()
print(made > 0 and failed > 0)
"""


def test_a_file_may_be_cut_off_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(2 << 20))
    command = [sys.executable, "-c", _CUT_OFF, str(tmp_path / "x")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "True\n", "")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_other_types_of_inputs_are_read_by_pytorch(dtype: torch.dtype, tmp_path: Path) -> None:
    for model in range(5):
        save_file({"x": torch.randn(3000).to(dtype)}, tmp_path / f"{model}")
    with open_files() as files:
        inputs = Stored(files, [tmp_path / f"{i}" for i in range(5)])
        for case in ("linear", "ties"):
            job = job_of(case, "x", "BF16", 3000)
            fast, general = Memory(), Memory()
            run([FusedRun(fused_sources(job, inputs), job, inputs, fast)])
            run([TensorRun(job, inputs, general)])
            assert fast.bytes == general.bytes


def test_numbers_in_memory_go_the_same_way(inputs: Stored) -> None:
    """As those of adapters, quantised models and state dicts: made by PyTorch, merged by compiled loops."""

    class Held(Stored):
        def open(self, tensor: Input) -> TileSource:
            values = read_all(self.files, self.headers[tensor.checkpoint][tensor.tensor])
            return HeldTensor(values) if tensor.checkpoint == 1 else super().open(tensor)

        def open_raw(self, tensor: Input, dtype: str | None) -> StoredTensor | None:
            return None if tensor.checkpoint == 1 else super().open_raw(tensor, dtype)

    held = Held(inputs.files, [])
    held.headers = inputs.headers
    for case in ("linear", "ties", "della", "arcee_fusion"):
        job = job_of(case, f"BF16 {SIZES[-1]}", "BF16", SIZES[-1])
        sources = fused_sources(job, held)
        assert sources
        assert not without_torch(job, sources)
        fast, general = Memory(), Memory()
        run([FusedRun(sources, job, held, fast, tile=CHUNK)])
        run([TensorRun(job, inputs, general, tile=CHUNK)])
        assert fast.bytes[job.name] == general.bytes[job.name]


RECIPES: Mapping[str, Any] = {
    "linear": {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 0.5}},
    "slerp": {"merge_method": "slerp", "base_model": "a", "models": ["a", "b"], "parameters": {"t": 0.5}},
    "layers": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 2]}]},
            {"sources": [{"model": "b", "layer_range": [1, 2]}]},
        ],
    },
    **{
        method: {
            "merge_method": method,
            "base_model": "a",
            "models": ["b"],
            "parameters": {"density": 0.5, "weight": 1},
        }
        for method in ("ties", "dare_ties", "della", "breadcrumbs")
    },
    "arcee_fusion": {"merge_method": "arcee_fusion", "base_model": "a", "models": ["a", "b"]},
    "by rows": {
        "merge_method": "nuslerp",
        "models": ["a", "b"],
        "parameters": {"weight": 1, "nuslerp_flatten": False},
    },
}


@pytest.mark.parametrize(("name", "torch_needed"), [(name, name == "by rows") for name in RECIPES])
def test_pytorch_is_imported_where_it_is_needed(name: str, torch_needed: bool, tmp_path: Path) -> None:
    for seed, model in enumerate("ab"):
        tiny.decoder(tmp_path / model, seed)
    recipe = dict(RECIPES[name])
    if "models" in recipe:
        recipe["models"] = [{"model": model} for model in recipe["models"]]
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe))
    code = (
        "import sys\n"
        "from meldkit.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print('torch._C' in sys.modules)\n"
    )
    for command in (["merge", "recipe.yml", "out"], ["plan", "recipe.yml"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert done.stdout.splitlines()[-1] == str(torch_needed)
