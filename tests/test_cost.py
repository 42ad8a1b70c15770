"""What `meldkit plan` says a merge takes: bytes, memory and time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import command
import tiny
from meldkit import merge, plan
from meldkit.engine import memory_of, work_of
from meldkit.methods.statistics import KthMagnitude
from meldkit.options import MergeOptions
from meldkit.plan import Plan
from meldkit.report import Probe, summarise_plan, with_time

RECIPE = """
merge_method: ties
base_model: base
models: [{model: a}, {model: b}]
parameters: {weight: 1, density: 0.5}
dtype: bfloat16
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models base, a and b in the current folder, and recipe.yml."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        tiny.decoder(tmp_path / name, seed, hidden=32)
    Path("recipe.yml").write_text(RECIPE)
    return tmp_path


# bytes


@pytest.mark.parametrize("method", ["linear", "ties", "della", "slerp", "passthrough"])
@pytest.mark.usefixtures("models")
def test_bytes_are_those_of_the_merge(method: str) -> None:
    others = [{"model": "a"}, {"model": "b"}][: 1 if method == "passthrough" else 2]
    recipe: dict[str, Any] = {"merge_method": method, "models": others}
    if method in ("ties", "della"):
        recipe |= {"base_model": "base", "parameters": {"weight": 1, "density": 0.5}}
    if method == "linear":
        recipe |= {"parameters": {"weight": 1}}
    if method == "slerp":
        recipe |= {"base_model": "a", "parameters": {"t": 0.5}}
    cost = summarise_plan(plan(recipe)).cost
    done = merge(recipe, "out")
    assert cost.bytes_to_write == done.bytes_written
    assert cost.bytes_to_read == done.bytes_read == done.plan.bytes_to_read
    assert cost.passes == max(job.num_passes for job in done.plan.jobs)


# memory


class Measured:
    """One merge in a process of its own.

    Attributes:
        predicted: bytes, before it began.
        peak: the largest resident size.
    """

    def __init__(self, recipe: dict[str, Any], threads: int) -> None:
        code = (
            "import json, sys\n"
            "from meldkit.api import merge, plan\n"
            "from meldkit.cli.merge import peak_memory\n"
            "from meldkit.engine import memory_of, work_of\n"
            "from meldkit.options import MergeOptions\n"
            "options = MergeOptions(num_threads=int(sys.argv[2]), overwrite=True)\n"
            "made = plan(json.loads(sys.argv[1]), options)\n"
            "predicted = memory_of(made, work_of(made), options.num_threads).peak\n"
            "merge(made, 'out', options)\n"
            "print(predicted, peak_memory())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(recipe), str(threads)],
            capture_output=True,
            text=True,
            check=True,
        )
        self.predicted, self.peak = map(int, done.stdout.split())


def large(tmp_path: Path) -> None:
    """Models base, a, b whose statistics and buffers are worth counting: 25 million elements each."""
    for seed, name in enumerate(("base", "a", "b")):
        tiny.decoder(tmp_path / name, seed, layers=2, hidden=1024, vocab=8192, dtype=torch.bfloat16)


def recipe_of(method: str, num_models: int, **parameters: Any) -> dict[str, Any]:
    recipe: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16", "parameters": parameters}
    recipe["models"] = [{"model": ("a", "b")[i % 2]} for i in range(num_models)]
    return recipe | ({"base_model": "base"} if method not in ("linear", "slerp") else {})


CASES = [
    pytest.param(recipe_of("linear", 2, weight=1), 1, id="linear-2", marks=pytest.mark.slow),
    pytest.param(recipe_of("linear", 8, weight=1), 4, id="linear-8", marks=pytest.mark.slow),
    pytest.param(recipe_of("slerp", 2, t=0.3) | {"base_model": "a"}, 2, id="slerp", marks=pytest.mark.slow),
    pytest.param(recipe_of("ties", 2, weight=1, density=0.5), 2, id="ties-2"),
    pytest.param(recipe_of("ties", 8, weight=1, density=0.5), 4, id="ties-8", marks=pytest.mark.slow),
    pytest.param(
        recipe_of("ties", 2, weight=1, density=0.5, rescale=True), 1, id="rescale", marks=pytest.mark.slow
    ),
    pytest.param(recipe_of("della", 2, weight=1, density=0.5), 1, id="della-2", marks=pytest.mark.slow),
    pytest.param(recipe_of("della", 4, weight=1, density=0.5), 3, id="della-4", marks=pytest.mark.slow),
    pytest.param(recipe_of("dare_ties", 3, weight=1, density=0.5), 2, id="dare", marks=pytest.mark.slow),
    pytest.param(recipe_of("sce", 4, select_topk=0.2), 2, id="sce", marks=pytest.mark.slow),
    pytest.param(
        recipe_of("breadcrumbs", 2, weight=1, density=0.9), 2, id="breadcrumbs", marks=pytest.mark.slow
    ),
    pytest.param(recipe_of("model_stock", 4), 2, id="model_stock", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("recipe", "threads"), CASES)
def test_memory_is_predicted_from_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], threads: int
) -> None:
    monkeypatch.chdir(tmp_path)
    large(tmp_path)
    measured = Measured(recipe, threads)
    assert measured.peak <= measured.predicted <= 1.3 * measured.peak


@pytest.mark.usefixtures("models")
def test_more_threads_and_models_take_more_memory() -> None:
    def needed(recipe: dict[str, Any], threads: int) -> int:
        made = plan(recipe)
        memory = memory_of(made, work_of(made), threads)
        return memory.workers + memory.statistics

    two, eight = (recipe_of("ties", n, weight=1, density=0.5) for n in (2, 8))
    assert needed(two, 1) < needed(two, 2) < needed(two, 4)
    assert needed(two, 2) < needed(eight, 2)


def test_what_a_statistic_holds_is_foreseen() -> None:
    """All that a selection keeps of numbers that are all different, against what it says."""
    numel = 1 << 21
    statistic = KthMagnitude([[numel // 2], [numel // 4]], numel)
    x = torch.randn(2, numel, generator=torch.Generator().manual_seed(0))
    most = 0
    while ranges := statistic.ranges():
        kept = 0
        for start, stop in ranges:
            partial = statistic.update(x[:, start:stop].clone(), start)
            if isinstance(partial, list):
                kept += sum(part[1].nbytes for row in partial for part in row if part is not None)
            else:
                kept += partial.nbytes
            statistic.absorb(partial)
        most = max(most, kept)
        statistic.finish_pass()
    assert 0.3 * statistic.held < most <= statistic.held


# time


@pytest.mark.usefixtures("models")
def test_a_probe_leaves_nothing_behind_and_takes_little_time() -> None:
    before = sorted(Path().iterdir())
    cost = with_time(summarise_plan(plan("recipe.yml"), threads=1)).cost
    assert sorted(Path().iterdir()) == before
    assert cost.probe is not None
    assert cost.seconds is not None
    assert 0 < cost.seconds < 60
    assert min(cost.probe.reading, cost.probe.rereading, cost.probe.computing) > 0
    assert cost.probe.writing is not None


@pytest.mark.usefixtures("models")
def test_nothing_is_read_or_written_without_a_probe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("meldkit.report.plan.probe", lambda *_: pytest.fail("a probe"))
    done = command.run(capsys, "plan", "recipe.yml", "--no-probe")
    assert done.status == 0
    assert "time" not in done.out


@pytest.mark.usefixtures("models")
def test_a_folder_that_cannot_be_written_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    cost = with_time(summarise_plan(plan("recipe.yml"))).cost
    assert cost.probe is not None
    assert cost.probe.writing is None
    assert cost.seconds is not None


@pytest.mark.usefixtures("models")
def test_an_input_that_cannot_be_read_is_for_the_merge_to_report() -> None:
    made = plan("recipe.yml")
    Path("b/model.safetensors").unlink()
    assert with_time(summarise_plan(made)).cost.seconds is None


@pytest.fixture
def made(models: Path) -> Plan:
    del models
    return plan("recipe.yml")


def seconds(made: Plan, threads: int = 1, processors: int = 1, **changed: float | None) -> float:
    numbers: dict[str, Any] = {"first": 1e-6, "again": 1e-6, "computing": 1e-6, "writing": 1e15}
    numbers |= {"of_stages": 0.0, "importing": 0.0, **changed}
    probe = Probe(reading=1.0, rereading=1.0, seconds=0.0, **numbers)
    return probe.estimate(made, work_of(made), threads, processors)


def test_an_estimate_adds_what_workers_do_and_divides_it_among_them(made: Plan) -> None:
    elements = sum(job.numel for job in made.jobs)
    # Three inputs read in each of two passes, and computed with.
    assert seconds(made) == pytest.approx(8e-6 * elements)
    assert seconds(made, 2, 4) == pytest.approx(4e-6 * elements)
    assert seconds(made, 8, 2) == pytest.approx(4e-6 * elements)
    assert seconds(made, computing=0.0) == pytest.approx(6e-6 * elements)
    assert seconds(made, importing=2.0) == pytest.approx(2 + 8e-6 * elements)
    assert seconds(made, 2, 2, of_stages=2.0) == pytest.approx(1 + 4e-6 * elements)


def test_an_estimate_is_what_takes_longest(made: Plan) -> None:
    elements = sum(job.numel for job in made.jobs)
    assert seconds(made, 64, 64, first=1.01e-4) == pytest.approx(3e-4 * elements)
    assert seconds(made, writing=made.bytes_to_write / 7) == pytest.approx(7)
    assert seconds(made, writing=None) == seconds(made)


# the command


@pytest.mark.usefixtures("models")
def test_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    done = command.run(capsys, "plan", "recipe.yml", "--json", "-j", "3")
    data = json.loads(done.out)
    assert data["method"] == "ties"
    assert [model["label"] for model in data["models"]] == ["a", "b", "base"]
    assert data["output"]["num_layers"] == 2
    assert data["output"]["vocabulary"] == 6
    assert data["output"]["files"][0]["name"] == "model.safetensors"
    assert data["cost"]["threads"] == 3
    probe = data["cost"]["probe"]
    assert all(probe[name] > 0 for name in ("reading", "rereading", "first", "seconds"))
    # What is left of a run without its reading, which may be nothing on a busy machine.
    assert probe["computing"] >= 0
    assert data["cost"]["peak_memory"] > 10**8
    made = plan("recipe.yml")
    assert data["digest"] == made.digest()
    tensors = {tensor["name"]: tensor for tensor in data["tensors"]}
    assert list(tensors) == [job.name for job in made.jobs]
    assert tensors["model.norm.weight"] == {
        "name": "model.norm.weight",
        "dtype": "BF16",
        "shape": [32],
        "file": "model.safetensors",
        "method": "ties",
        "values": {
            "weight": [1, 1],
            "density": [0.5, 0.5],
            "normalize": True,
            "lambda": 1.0,
            "elect": "weighted",
            "trim_scope": "tensor",
            "rescale": False,
        },
        "inputs": [
            {"model": "a", "tensor": "model.norm.weight"},
            {"model": "b", "tensor": "model.norm.weight"},
        ],
        "base": {"model": "base", "tensor": "model.norm.weight"},
    }
    (up,) = (t for t in data["treatments"] if t["leaf"] == "mlp.up_proj.weight")
    assert (up["stack"], up["num_blocks"], up["num_merged"]) == ("model.layers.*", 2, 2)


@pytest.mark.usefixtures("models")
def test_the_text_says_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(command.run(capsys, "plan", "recipe.yml").out.split())
    number = r"[\d.]+(e[-+]\d+)?"
    assert re.search(
        rf"time about {number} s; this machine reads {number} [MG]B/s, writes {number} [MG]B/s, "
        rf"ties takes {number} ns per element and pass",
        text,
    )


@pytest.mark.usefixtures("models")
def test_options_decide_threads(capsys: pytest.CaptureFixture[str]) -> None:
    assert "with 3 threads" in command.run(capsys, "plan", "recipe.yml", "--no-probe", "-j", "3").out
    assert summarise_plan(plan("recipe.yml"), threads=1).cost.threads == 1
    assert MergeOptions().num_threads is None
