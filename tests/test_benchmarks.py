"""The benchmark measures what it says, and its page follows from what it measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))

import checkpoints  # noqa: E402
from bench import merged  # noqa: E402
from cases import CASES, COLD_CASES, COLD_GOALS, FLOOR_GOALS, SLERP, START_UP_SECONDS  # noqa: E402
from checkpoints import SIZES  # noqa: E402
from parts import PARTS, explain, parts  # noqa: E402
from race import Place  # noqa: E402
from report import markdown  # noqa: E402
from sections import profiled_run  # noqa: E402
from targets import all_targets, line  # noqa: E402

from meldkit.methods import METHODS  # noqa: E402

MODELS = ["base", "sibling-1", "sibling-2"]


@pytest.mark.parametrize("shard_bytes", [2e4, 3e5, 1e9])
def test_weight_files_hold_every_tensor_once(shard_bytes: float) -> None:
    shape = SIZES["tiny"]
    files = checkpoints.weight_files(shape, shard_bytes)
    assert [name for file in files for name in file.offsets] == list(shape.tensors())
    assert sum(file.size - len(file.head) for file in files) == 2 * shape.num_parameters()
    for file in files:
        assert len(file.offsets) == 1 or file.size - len(file.head) <= shard_bytes
        assert [*file.offsets.values()] == sorted(file.offsets.values())


def test_large_models_are_llamas_of_four_files() -> None:
    assert SIZES["large"].num_parameters() == 8_030_261_248  # Llama-3.1-8B's
    assert len(checkpoints.weight_files(SIZES["large"])) == 4
    numbers = [shape.num_parameters() for shape in SIZES.values()]
    assert numbers == sorted(numbers)


def test_a_model_of_many_files_is_that_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SIZES["tiny"]
    list(checkpoints.make(tmp_path / "one", shape, MODELS))
    assert checkpoints.missing(tmp_path / "one", shape, MODELS) == []
    many = checkpoints.weight_files(shape, 3e5)
    monkeypatch.setattr(checkpoints, "weight_files", lambda _: many)
    assert checkpoints.missing(tmp_path / "one", shape, MODELS) == MODELS
    list(checkpoints.make(tmp_path / "many", shape, MODELS))
    for model in MODELS:
        whole = load_file(tmp_path / "one" / model / "model.safetensors")
        names = json.loads((tmp_path / "many" / model / "model.safetensors.index.json").read_text())
        assert set(names["weight_map"]) == set(whole)
        for name, file in names["weight_map"].items():
            assert load_file(tmp_path / "many" / model / file)[name].equal(whole[name])


def test_every_method_is_timed() -> None:
    assert {case.name for case in CASES} == set(METHODS)
    assert {case.kind for case in CASES} == set(FLOOR_GOALS)
    assert {case.name for case in COLD_CASES} == set(COLD_GOALS)


def test_a_line_is_found() -> None:
    start, slope, worst = line([1, 2, 5], [3.5, 5.5, 11.5])
    assert (start, slope, worst) == pytest.approx((1.5, 2, 0))
    assert line([1, 2, 3], [1, 2, 4])[2] > 0.1


def cost(seconds: float, rss_mb: float = 300) -> dict[str, float]:
    zero = dict.fromkeys(("anonymous_mb", "cpu_seconds", "sync_seconds", "other_cores"), 0.0)
    return {**zero, "seconds": seconds, "rss_mb": rss_mb}


def race(runs: dict[str, list[dict[str, float]]], bytes_moved: float = 1e9) -> dict[str, Any]:
    return {"inputs": [], "bytes_moved": bytes_moved, "runs": runs, "checks": {}, "failures": {}}


def section(size: str, **cases: dict[str, Any]) -> dict[str, Any]:
    shape = SIZES[size]
    numbers = {"parameters": shape.num_parameters(), "model_bytes": 2 * shape.num_parameters(), "files": 1}
    return {"size": size, **numbers, "machine": {"CPU": "some"}, "cases": cases}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_target_is_met_up_to_its_limit(case: Any) -> None:
    limit = FLOOR_GOALS[case.kind] * 2 + START_UP_SECONDS
    for seconds, met in ((limit - 0.01, True), (limit + 0.01, False)):
        # The median counts, not the mean.
        runs = {
            "floor": [cost(2), cost(2), cost(99)],
            "meldkit": [cost(0.1), cost(seconds), cost(seconds + 50)],
        }
        found = all_targets({"peers": section("full", **{case.name: race(runs)})})
        assert [t.met for t in found if t.what.endswith("time")] == [met]
        assert all(t.met for t in found if "RSS" in t.what)


def test_slower_than_one_other_program_is_missed() -> None:
    runs = {"meldkit": [cost(3)], "mergekit": [cost(60)], "sd-mecha": [cost(2.9)]}
    found = {t.what: t for t in all_targets({"peers": section("full", linear=race(runs))})}
    assert found["faster than mergekit, each method"].met
    assert found["faster than mergekit, geometric mean of 1 methods"].measured == "20.00 ×"
    assert not found["faster than sd-mecha, each method"].met


def test_growth_is_judged_over_all_sizes() -> None:
    def data(memory: float, slow: float) -> dict[str, Any]:
        sizes = {
            size: section(size, linear=race({"meldkit": [cost(1 + i * f, 280)]}, i * 1e9))
            for i, size, f in ((1, "small", 1), (2, "medium", 1), (4, "full", slow))
        }
        largest = section("large", linear=race({"meldkit": [cost(33, memory)]}, 32e9))
        return {"growth": {"sizes": sizes}, "cold": largest}

    for memory, slow in ((300, 1), (320, 1), (300, 3)):
        found = {t.what: t.met for t in all_targets(data(memory, slow))}
        assert found["linear: peak RSS, 8 B against 1.1 B"] == (memory <= 1.1 * 280)
        assert found["linear: time per byte, all sizes"] == (slow == 1)


def test_new_results_keep_what_they_do_not_replace() -> None:
    earlier = section("full", linear=race({"floor": [cost(1)], "mergekit": [cost(9)]}), ties=race({}))
    again = merged(earlier, section("full", linear=race({"floor": [cost(2)]})))
    assert again["cases"]["linear"]["runs"] == {"floor": [cost(2)], "mergekit": [cost(9)]}
    assert "ties" in again["cases"]
    assert merged(earlier, section("small", linear=race({})))["cases"].keys() == {"linear"}


def test_the_parts_of_a_run_add_up_to_it(tmp_path: Path) -> None:
    place = Place("tiny", tmp_path)
    list(checkpoints.make(place.models, place.shape, MODELS))
    begin = time.perf_counter()
    profile = profiled_run(SLERP, place)
    took = time.perf_counter() - begin
    marks = [profile["at"][m] for m in ("plan", "merge", "first tile", "last tile", "published", "left")]
    assert all(a < b for a, b in pairwise([0, *marks, took]))
    # Slerp measures a pass and applies in another.
    assert profile["bytes_read"] == 2 * 2 * place.model_bytes
    assert all(profile["seconds"][label] > 0 for label in ("read", "maths", "check", "write"))
    found = parts(profile)
    assert list(found) == list(PARTS)
    assert min(found.values()) >= 0
    assert sum(found.values()) == pytest.approx(
        profile["cost"]["seconds"] - (profile["at"]["calibrated"] - profile["at"]["left"]), rel=0.05
    )
    assert explain(profile).startswith("start-up ")


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder on the disk: what lies in memory cannot be dropped from the page cache."""
    parent = ROOT / ".cache"
    parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_quick_benchmark_writes_its_page(on_disk: Path) -> None:
    def run(*arguments: str) -> None:
        program = [sys.executable, str(BENCHMARKS / "bench.py"), "--quick", "--root", str(on_disk)]
        subprocess.run([*program, *arguments], check=True)

    run("--contestants", "floor,meldkit", "--methods", "linear,ties", "--runs", "1")
    page = on_disk / "quick" / "benchmarks.md"
    text = page.read_text("utf-8")
    data = json.loads(page.with_suffix(".json").read_text())
    assert text == markdown(data, 60)
    pictures = sorted((page.parent / "images").iterdir())
    assert len(pictures) == text.count("![") == 5
    for picture in pictures:
        assert f"(images/{picture.name})" in text
        assert ET.parse(picture).getroot().tag.endswith("svg")
    drawn = [picture.read_bytes() for picture in pictures]
    run("--sections", "")
    assert page.read_text("utf-8") == text
    assert [picture.read_bytes() for picture in pictures] == drawn
    assert not (on_disk / "outputs").exists()
