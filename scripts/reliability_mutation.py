"""The part of docs/reliability.md about mutation testing; scripts/mutation.py makes its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

FOUND = (
    "a journal in which a second plan is entered, as only damage does, counted as that plan's, with the "
    "first one's finished tensors: what stands before such a line counts, and nothing after it.",
)
EQUIVALENT = Path(__file__).with_name("mutation_equivalent.yml")


def summary(results: Mapping[str, tuple[int, Sequence[Mapping[str, Any]]]]) -> dict[str, Any]:
    """Outcomes by area, and the survivors with what is known of them.

    Args:
        results: area → how many mutants there are, and results, each with its file, mutant and outcome.
    """
    known: dict[str, dict[str, str]] = yaml.safe_load(EQUIVALENT.read_text("utf-8")) or {}
    areas: dict[str, dict[str, int]] = {}
    lived: list[dict[str, str]] = []
    for area, (made, here) in results.items():
        outcomes = Counter(r["outcome"] for r in here)
        found = [
            {
                "file": r["file"],
                "mutant": r["mutant"],
                "equivalent": known.get(r["file"], {}).get(r["mutant"], ""),
            }
            for r in here
            if r["outcome"] == "survived"
        ]
        lived += found
        equivalent = sum(bool(r["equivalent"]) for r in found)
        areas[area] = {
            "mutants": made,
            "run": len(here),
            "killed": outcomes["killed"],
            "timed out": outcomes["timed out"],
            "equivalent": equivalent,
            "survived": len(found) - equivalent,
        }
    return {"areas": areas, "lived": lived}


def section(result: Mapping[str, Any]) -> str:
    """The part of docs/reliability.md, in Markdown.

    Args:
        result: what `summary` gave.
    """
    columns = ("mutants", "run", "killed", "timed out", "equivalent", "survived")
    rows = {**result["areas"], "in all": {c: sum(r[c] for r in result["areas"].values()) for c in columns}}
    table = "\n".join(
        f"| {area} | " + " | ".join(f"{row[c]:,}" for c in columns) + f" | {_share(row):.1%} |"
        for area, row in rows.items()
    )
    equivalent: dict[str, list[str]] = {}
    for r in result["lived"]:
        if r["equivalent"]:
            equivalent.setdefault(r["equivalent"], []).append(_named(r))
    same = "\n".join(f"- {reason}: {'; '.join(names)}" for reason, names in equivalent.items())
    other = "\n".join(f"- {_named(r)}" for r in result["lived"] if not r["equivalent"])
    found = "".join(f"- {text}\n" for text in FOUND)
    return f"""\
## Faults that the tests notice

Small faults are put into the code, one at a time, and the fast tests must fail: `make mutation`
(`scripts/mutation.py`; `scripts/mutants.py` lists the operators). Faults are also put into what is decided on
import: declarations of methods and parameters, defaults. 'Timed out' are those that tests notice by not
ending. Equivalent mutants do what the code does; the last column leaves them out.

| area | {" | ".join(columns)} | noticed |
|---|{"---:|" * (len(columns) + 1)}
{table}

Found on the way, and mended:

{found}
Not noticed:

{other or "none."}

Equivalent:

{same or "none."}
"""


def _named(result: Mapping[str, str]) -> str:
    return f"{result['file']}, {result['mutant']}"


def _share(row: Mapping[str, int]) -> float:
    return (row["killed"] + row["timed out"]) / max(1, row["run"] - row["equivalent"])
