"""Lets contestants do the same merge in turns, and keeps what each run cost."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cases import Case
from checkpoints import SIZES, Shape, missing, paths
from contestants import FLOOR, MELDKIT, OFFLINE, PEERS, command, console
from measure import MB, Cost, ProgramFailed, forget, read_through, run

NOISY_CORES = 0.2  # a run during which more cores than this worked for others is marked
RESERVE_BYTES = 0.5e9  # left free on the disk, besides what is known to be needed


@dataclass(frozen=True, slots=True)
class Place:
    """Models of one size, and room for outputs beside them."""

    size: str
    root: Path

    @property
    def shape(self) -> Shape:
        return SIZES[self.size]

    @property
    def models(self) -> Path:
        return self.root / self.size

    @property
    def model_bytes(self) -> int:
        return 2 * self.shape.num_parameters()

    def weights(self, names: Iterable[str]) -> list[Path]:
        return [path for name in names for path in paths(self.models, self.shape, name)]

    def needs(self, names: Iterable[str], outputs: int = 1) -> float:
        """Bytes of disk that must be free before these models and so many outputs exist together."""
        lacking = missing(self.models, self.shape, list(names))
        return (len(lacking) + outputs) * self.model_bytes + RESERVE_BYTES

    def fits(self, names: Iterable[str], outputs: int = 1) -> bool:
        """Whether the disk can hold them, if need be without models of other sizes."""
        room = shutil.disk_usage(self.root).free + sum(map(_disk_usage, self._others()))
        return self.needs(names, outputs) <= room

    def _others(self) -> list[Place]:
        """The places of other sizes, the one that takes most of the disk last."""
        return sorted((Place(size, self.root) for size in SIZES if size != self.size), key=_disk_usage)

    def provide(self, names: Sequence[str], outputs: int = 1) -> None:
        """Make the models that are missing. Where the disk is too small, models of other sizes go first.

        Args:
            names: of the models; siblings need the base.
            outputs: how many merged models exist at the same time.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        needed, others = self.needs(names, outputs), self._others()
        while shutil.disk_usage(self.root).free < needed and others and _disk_usage(others[-1]):
            console.print(f"removing {others[-1].models} to make room; it can be made again")
            shutil.rmtree(others.pop().models)
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise SystemExit(
                f"{self.root}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; make room"
            )
        if lacking := missing(self.models, self.shape, names):
            console.print(f"making {len(lacking)} models of {self.model_bytes / MB:,.0f} MB", highlight=False)
            program = Path(__file__).with_name("checkpoints.py")
            subprocess.run([sys.executable, str(program), self.size, str(self.models), *lacking], check=True)


def _disk_usage(place: Place) -> int:
    return sum(path.stat().st_blocks * 512 for path in place.models.rglob("*"))


@dataclass(slots=True)
class Race:
    """All counted runs of one merge, by contestant.

    `bytes_moved` is what must be read at least once, and written. `checks` say how the outputs of others
    compare with meldkit's, `failures` how others failed.
    """

    case: Case
    bytes_moved: int
    runs: dict[str, list[Cost]] = field(default_factory=dict[str, list[Cost]])
    checks: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    failures: dict[str, str] = field(default_factory=dict[str, str])

    def median(self, contestant: str, what: str = "seconds") -> float | None:
        costs = self.runs.get(contestant)
        return statistics.median(getattr(cost, what) for cost in costs) if costs else None

    def ratio(self, slow: str, fast: str, what: str = "seconds") -> float | None:
        above, below = self.median(slow, what), self.median(fast, what)
        return above / below if above is not None and below is not None else None

    def is_noisy(self, contestant: str) -> bool:
        return any(cost.other_cores > NOISY_CORES for cost in self.runs[contestant])

    def as_json(self) -> dict[str, Any]:
        return {
            "inputs": self.case.inputs,
            "bytes_moved": self.bytes_moved,
            "runs": {name: [cost_as_json(cost) for cost in costs] for name, costs in self.runs.items()},
            "checks": self.checks,
            "failures": self.failures,
        }


def from_json(case: Case, data: Mapping[str, Any]) -> Race:
    runs = {name: [Cost(**cost) for cost in costs] for name, costs in data["runs"].items()}
    return Race(case, data["bytes_moved"], runs, data["checks"], data["failures"])


def cost_as_json(cost: Cost) -> dict[str, float]:
    return {item.name: round(getattr(cost, item.name), 4) for item in fields(cost)}


def race(
    case: Case,
    contestants: Sequence[str],
    place: Place,
    *,
    runs: int,
    peer_seconds: float,
    cold: bool = False,
    check: bool = False,
) -> Race:
    """Run all contestants that can do this merge in turn.

    Args:
        case: the merge; its models must be there.
        contestants: who takes part.
        place: where the models are.
        runs: counted runs of each. meldkit and the floor have one more before, which is not counted.
        peer_seconds: other programs get no further run once their runs have taken this long.
        cold: let every run read its inputs from the disk; else they are in the page cache.
        check: compare outputs with meldkit's at the end, if nothing in the case is left to chance.
    """
    models = place.models
    able = [c for c in contestants if c not in PEERS or PEERS[c].can(case, place.shape, models)]
    weights = place.weights(case.inputs)
    work = place.root / "outputs"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    recipe = work / f"{case.name}.yml"
    recipe.write_text(case.recipe(models))
    kept = check and not case.random
    result = Race(case, (len(case.inputs) + 1) * place.model_bytes, {name: [] for name in able})
    outputs = {name: work / f"{case.name}-{name}" for name in able}
    for number in range(runs + 1):
        for name in able:
            earlier = sum(cost.seconds for cost in result.runs[name])
            if name in PEERS and (number == 0 or earlier > peer_seconds or name in result.failures):
                continue
            shutil.rmtree(outputs[name], ignore_errors=True)
            if cold:
                forget(weights)
            else:
                read_through(weights)
            os.sync()
            program = command(name, case, place.shape, models, recipe, outputs[name])
            try:
                cost = run(program, OFFLINE)
            except ProgramFailed as error:
                if name not in PEERS:
                    raise
                console.print(str(error), highlight=False, markup=False)
                result.failures[name] = str(error).splitlines()[-1].strip()
                continue
            show(f"{case.name} {place.size}", name, number, cost)
            if number > 0:
                result.runs[name].append(cost)
            if not kept or name == FLOOR:
                shutil.rmtree(outputs[name])
    if kept and MELDKIT in able:
        for name in (set(able) & set(PEERS)) - set(result.failures):
            result.checks[name] = compare(case, models, outputs[MELDKIT], outputs[name])
    shutil.rmtree(work)
    return result


def compare(case: Case, models: Path, ours: Path, theirs: Path) -> Mapping[str, Any]:
    """How two outputs differ; a process of its own, because it needs torch and ours must stay small."""
    inputs = [str(models / name) for name in case.inputs]
    density = ["--density", str(case.each["density"])] if "density" in case.each else []
    program = [sys.executable, str(Path(__file__).with_name("check.py"))]
    done = subprocess.run(
        [*program, str(ours), str(theirs), *inputs, *density], stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        raise ProgramFailed(f"{ours} and {theirs} could not be compared: see above")
    return json.loads(done.stdout)


def show(what: str, contestant: str, number: int, cost: Cost) -> None:
    turn = f"run {number}" if number else "warm-up"
    console.print(
        f"{what:23} {contestant:12} {turn:8} {cost.seconds:8.2f} s  {cost.rss_mb:7,.0f} MB"
        f"  sync {cost.sync_seconds:5.2f} s  others used {cost.other_cores:.1f} cores",
        highlight=False,
    )
