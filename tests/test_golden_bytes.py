"""Every method gives the bytes that it gave before, to the last bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import golden_bytes
from meldkit.output.record import surroundings
from meldkit.plan import NUMERIC_VERSION

GOLDEN = golden_bytes.read()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    golden_bytes.write_models(folder)
    return folder


def advice() -> str:
    """What to do about other bytes."""
    now, then = surroundings(), GOLDEN["made_with"]
    others = [f"{key} {now[key]} in place of {then[key]}" for key in now if now[key] != then[key]]
    what = f"\nNot alike, and perhaps the reason: {'; '.join(others)}." if others else ""
    return (
        "other bytes than before: an optimisation must not change any. If they are meant to be others, raise "
        f"NUMERIC_VERSION in plan/model.py, then run 'python tests/golden_bytes.py'.{what}"
    )


@pytest.mark.parametrize("case", golden_bytes.CASES)
def test_bytes_are_what_they_were(case: str, models: Path) -> None:
    want = GOLDEN["digests"][golden_bytes.arithmetic()][case]
    assert golden_bytes.digest(case, models) == want, advice()


@pytest.mark.slow
def test_bytes_are_what_they_were_on_simpler_processors() -> None:
    run = golden_bytes.in_process_of_its_own(ATEN_CPU_CAPABILITY="default")
    assert run["digests"] == GOLDEN["digests"][run["arithmetic"]], advice()


def test_the_number_of_the_arithmetic_is_that_of_the_bytes() -> None:
    """Raised without new bytes, or new bytes without raising it: one of the two was forgotten."""
    assert GOLDEN["numeric_version"] == NUMERIC_VERSION, f"run '{sys.executable} tests/golden_bytes.py'"
