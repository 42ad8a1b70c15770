"""What is measured: one function per section of the page. Each returns what the page needs, as JSON."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cases import CASES, COLD_CASES, LINEAR, NUM_INPUTS, Case
from checkpoints import BASE
from contestants import FLOOR, MELDKIT, OFFLINE, PEERS, meldkit_program
from measure import forget, machine, package_version, read_through, run
from race import Place, cost_as_json, race, show

HELP_RUNS = 11
SIBLINGS = ("sibling-1", "sibling-2", "sibling-3")
COLD_MODELS = (BASE, *SIBLINGS[:2])


@dataclass(frozen=True, slots=True)
class Scale:
    """The sizes that sections use.

    `cold` is in order of preference: the first one for which the disk has room. Models of more parameters
    than `peers_at_most` are not given to other programs.
    """

    peers: str
    cold: tuple[str, ...]
    growth: tuple[str, ...]
    inputs: str
    peers_at_most: int


FULL = Scale("full", ("large", "big", "full"), ("small", "medium", "full", "big"), "medium", 4_000_000_000)
#: To try the benchmark itself.
QUICK = Scale("small", ("medium",), ("tiny", "small"), "tiny", 150_000_000)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asks for."""

    scale: Scale
    root: Path
    methods: Sequence[str]
    contestants: Sequence[str]
    runs: int
    peer_seconds: float
    check: bool

    def place(self, size: str) -> Place:
        return Place(size, self.root)

    def cases(self, cases: Sequence[Case]) -> list[Case]:
        return [case for case in cases if case.name in self.methods]


Keep = Callable[[Mapping[str, Any]], None]  # called with all that a section has so far


def peers(settings: Settings, keep: Keep) -> None:
    """Every method against other programs, inputs in the page cache."""
    place = settings.place(settings.scale.peers)
    place.provide([BASE, *SIBLINGS], outputs=len(settings.contestants) if settings.check else 1)
    found = about(settings, place)
    for case in settings.cases(CASES):
        result = race(
            case,
            settings.contestants,
            place,
            runs=settings.runs,
            peer_seconds=settings.peer_seconds,
            check=settings.check,
        )
        found["cases"][case.name] = result.as_json()
        keep(found)


def cold(settings: Settings, keep: Keep) -> None:
    """The largest models, read from the disk; then the same with timers."""
    places = [settings.place(size) for size in settings.scale.cold]
    place = next((place for place in places if place.fits(COLD_MODELS)), places[-1])
    keep(_cold(settings, place, [FLOOR, MELDKIT], profiled=True))


def growth(settings: Settings, keep: Keep) -> None:
    """Smaller models, read from the disk like the largest."""
    found: dict[str, Any] = {"sizes": {}}
    for size in settings.scale.growth:
        place = settings.place(size)
        small = place.shape.num_parameters() <= settings.scale.peers_at_most
        found["sizes"][size] = _cold(settings, place, settings.contestants if small else [FLOOR, MELDKIT])
        keep(found)


def _cold(
    settings: Settings, place: Place, contestants: Sequence[str], *, profiled: bool = False
) -> dict[str, Any]:
    place.provide(COLD_MODELS)
    found = about(settings, place)
    for case in settings.cases(COLD_CASES):
        # Methods that other programs need minutes for are timed with the rest of the methods.
        taking = [c for c in contestants if c not in PEERS or case.kind != "measured"]
        result = race(case, taking, place, runs=settings.runs, peer_seconds=0, cold=True)
        found["cases"][case.name] = result.as_json()
        if profiled:
            found.setdefault("profiles", {})[case.name] = profiled_run(case, place, cold=True)
    return found


def inputs(settings: Settings, keep: Keep) -> None:
    """More and more models of one size, each a file of its own, inputs in the page cache."""
    place = settings.place(settings.scale.inputs)
    place.provide([BASE, *(f"sibling-{i}" for i in range(1, max(NUM_INPUTS) + 1))])
    found = about(settings, place)
    for num_models in NUM_INPUTS:
        case = replace(LINEAR, num_models=num_models, each={"weight": 1 / num_models})
        result = race(case, [FLOOR, MELDKIT], place, runs=settings.runs, peer_seconds=0)
        found["cases"][str(num_models)] = result.as_json()
        keep(found)


def startup(settings: Settings, keep: Keep) -> None:
    """The help, and merges of models that weigh nothing."""
    place = settings.place("tiny")
    place.provide([BASE, *SIBLINGS])
    found = about(settings, place)
    costs = [run([meldkit_program(), "--help"], OFFLINE) for _ in range(HELP_RUNS + 1)][1:]
    found["help"] = [cost_as_json(cost) for cost in costs]
    result = race(LINEAR, settings.contestants, place, runs=settings.runs, peer_seconds=settings.peer_seconds)
    found["cases"]["linear"] = result.as_json()
    found["profiles"] = {"linear": profiled_run(LINEAR, place)}
    keep(found)


def profile(settings: Settings, keep: Keep) -> None:
    """Every method with timers, inputs in the page cache."""
    place = settings.place(settings.scale.peers)
    place.provide([BASE, *SIBLINGS])
    found = about(settings, place)
    for case in settings.cases(CASES):
        found["cases"][case.name] = profiled_run(case, place)
        keep(found)


def profiled_run(case: Case, place: Place, *, cold: bool = False) -> dict[str, Any]:
    """Where the time of one merge goes: see timers.py."""
    work = place.root / "outputs"
    work.mkdir(exist_ok=True)
    recipe, result, out = work / f"{case.name}.yml", work / "timers.json", work / "profiled"
    recipe.write_text(case.recipe(place.models))
    weights = place.weights(case.inputs)
    (forget if cold else read_through)(weights)
    program = [sys.executable, str(Path(__file__).with_name("timers.py")), str(result)]
    begun = time.perf_counter()
    cost = run([*program, str(begun), str(recipe), str(out)], OFFLINE)
    show(f"{case.name} {place.size}", "meldkit", 1, cost)
    found = json.loads(result.read_text())
    shutil.rmtree(work)
    return {**found, "cost": cost_as_json(cost)}


def about(settings: Settings, place: Place) -> dict[str, Any]:
    """On what a section is measured, and room for its cases."""
    facts = machine(place.root) | {"torch": package_version(Path(sys.executable), "torch")}
    facts["meldkit"] = package_version(Path(sys.executable), "meldkit")
    facts |= {name: PEERS[name].versions() for name in settings.contestants if name in PEERS}
    facts["date"] = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return {
        "machine": facts,
        "size": place.size,
        "parameters": place.shape.num_parameters(),
        "model_bytes": place.model_bytes,
        "files": len(place.weights([BASE])),
        "cases": {},
    }


SECTIONS: dict[str, Callable[[Settings, Keep], None]] = {
    "startup": startup,
    "peers": peers,
    "profile": profile,
    "inputs": inputs,
    "growth": growth,
    "cold": cold,
}
