"""Merges under which the system fails: calls by a shim, a disk that is too small, limits, signals."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import command
from killed import RECIPES, hashes, make_models, shim
from meldkit.paths import PARTIAL

#: System calls of the shim, the folder whose files they concern, and how they fail.
_CALLS = (
    ("read", "models", (errno.EIO,)),
    ("write", "out", (errno.ENOSPC, errno.EIO, errno.EDQUOT)),
    ("sync", "out", (errno.EIO, errno.ENOSPC)),
    ("rename", "out", (errno.EACCES, errno.EIO)),
    ("open", "out", (errno.EACCES, errno.EMFILE)),
)


@dataclass
class Outcomes:
    """What came of the faults.

    Attributes:
        faults: kind → how the merge ended → how often.
        resumed: merges that were finished afterwards, with the bytes of undisturbed ones.
        wrong: sentences about whatever was not as it should be.
    """

    faults: dict[str, dict[str, int]] = field(default_factory=dict)
    resumed: int = 0
    wrong: list[str] = field(default_factory=list)

    def count(self, kind: str, ending: str) -> None:
        """One more fault of that kind."""
        endings = self.faults.setdefault(kind, {})
        endings[ending] = endings.get(ending, 0) + 1


class Attack:
    """Faulty merges of all recipes, in a folder.

    Args:
        folder: an empty one.
        seed: of what fails, and when.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.models = folder, folder / "models"
        folder.mkdir(parents=True, exist_ok=True)
        self.outcomes = Outcomes()
        self._seed = seed
        make_models(self.models)
        self._library = shim(folder)
        self._inputs = hashes(self.models)
        self._undisturbed: dict[str, dict[str, str]] = {}

    def merge(self, name: str, out: Path, **options: Any) -> subprocess.Popen[str]:
        """Start a merge."""
        arguments = ("merge", f"{name}.yml", out, "-j", "1", "--out-shard-size", "1MB")
        return command.start(self.models, *arguments, **options)

    def undisturbed(self, name: str) -> dict[str, str]:
        """Hashes of what a recipe gives."""
        if name not in self._undisturbed:
            out = self.folder / "undisturbed" / name / "out"
            _, err = (process := self.merge(name, out)).communicate()
            assert process.returncode == 0, err
            self._undisturbed[name] = hashes(out)
        return self._undisturbed[name]

    def judge(
        self,
        kind: str,
        name: str,
        process: subprocess.Popen[str],
        out: Path,
        *,
        said: str = "error: ",
        mend: Callable[[], object] = lambda: None,
    ) -> None:
        """Whether a merge failed as it should, and goes on when the fault is over."""
        printed, err = process.communicate(timeout=120)
        status = process.returncode
        new = self.undisturbed(name)
        if status:
            problems = [line for line in err.splitlines() if line.startswith(said)]
            if status not in (2, 3, 4) or len(problems) != 1 or "Traceback" in err or printed:
                self.outcomes.wrong.append(f"{kind}, {name}: status {status}: {printed}{err}")
            # The last step takes away what only meldkit looks at; the model is whole then.
            found = hashes(out) if out.exists() else {}
            if "config.json" in found and found != new:
                self.outcomes.wrong.append(f"{kind}, {name}: looks like a model")
        self.outcomes.count(kind, f"exit {status}" if status else "not met")
        mend()
        if status:
            _, err = (again := self.merge(name, out)).communicate(timeout=120)
            if again.returncode or "Traceback" in err:
                self.outcomes.wrong.append(f"{kind}, {name}: does not go on: {err}")
            self.outcomes.resumed += 1
        if hashes(out) != new or (out / PARTIAL).exists():
            self.outcomes.wrong.append(f"{kind}, {name}: other bytes than an undisturbed merge")
        shutil.rmtree(out)

    def calls(self, number: int) -> None:
        """A system call fails at random, from then on always."""
        chance = random.Random(f"{self._seed} {number}")
        call, where, errors = _CALLS[number % len(_CALLS)]
        name, out = chance.choice(list(RECIPES)), self.folder / f"call{number}" / "out"
        how = chance.choice(errors)
        environment = os.environ | {
            "LD_PRELOAD": str(self._library),
            "FAULT_PREFIX": str(self.models if where == "models" else out),
            "FAULT_CALL": call,
            "FAULT_NTH": str(chance.randrange(40 if call in ("read", "write") else 12)),
            "FAULT_ERRNO": str(how),
        }
        process = self.merge(name, out, env=environment)
        self.judge(f"{call}: {errno.errorcode[how]}", name, process, out)

    def small_disk(self, number: int) -> None:
        """A disk that takes the weights, and something more or less; then it grows."""
        name = list(RECIPES)[number % len(RECIPES)]
        disk = self.folder / f"disk{number}"
        needed = sum(p.stat().st_size for p in self._weights(name))
        size = needed + random.Random(f"{self._seed} {number}").randrange(-2, 16) * 4096
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=True)
        try:
            grow = ["mount", "-o", "remount,size=100m", disk]
            process = self.merge(name, disk / "out")
            self.judge(
                "disk full", name, process, disk / "out", mend=lambda: subprocess.run(grow, check=True)
            )
        finally:
            subprocess.run(["umount", disk], check=True)

    def _weights(self, name: str) -> list[Path]:
        self.undisturbed(name)
        return sorted((self.folder / "undisturbed" / name / "out").glob("*.safetensors"))

    def limits(self, number: int) -> None:
        """Less memory than is needed, or smaller files."""
        name, out = list(RECIPES)[number % len(RECIPES)], self.folder / f"limit{number}" / "out"
        kind, limit = (
            ("RLIMIT_AS", 200_000_000 + 80_000_000 * (number % 8)),
            ("RLIMIT_FSIZE", 100_000 * (number % 8 + 1)),
        )[number % 2]
        process = self.merge(
            name, out, preexec_fn=lambda: resource.setrlimit(getattr(resource, kind), (limit, limit))
        )
        self.judge(kind, name, process, out)

    def signals(self, number: int) -> None:
        """Ctrl-C or SIGTERM at random."""
        chance = random.Random(f"{self._seed} {number}")
        name, out = list(RECIPES)[number % len(RECIPES)], self.folder / f"signal{number}" / "out"
        self.undisturbed(name)
        process = self.merge(name, out)
        # Before that, Python has not read so much of the program that it knows of the signal.
        while process.poll() is None and not (out / PARTIAL).exists():
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.7))
        sent = (signal.SIGINT, signal.SIGTERM)[number % 2]
        process.send_signal(sent)
        self.judge(sent.name, name, process, out, said="stopped")

    def run(
        self, *, calls: int, disks: int, limits: int, signals: int, at_once: int = 2, minutes: float = 60
    ) -> Outcomes:
        """All of them, as many of each kind, in a random order; after so many minutes, no other is begun."""
        until = time.monotonic() + 60 * minutes
        for name in RECIPES:
            self.undisturbed(name)
        work = [
            *((self.calls, i) for i in range(calls)),
            *((self.small_disk, i) for i in range(disks)),
            *((self.limits, i) for i in range(limits)),
            *((self.signals, i) for i in range(signals)),
        ]
        random.Random(self._seed).shuffle(work)

        def attack(task: tuple[Callable[[int], None], int]) -> None:
            if time.monotonic() < until:
                task[0](task[1])
                print(self.outcomes.faults, flush=True)

        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(attack, work))
        if hashes(self.models) != self._inputs:
            self.outcomes.wrong.append("inputs were changed")
        return self.outcomes
