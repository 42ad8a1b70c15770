"""Attack merges, and write what came of it to docs/reliability.json.

    python scripts/faults.py --kills 200 --calls 100 --disks 20 --limits 16 --signals 16 --seed 1

A number of 0 leaves the earlier result as it is. Disks are mounted, which takes root.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import attacked  # noqa: E402
import killed  # noqa: E402

RESULTS = ROOT / "docs" / "reliability.json"
_NUMBERS = {"kills": 200, "calls": 100, "disks": 20, "limits": 16, "signals": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description="Attack merges.")
    for name, number in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60, help="begin no more merges to kill after that")
    given = vars(parser.parse_args())
    seed, kills, minutes = given.pop("seed"), given.pop("kills"), given.pop("minutes")
    wrong: list[str] = []
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    faults = results.setdefault("faults", {})
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        if kills:
            tally = killed.kill_merges(Path(folder, "kills"), kills, seed, minutes=minutes)
            made = {"seed": seed, "recipes": list(killed.RECIPES), "kills": tally.kills}
            faults["kills"] = {**made, **asdict(tally)}
            wrong += tally.wrong
        if any(given.values()):
            outcomes = attacked.Attack(Path(folder, "attacks"), seed).run(**given)
            faults["attacks"] = {"seed": seed, **asdict(outcomes)}
            wrong += outcomes.wrong
    for line in wrong:
        print(f"wrong: {line}")
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
