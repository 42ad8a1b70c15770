"""Where the time of a run with timers went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Part → what it is. In this order they follow each other, or are shown.
PARTS = {
    "start-up": "until the first tile: the interpreter, imports, the plan; the kernel already reads inputs",
    "read": "reading inputs from the page cache; within compiled loops by what reading alone takes",
    "upcast": "bf16 to float32 outside of compiled loops; by difference from reading alone",
    "maths": "the method: measuring and applying, and in compiled loops conversions",
    "downcast": "float32 to bf16 outside of compiled loops",
    "check": "looking for NaN and Inf, and check sums of the output",
    "write": "handing the output to the kernel, and syncing it",
    "Python": "everything else that uses a processor: scheduling, calls, waiting for the interpreter's lock",
    "idle": "processors that meldkit leaves unused while there are tiles: it waits for the disk",
    "end": "after the last tile: the last sync, verification, moving to the final place, leaving",
}


def parts(profile: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each part; they add up to the whole run.

    While there are tiles, the time of a part is the processor time of all threads over the number of
    processors, so that a part that keeps half of them busy takes half the time.
    """
    at, cpu, cores = profile["at"], profile["cpu"], profile["cores"]
    tiles = at["last tile"] - at["first tile"]
    found = {name: seconds / cores for name, seconds in profile["seconds"].items()}
    busy = (cpu["last tile"] - cpu["first tile"]) / cores
    counted = sum(found.values())
    # The timers see a little before the first tile and after the last one.
    found["Python"] = found.pop("python", 0.0) + max(0.0, busy - counted)
    found["idle"] = max(0.0, tiles - max(busy, counted))
    found["start-up"] = at["first tile"]
    whole = profile["cost"]["seconds"] - (at["calibrated"] - at["left"])
    found["end"] = max(0.0, whole - sum(found.values()))
    return {name: found.get(name, 0.0) for name in PARTS}


def explain(profile: Mapping[str, Any]) -> str:
    """The parts of a run, the longest first, as one line."""
    found = parts(profile)
    total = sum(found.values())
    longest = sorted(found.items(), key=lambda item: -item[1])
    shown = [f"{name} {seconds:.2f} s" for name, seconds in longest if seconds >= total / 50]
    return f"{', '.join(shown)}; {total:.2f} s in all, with timers"
