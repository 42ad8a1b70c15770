"""Whatever is in the files of a model or a recipe, the outcome is a message or a merge, and it comes soon.

`make fuzz` does the same for minutes. A case is had again with scripts/fuzz.py --target NAME --case NUMBER.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzz_targets import TARGETS, Bench, bounded_memory, inside


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    """Sound files of each target, made once."""
    made: dict[str, Bench] = {}

    def build(target: str) -> Bench:
        if target not in made:
            made[target] = Bench(target, tmp_path_factory.mktemp("fuzz"))
            made[target].warm_up()
        return made[target]

    return build


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("target", TARGETS)
def test_sound_files_are_read(target: str, bench: Callable[[str], Bench]) -> None:
    """Else all damage would be refused for the same reason."""
    made = bench(target)
    for choice in (2, 1):  # a plan and a merge
        with inside(made.folder):
            made.lay_sound()
            assert TARGETS[target].act(random.Random(choice))


@pytest.mark.parametrize("target", TARGETS)
def test_damage_ends_in_a_message_or_a_merge(target: str, bench: Callable[[str], Bench]) -> None:
    made = bench(target)

    # A case that is found is as small as any: there is nothing to shrink.
    @settings(
        max_examples=16,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32))
    def every(case: int) -> None:
        with bounded_memory():
            made.run(case)

    every()
