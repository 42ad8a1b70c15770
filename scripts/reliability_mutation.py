"""The part of docs/reliability.md about mutation testing; scripts/mutation.py makes its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOUND = (
    "a journal in which a second plan is entered, as only damage does, counted as that plan's, with the "
    "first one's finished tensors: what stands before such a line counts, and nothing after it.",
    "`meldkit methods` ended in a traceback with a plugin whose function has no docstring: it is listed.",
)
EQUIVALENT = Path(__file__).with_name("mutation_equivalent.yml")


@cache
def equivalent() -> dict[str, dict[str, str]]:
    """File → mutant that no test can notice → reason."""
    return yaml.safe_load(EQUIVALENT.read_text("utf-8"))


def summary(results: Mapping[str, tuple[int, Sequence[Mapping[str, Any]]]]) -> dict[str, Any]:
    """Outcomes by area, and what survived.

    Args:
        results: area → how many mutants there are, and results, each with its file, mutant and outcome.
    """
    areas = {
        area: {"mutants": made, "run": len(here), **Counter(r["outcome"] for r in here)}
        for area, (made, here) in results.items()
    }
    survived = [
        {"area": area, "file": r["file"], "mutant": r["mutant"]}
        for area, (_, here) in results.items()
        for r in here
        if r["outcome"] == "survived"
    ]
    return {"areas": areas, "survived": survived}


def section(result: Mapping[str, Any]) -> str:
    """The part of docs/reliability.md, in Markdown.

    Args:
        result: what `summary` gave.
    """
    reasons = equivalent()
    unnoticed: list[str] = []
    same: dict[str, list[str]] = {}
    num_equivalent: Counter[str] = Counter()
    for r in result["survived"]:
        named = f"{r['file']}, {r['mutant']}"
        reason = reasons.get(r["file"], {}).get(r["mutant"])
        if reason is None:
            unnoticed.append(f"- {named}\n")
        else:
            same.setdefault(reason, []).append(named)
            num_equivalent[r["area"]] += 1
    rows = {
        area: [
            row["mutants"],
            row["run"],
            row.get("killed", 0),
            row.get("timed out", 0),
            num_equivalent[area],
            row.get("survived", 0) - num_equivalent[area],
        ]
        for area, row in result["areas"].items()
    }
    rows["in all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    table = ""
    for area, row in rows.items():
        noticed = (row[2] + row[3]) / max(1, row[1] - row[4])
        table += f"| {area} | {' | '.join(f'{n:,}' for n in row)} | {noticed:.1%} |\n"
    as_before = "".join(f"- {reason}: {'; '.join(names)}\n" for reason, names in same.items())
    found = "".join(f"- {text}\n" for text in FOUND)
    return f"""\
## Faults that the tests notice

Small faults are put into the code, one at a time, and the fast tests must fail: `make mutation`
(`scripts/mutation.py`; `scripts/mutants.py` lists the operators). Faults are also put into what is decided on
import: declarations of methods and parameters, defaults. 'Timed out' are those that tests notice by not
ending. Equivalent mutants do what the code does; the last column leaves them out.

| area | mutants | run | killed | timed out | equivalent | survived | noticed |
|---|---:|---:|---:|---:|---:|---:|---:|
{table}
Found on the way, and mended:

{found}
Not noticed:

{"".join(unnoticed) or "none."}

Equivalent:

{as_before or "none."}
"""
