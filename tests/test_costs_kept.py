"""What every method may take: how often it reads and writes, calls, and makes room. Nothing is timed."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

import command
import same_bytes
import tiny
from counted import Costs, bytes_asked_for, counted, descriptors, times
from meldkit import merge, plan
from meldkit.api import tensor_sums
from meldkit.engine.run import WRITERS
from meldkit.kernels import library
from meldkit.methods import METHODS
from meldkit.methods.statistics import CHUNK
from meldkit.options import MergeOptions
from meldkit.plan import Plan

#: Tiles, of `CHUNK` elements, of the one tensor of small and of large models: so many that order statistics
#: are sampled. What large ones take more, divided by the tiles they have more, is what a tile takes.
SMALL, LARGE = 8, 12
_COLUMNS = 1024
#: Bytes of a span, and of the data of a large model's file.
_SPAN, _DATA = 2 * CHUNK * 2, LARGE * CHUNK * 2
#: Bytes that are read once more of each input to guess where order statistics lie.
_SAMPLED = 8 * 4096 * 2
#: One worker.
ONE = MergeOptions(num_threads=1, write_model_card=False)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a merge of up to three models, and perhaps a base, may take. Per tile: in all passes together.

    Attributes:
        passes: how often each byte of each input is read.
        calls: PyTorch's operations per tile, most of them views: with compiled kernels, and without.
        kernels: calls of compiled kernels per tile, but for those that read and sum; of `tile`, one a pass
            where nothing is said.
        tensors: new tensors of a tile's size per tile: with compiled kernels, and without.
        room: bytes per element of a tile that NumPy holds meanwhile, with compiled kernels.
        sampled: whether some of the inputs are read once more, to guess where order statistics lie.
    """

    passes: int
    calls: tuple[int, int]
    kernels: Mapping[str, int] = field(default_factory=dict[str, int])
    tensors: tuple[int, int] = (0, 0)
    room: float = 0.5
    sampled: bool = False


#: Of methods that draw; and of those that look at numbers of rows before.
DRAWN = {"draw_at_most": 3}
RANKED = {"tile": 3, "draw_by_rank": 3}
#: By method, or variant of one. A number may be lowered where the code does with less; to raise one, say why.
COSTS: dict[str, Cost] = {
    "linear": Cost(passes=1, calls=(0, 34)),
    "slerp": Cost(passes=2, calls=(0, 60)),
    "nuslerp": Cost(passes=2, calls=(0, 81)),
    "multislerp": Cost(passes=2, calls=(0, 98)),
    "karcher": Cost(passes=2, calls=(0, 77)),
    "task_arithmetic": Cost(passes=1, calls=(0, 44)),
    "ties": Cost(passes=2, calls=(0, 113), tensors=(0, 3), sampled=True),
    "dare_linear": Cost(passes=2, calls=(0, 91), kernels=DRAWN, room=0.6),
    "dare_ties": Cost(passes=2, calls=(0, 119), kernels=DRAWN, tensors=(0, 3), room=0.6),
    "della": Cost(passes=2, calls=(0, 124), kernels=RANKED, tensors=(0, 3), room=8),
    "della_linear": Cost(passes=2, calls=(0, 96), kernels=RANKED, room=8),
    "breadcrumbs": Cost(passes=2, calls=(0, 91), tensors=(0, 3), sampled=True),
    "breadcrumbs_ties": Cost(passes=2, calls=(0, 119), tensors=(0, 6), sampled=True),
    "sce": Cost(passes=2, calls=(0, 131), tensors=(0, 3)),
    "ram": Cost(passes=1, calls=(0, 68), tensors=(0, 3)),
    "ramplus_tl": Cost(passes=2, calls=(0, 142), tensors=(0, 13)),
    "model_stock": Cost(passes=2, calls=(0, 107)),
    "nearswap": Cost(passes=1, calls=(0, 37)),
    # It is asked once whether the loops find divergences.
    "arcee_fusion": Cost(
        passes=2, calls=(0, 73), kernels={"has_divergences": 1}, tensors=(0, 2), sampled=True
    ),
    "passthrough": Cost(passes=1, calls=(0, 5), kernels={"finite": 1}),
    "passthrough, scaled": Cost(passes=1, calls=(0, 22)),
    "ties, all kept": Cost(passes=1, calls=(0, 81), tensors=(0, 3)),
    "ties, rescaled": Cost(passes=3, calls=(0, 169), tensors=(0, 3), sampled=True),
    "ties, of the model": Cost(passes=2, calls=(0, 104), tensors=(0, 3)),
    "dare_linear, by density": Cost(passes=1, calls=(0, 57), kernels=DRAWN, room=0.8),
    "della, by probability": Cost(
        passes=1,
        calls=(0, 82),
        kernels={"tile": 2, "by_rank": 3, "draw_below": 3},
        tensors=(0, 3),
        room=11,
    ),
    "breadcrumbs, rescaled": Cost(passes=3, calls=(0, 153), tensors=(0, 6), sampled=True),
    "sce, selected": Cost(passes=3, calls=(0, 218), tensors=(0, 9), sampled=True),
    "nuslerp, rows": Cost(passes=1, calls=(50, 62), tensors=(6, 6)),
    "nuslerp, columns": Cost(passes=2, calls=(50, 74), room=51),
    "model_stock, rows": Cost(passes=1, calls=(94, 110), tensors=(13, 13)),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of one tensor, in bfloat16."""
    folder = tmp_path_factory.mktemp("models")
    for size in (SMALL, LARGE):
        generator = torch.Generator().manual_seed(5)
        base = torch.randn(size * CHUNK // _COLUMNS, _COLUMNS, generator=generator)
        for name in same_bytes.NAMES:
            change = torch.randn(base.shape, generator=generator) * (0 if name == "base" else 0.05)
            weights = {"model.embed_tokens.weight": (base + change).bfloat16()}
            tiny.stored(folder / str(size) / name, weights, {"model_type": "llama", "num_hidden_layers": 0})
    return folder


def recipe_of(case: str, folder: Path) -> dict[str, Any]:
    return same_bytes.case_of(case).recipe(folder) | {"dtype": "bfloat16"}


def computed(case: str, folder: Path) -> Costs:
    """What one worker takes that merges in tiles of `CHUNK` elements, two to a span; nothing is written."""
    made = plan(recipe_of(case, folder))
    with same_bytes.cut_into(CHUNK, 2 * CHUNK), counted() as costs:
        tensor_sums(made, ONE)
    return costs


def per_tile(small: Counter[str], large: Counter[str]) -> dict[str, float]:
    more = {name: large[name] - small[name] for name in large}
    return {name: number / (LARGE - SMALL) for name, number in more.items() if number}


def check_calls(cost: Cost, small: Costs, large: Costs, *, compiled: bool) -> None:
    """A tile takes no more calls and new tensors than it may."""
    assert sum(per_tile(small.torch_calls, large.torch_calls).values()) <= cost.calls[not compiled]
    assert sum(per_tile(small.tensors, large.tensors).values()) <= cost.tensors[not compiled]
    reads = len(large.reads) * cost.passes
    # The last is asked once, for the record.
    # Whether a piece is in the page cache is asked once for many tiles, and where reading starts somewhere.
    usual = {"read": reads, "tile": cost.passes, "cached": reads, "word_sums": 1, "level": 1}
    allowed = usual | dict(cost.kernels)
    called = per_tile(small.kernel_calls, large.kernel_calls)
    assert {name: number for name, number in called.items() if number > allowed.get(name, 0)} == {}


def check_bytes(cost: Cost, made: Plan, costs: Costs) -> None:
    """Each byte of the inputs' data is read once a pass, each byte of the output written once."""
    assert set(costs.reads) == {path for checkpoint in made.checkpoints for path in checkpoint.files()}
    for path, ranges in costs.reads.items():
        found = times(ranges, path.stat().st_size)
        assert not found[:-_DATA].any()
        again = found[-_DATA:] - cost.passes
        assert again.min() == 0
        assert again.sum() == _SAMPLED * cost.sampled
    ((path, ranges),) = costs.writes.items()
    assert (times(ranges, made.files[0].size) == 1).all()
    # The header, and then spans.
    assert len(ranges) == 1 + _DATA // _SPAN


@pytest.mark.parametrize("case", COSTS)
def test_what_a_merge_takes(case: str, models: Path, tmp_path: Path) -> None:
    cost, compiled = COSTS[case], library.compiled()
    small = computed(case, models / str(SMALL))
    made = plan(recipe_of(case, models / str(LARGE)))
    with same_bytes.cut_into(CHUNK, 2 * CHUNK), counted() as large:
        result = merge(made, tmp_path / "out", ONE)
    check_bytes(cost, made, large)
    assert made.passes() == [cost.passes]
    assert result.bytes_read == made.bytes_to_read + len(large.reads) * _SAMPLED * cost.sampled
    check_calls(cost, small, large, compiled=compiled)
    if compiled:
        assert large.room <= cost.room * CHUNK


@pytest.mark.slow
@pytest.mark.parametrize("case", COSTS)
def test_calls_without_compiled_kernels(case: str, models: Path) -> None:
    with mock.patch.object(library, "FUNCTIONS", None):
        small, large = (computed(case, models / str(size)) for size in (SMALL, LARGE))
    check_calls(COSTS[case], small, large, compiled=False)


def test_every_method_has_its_costs() -> None:
    assert set(COSTS) == {*METHODS, *same_bytes.VARIANTS}


def test_methods_that_see_tiles_or_coefficients_make_no_room() -> None:
    for name, method in METHODS.items():
        if method.shape in ("elementwise", "spanned"):
            assert COSTS[name].passes == (1 if method.shape == "elementwise" else 2)
            assert (COSTS[name].tensors[0], COSTS[name].room) == (0, 0.5)


# Of a whole merge


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Models in five files each."""
    same_bytes.write_models(tmp_path)
    return tmp_path / "sharded"


def test_threads_and_open_files(sharded: Path, tmp_path: Path) -> None:
    threads_before, files_before = threading.active_count(), descriptors()
    made = plan(same_bytes.usual("ties").recipe(sharded))
    num_inputs = sum(len(checkpoint.files()) for checkpoint in made.checkpoints)
    assert num_inputs == 4 * len(same_bytes.SHAPES)
    with counted() as costs:
        result = merge(made, tmp_path / "out", replace(ONE, num_threads=3))
    # Workers, writers, one that reads ahead, one that syncs.
    assert costs.num_threads <= 3 + WRITERS + 2
    # Weight files are open once for whole pages and once for the rest; the folder, its journal and its lock.
    assert costs.num_descriptors <= num_inputs + 2 * len(result.plan.files) + 3
    assert (threading.active_count(), descriptors()) == (threads_before, files_before)


def test_headers_are_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command to the end, beside the weights' bytes; where the system counts them (Linux)."""
    size = 4_000_000
    weights = {"model.norm.weight": torch.ones(8)}
    for name in "ab":
        tiny.stored(tmp_path / name, weights, {"model_type": "llama"})
        save_file(weights, tmp_path / name / "model.safetensors", metadata={"format": "pt", "x": "x" * size})
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in "ab"]
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"merge_method": "linear", "models": models}))
    run = partial(command.run, capsys, "merge", recipe, tmp_path / "out", "--overwrite", "-j", "1")
    assert run().status == 0  # imports are over after this
    before = bytes_asked_for()
    assert run().status == 0
    assert bytes_asked_for() - before < 2.5 * size
