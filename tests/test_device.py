"""Merging on accelerators: the same as on the CPU, in order, in bounded memory.

The accelerators are those of `fake_accelerator`, and real ones where there are any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import command
import same_bytes
import tiny
from fake_accelerator import FakeBackend
from meldkit import merge, plan
from meldkit.api import devices_of
from meldkit.checkpoint import HeldTensor
from meldkit.cli.display import text_size
from meldkit.cli.plan import describe
from meldkit.engine import device, num_workers
from meldkit.engine.device import CPU, ON_CPU, Accelerator, find_devices
from meldkit.engine.staging import PIECE, StagedBuffers
from meldkit.errors import RecipeError, RunError
from meldkit.methods import METHODS
from meldkit.methods.statistics import CHUNK, Bits
from meldkit.options import MergeOptions
from meldkit.output import RECORD
from meldkit.report import summarise_plan
from meldkit.tools.reproduce import reproduce

#: Merges with more passes, statistics and ways of drawing than the usual parameters have.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    "passthrough": ("passthrough", {"scale": 0.5}),
    "breadcrumbs, rescaled": ("breadcrumbs", {"rescale": True}),
    "dare_ties, inverse density": ("dare_ties", {"rescale": "inverse_density"}),
    "della, keep_probability": ("della", {"rescale": "keep_probability"}),
    "della_linear, not rescaled": ("della_linear", {"rescale": "none"}),
    "model_stock by rows": ("model_stock", {"filter_wise": True}),
    "nuslerp of rows": ("nuslerp", {"nuslerp_flatten": False}),
    "nuslerp of columns": ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "sce, selected": ("sce", {"select_topk": 0.3}),
    "sce, fuse all": ("sce", {"select_topk": 0.3, "fuse": "all"}),
    "ties, rescaled": ("ties", {"rescale": True}),
    "ties of the model": ("ties", {"trim_scope": "model"}),
}
#: Other than usual parameters are tried with the slow tests.
USUAL_FIRST = [pytest.param(name, marks=[] if name in METHODS else [pytest.mark.slow]) for name in VARIANTS]
#: Those whose result comes from operations on elements, exact selections and counts: no sum decides a bit.
EXACT = {
    *(
        "linear",
        "task_arithmetic",
        "nearswap",
        "passthrough",
        "ram",
        "ramplus_tl",
        "ties",
        "ties of the model",
    ),
    *("breadcrumbs", "breadcrumbs_ties", "dare_ties, inverse density", "della, keep_probability"),
    "della_linear, not rescaled",
}
REAL = [kind for kind, make in device.KINDS.items() if make(kind).count()]
#: Bytes with which a device takes tiles of one chunk.
SMALL = 1 << 20


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    same_bytes.write_models(folder)
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """Three accelerators in place of all real ones; no access to their memory may be out of order."""
    backend = FakeBackend(count=3, free=SMALL)
    return known(monkeypatch, backend)


def known(monkeypatch: pytest.MonkeyPatch, backend: FakeBackend) -> FakeBackend:
    for kind in device.KINDS:
        found = backend if kind == backend.kind else FakeBackend(kind, count=0)
        monkeypatch.setitem(device.KINDS, kind, lambda _, found=found: found)
    return backend


def recipe(variant: str, models: Path) -> dict[str, Any]:
    name, parameters = VARIANTS[variant]
    case = same_bytes.usual(name)
    return replace(case, parameters={**case.parameters, **parameters}).recipe(models)


def merged(variant: str, models: Path, out: Path, **options: Any) -> Mapping[str, Tensor]:
    chosen = MergeOptions(overwrite=True, write_model_card=False, **options)
    merge(recipe(variant, models), out, chosen)
    return tiny.tensors(out)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The results


@pytest.mark.parametrize("variant", VARIANTS)
def test_as_on_the_cpu(variant: str, models: Path, tmp_path: Path, fake: FakeBackend) -> None:
    """Bit for bit where no sum decides, and to a few units in the last place otherwise."""
    want = merged(variant, models / "bfloat16", tmp_path / "cpu")
    got = merged(variant, models / "bfloat16", tmp_path / "gpu", cuda=True)
    if variant in EXACT:
        assert same(got, want)
    torch.testing.assert_close(dict(got), dict(want), rtol=1e-6, atol=1e-7)
    assert fake.computed == {"cuda:0"}
    assert not fake.races


if REAL:

    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("kind", REAL)
    def test_real_devices(kind: str, variant: str, models: Path, tmp_path: Path) -> None:
        """As the page on devices promises."""
        want = merged(variant, models / "whole", tmp_path / "cpu")
        got = merged(variant, models / "whole", tmp_path / "gpu", device=kind)
        torch.testing.assert_close(dict(got), dict(want), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", USUAL_FIRST)
def test_tiles_workers_and_devices_change_no_byte(
    variant: str, models: Path, tmp_path: Path, fake: FakeBackend
) -> None:
    want = merged(variant, models / "whole", tmp_path, cuda=True, num_threads=1)
    assert same(merged(variant, models / "whole", tmp_path, multi_gpu=True, num_threads=5), want)
    fake.free = 1 << 30
    assert same(merged(variant, models / "whole", tmp_path, cuda=True), want)
    assert not fake.races


def test_several_devices_share_the_work(models: Path, tmp_path: Path, fake: FakeBackend) -> None:
    merged("ties", models / "whole", tmp_path, gpu_rich=True)
    assert fake.computed == {"cuda:0", "cuda:1", "cuda:2"}
    fake.computed.clear()
    merged("ties", models / "whole", tmp_path, device="cuda:2")
    assert fake.computed == {"cuda:2"}


@pytest.mark.parametrize("variant", USUAL_FIRST)
def test_without_float64(variant: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a device has none, sums are measured on the CPU."""
    backend = known(monkeypatch, FakeBackend("mps"))
    want = merged(variant, models / "whole", tmp_path / "cpu")
    got = merged(variant, models / "whole", tmp_path / "gpu", device="mps")
    torch.testing.assert_close(dict(got), dict(want), rtol=1e-6, atol=1e-7)
    assert backend.computed == {"mps:0"}
    assert not backend.races


def test_other_output_types(models: Path, tmp_path: Path, fake: FakeBackend) -> None:
    """Those that devices round to, those that the CPU does, and blocks with scales."""
    for dtype in ("bfloat16", "float16", "float64", "float8_e4m3fn"):
        data = {**recipe("linear", models / "whole"), "dtype": "float32", "out_dtype": dtype}
        data["compat"] = "mergekit"
        for out, options in ((tmp_path / "cpu", {}), (tmp_path / "gpu", {"cuda": True})):
            merge(data, out, MergeOptions(overwrite=True, **options))
        one, other = (tiny.tensors(tmp_path / name) for name in ("cpu", "gpu"))
        assert same({n: t.float() for n, t in one.items()}, {n: t.float() for n, t in other.items()}), dtype
    assert not fake.races


def test_the_record_names_the_device(models: Path, tmp_path: Path, fake: FakeBackend) -> None:
    merged("linear", models / "whole", tmp_path, cuda=True)
    assert json.loads((tmp_path / RECORD).read_text())["made_with"]["device"] == "Fake 0"
    there = reproduce(tmp_path, device="cuda")
    assert there.same
    assert not there.surroundings
    assert reproduce(tmp_path).surroundings == ("GPU: none, it was Fake 0",)
    merged("linear", models / "whole", tmp_path)
    assert "device" not in json.loads((tmp_path / RECORD).read_text())["made_with"]
    assert not fake.races


# The order


#: Where the copying queue, the computing queue and the thread wait: each of these is needed.
WAITS = [("read", "computing"), ("round", "copying"), ("_send", "thread"), ("land", "thread")]


@pytest.mark.parametrize("wait", WAITS, ids=" of ".join)
def test_every_wait_is_needed(wait: tuple[str, str], models: Path, tmp_path: Path, fake: FakeBackend) -> None:
    """Without it, something is out of order or comes out otherwise: these tests see what they look for."""
    want = merged("linear", models / "bfloat16", tmp_path / "cpu")
    fake.impatient = {wait}
    try:
        got = merged("linear", models / "bfloat16", tmp_path / "gpu", cuda=True, num_threads=1)
    except RunError:
        return  # poison is not finite
    assert fake.races or not same(got, want)


@pytest.mark.parametrize("patient", [True, False])
def test_rows_are_not_overwritten_while_they_are_used(patient: bool, fake: FakeBackend) -> None:
    """Nobody has to ask for a result between tiles."""
    (place,) = find_devices("cuda")
    assert isinstance(place, Accelerator)
    x = torch.randn(2 * PIECE + 5)
    with ThreadPoolExecutor(1) as writer, place.worker(writer) as buffers:
        first = buffers.read([HeldTensor(x)], 0, PIECE + 5)
        doubled = first[0] * 2
        if not patient:
            fake.impatient = {("read", "copying")}
        buffers.read([HeldTensor(x)], PIECE, 2 * PIECE + 5)
        assert torch.equal(doubled.cpu(), 2 * x[: PIECE + 5])
    assert bool(fake.races) is not patient


def test_memory_that_grows_is_not_taken_from_under_a_copy(fake: FakeBackend) -> None:
    (place,) = find_devices("cuda")
    assert isinstance(place, Accelerator)
    x = torch.randn(1000).bfloat16()
    with ThreadPoolExecutor(1) as writer, place.worker(writer) as buffers:
        assert isinstance(buffers, StagedBuffers)
        for n in (10, 100, 1000):
            rows = buffers.read([HeldTensor(x)] * 3, 0, n)
            assert all(torch.equal(row.cpu(), x[:n].float()) for row in rows)
    assert not fake.races


# Memory


@pytest.mark.parametrize(
    "variant", ["linear", "dare_ties", "sce, selected", "arcee_fusion", "della", "karcher"]
)
def test_smaller_tiles_where_memory_runs_out(
    variant: str, models: Path, tmp_path: Path, fake: FakeBackend
) -> None:
    """What was measured in large tiles is applied in small ones, and the other way round."""
    want = merged(variant, models / "whole", tmp_path, cuda=True)
    fake.free, fake.most_used = 1 << 30, 0
    assert same(merged(variant, models / "whole", tmp_path, cuda=True, num_threads=1), want)
    fake.limit = fake.most_used * 2 // 3
    assert same(merged(variant, models / "whole", tmp_path, cuda=True, num_threads=1), want)
    assert fake.times_full
    assert not fake.races


def test_far_too_little_memory(models: Path, tmp_path: Path, fake: FakeBackend) -> None:
    """An error that says so; the same command continues, on the CPU too."""
    want = merged("linear", models / "whole", tmp_path / "cpu")
    fake.limit = 100_000
    with pytest.raises(RunError) as caught:
        merged("linear", models / "whole", tmp_path / "gpu", cuda=True, num_threads=1)
    assert caught.value.message.startswith("cuda:0 has no memory for tiles of ")
    assert "--cuda" in caught.value.hint
    assert same(merged("linear", models / "whole", tmp_path / "gpu"), want)


@pytest.mark.parametrize("variant", ["linear", "slerp", "ties, rescaled", "della", "sce, selected"])
def test_what_the_plan_says_is_not_exceeded(
    variant: str, models: Path, tmp_path: Path, fake: FakeBackend
) -> None:
    fake.free = 1 << 30
    options = MergeOptions(cuda=True, num_threads=2)
    devices = devices_of(options)
    cost = summarise_plan(plan(recipe(variant, models / "whole")), threads=2, devices=devices).cost
    merged(variant, models / "whole", tmp_path, cuda=True, num_threads=2)
    assert 0 < fake.most_used <= cost.memory.on_device <= fake.free
    # Buffers that grew are counted once for each size.
    assert fake.num_pinned <= 2 * cost.memory.workers


def test_tiles_are_as_large_as_memory_allows(models: Path, fake: FakeBackend) -> None:
    jobs = {name: plan(recipe(name, models / "whole")).jobs[1] for name in ("linear", "ties", "dare_ties")}
    before: dict[str, int] = {}
    for free in (0, 1 << 20, 1 << 30, 8 << 30, 80 << 30):
        fake.free = free
        (place,) = find_devices("cuda")
        assert isinstance(place, Accelerator)
        for name, job in jobs.items():
            for workers in (1, 2, 8):
                tile = place.tile(job, workers)
                assert tile is not None
                assert tile % CHUNK == 0
                assert tile == CHUNK or place.needed(replace(job, shape=(tile,)), workers) <= free // 2
                assert tile <= (place.tile(job, 1) or 0)
            tile = place.tile(job, 2)
            assert tile is not None
            assert tile >= before.get(name, 0)
            before[name] = tile
    # A chunk less than a power of two, which is what PyTorch rounds pinned memory up to.
    assert before == {"linear": 255 * CHUNK, "ties": 255 * CHUNK, "dare_ties": 31 * CHUNK}


def test_number_of_workers(fake: FakeBackend) -> None:
    del fake
    gpus = find_devices("cuda", all_of_kind=True)
    assert [num_workers(ON_CPU, threads, 8) for threads in (None, 3)] == [10, 3]
    assert [num_workers(gpus[:1], threads, 8) for threads in (None, 1, 5)] == [2, 1, 5]
    assert [num_workers(gpus, threads, 8) for threads in (None, 1, 5)] == [6, 3, 5]


def test_bits_in_other_tiles_than_they_were_remembered() -> None:
    flags = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0)).gt(0.5).numpy()
    bits = Bits()
    for start, stop in ((300, 777), (0, 300), (777, 1000)):
        bits.remember(start, stop - start, np.packbits(flags[:, start:stop], axis=1))
    for start, stop in ((0, 300), (0, 1000), (1, 2), (250, 800), (777, 1000), (999, 1000)):
        found = np.unpackbits(bits.of(start, stop - start), axis=1, count=stop - start)
        assert np.array_equal(found, flags[:, start:stop])


# Errors


@pytest.mark.parametrize("variant", ["linear", "slerp", "ties"])
def test_values_are_refused_in_the_same_words(variant: str, tmp_path: Path, fake: FakeBackend) -> None:
    same_bytes.write_models(tmp_path)
    weights = same_bytes.state_dicts()["x"]
    weights["model.layers.0.self_attn.q_proj.weight"].view(-1)[70_001] = torch.inf
    tiny.stored(tmp_path / "whole" / "x", weights, same_bytes.CONFIG)
    said: list[str] = []
    for options in ({}, {"cuda": True}):
        with pytest.raises(RunError, match="has the value inf at element 70,001") as caught:
            merged(variant, tmp_path / "whole", tmp_path / "out", **options)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert not fake.races


def test_too_large_for_the_output(models: Path, tmp_path: Path, fake: FakeBackend) -> None:
    data = {**recipe("linear", models / "whole"), "dtype": "float16"}
    data["parameters"] = {"weight": 1e6, "normalize": False}
    said: list[str] = []
    for options in ({}, {"cuda": True}):
        with pytest.raises(RunError, match="which float16 cannot hold") as caught:
            merge(data, tmp_path, MergeOptions(num_threads=1, **options))
        said.append(str(caught.value).partition(" near ")[0].partition(" from ")[0])
    assert said[0] == said[1]
    assert not fake.races


# What is asked for


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["cpu"]),
        ({"device": "cpu", "cuda": True}, ["cpu"]),
        ({"cuda": True}, ["cuda:0"]),
        ({"device": "cuda:1"}, ["cuda:1"]),
        ({"device": "auto"}, ["cuda:0"]),
        ({"multi_gpu": True}, ["cuda:0", "cuda:1", "cuda:2"]),
        ({"gpu_rich": True}, ["cuda:0", "cuda:1", "cuda:2"]),
        ({"device": "auto", "multi_gpu": True}, ["cuda:0", "cuda:1", "cuda:2"]),
    ],
)
def test_devices_of_options(options: dict[str, Any], names: list[str], fake: FakeBackend) -> None:
    del fake
    assert [found.name for found in devices_of(MergeOptions(**options))] == names


def test_auto_is_the_cpu_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, FakeBackend(count=0))
    assert devices_of(MergeOptions(device="auto")) == (CPU,)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("xpu", "device: there is no xpu device that PyTorch"),
        ("mps:0", "device: there is no mps device that PyTorch"),
        ("cuda:3", "device: there is no cuda:3\n  there are 3: cuda:0, cuda:1, cuda:2"),
        ("tpu", "device: 'tpu' is none that can merge\n  known: auto, cpu, cuda, xpu, mps"),
        ("cuda:one", "device: 'cuda:one' is none that can merge"),
        ("cuda:", "device: 'cuda:' is none that can merge"),
    ],
)
def test_devices_that_are_not_there(wanted: str, message: str, fake: FakeBackend) -> None:
    del fake
    with pytest.raises(RecipeError) as caught:
        find_devices(wanted)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("flags", [["--cuda"], ["--device", "cuda"], ["--multi-gpu"], ["--gpu-rich"]])
@pytest.mark.parametrize("name", ["merge", "plan"])
def test_cuda_that_is_not_there_is_an_error(
    name: str,
    flags: list[str],
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known(monkeypatch, FakeBackend(count=0))
    path = tmp_path / "recipe.yml"
    path.write_text(json.dumps(recipe("linear", models / "whole")))
    if name == "plan" and flags == ["--gpu-rich"]:
        flags = ["--cuda", "--multi-gpu"]
    out = [tmp_path / "out"] if name == "merge" else []
    done = command.run(capsys, name, path, *out, *flags)
    assert done.status == 2
    assert "there is no cuda device" in done.err
    assert "leave out --cuda" in done.err
    assert not (tmp_path / "out").exists()


def test_the_plan_names_the_devices(models: Path, fake: FakeBackend) -> None:
    fake.free = 1 << 30
    chosen = plan(recipe("slerp", models / "whole"))
    summary = summarise_plan(chosen, devices=find_devices("cuda", all_of_kind=True))
    lines = [" ".join(line.split()) for line in describe(summary).splitlines()]
    size = text_size(summary.cost.memory.on_device)
    assert [f"cuda:{i} up to {size} of its memory: Fake {i}" in lines for i in range(3)] == [True] * 3
    assert summary.data()["cost"]["devices"][2] == {"name": "cuda:2", "model": "Fake 2"}
    assert "cuda" not in describe(summarise_plan(chosen))
