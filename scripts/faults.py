"""Attack merges, and write what came of it to docs/reliability.json.

    python scripts/faults.py --kills 200 --calls 100 --disks 20 --limits 16 --signals 16 --seed 1

A number of 0 leaves the earlier result as it is; with --add, new results are added to earlier ones, which
takes another seed. Disks are mounted, which takes root.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
    parser.add_argument(
        "--minutes", type=float, default=60, help="of kills, and of the rest; nothing begins later"
    )
    parser.add_argument("--at-once", type=int, default=3, help="merges that run beside each other")
    parser.add_argument("--add", action="store_true", help="to what earlier runs with other seeds found")
    given = vars(parser.parse_args())
    seed, kills, minutes = given.pop("seed"), given.pop("kills"), given.pop("minutes")
    add, at_once = given.pop("add"), given.pop("at_once")
    wrong: list[str] = []
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    faults = results.setdefault("faults", {})
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        if kills:
            tally = killed.kill_merges(Path(folder, "kills"), kills, seed, at_once=at_once, minutes=minutes)
            made = {"seeds": [seed], "recipes": list(killed.RECIPES), "kills": tally.kills}
            new = {**made, **asdict(tally)}
            faults["kills"] = added(faults["kills"], new) if add and "kills" in faults else new
            wrong += tally.wrong
        if any(given.values()):
            outcomes = attacked.Attack(Path(folder, "attacks"), seed).run(
                **given, at_once=at_once, minutes=minutes
            )
            new = {"seeds": [seed], **asdict(outcomes)}
            faults["attacks"] = added(faults["attacks"], new) if add and "attacks" in faults else new
            wrong += outcomes.wrong
    for line in wrong:
        print(f"wrong: {line}")
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(bool(wrong))


def added(earlier: Any, later: Any) -> Any:
    """Numbers added, lists joined without repetitions, and mappings of such, key by key."""
    if isinstance(earlier, dict):
        keys = dict.fromkeys([*earlier, *later])
        return {
            k: added(earlier[k], later[k]) if k in earlier and k in later else {**later, **earlier}[k]
            for k in keys
        }
    if isinstance(earlier, list):
        return list(dict.fromkeys([*earlier, *later]))
    return earlier + later


if __name__ == "__main__":
    main()
