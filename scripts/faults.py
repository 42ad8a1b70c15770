"""Attack merges, and write what came of it to docs/reliability.json.

python scripts/faults.py --kills 200 --seed 1
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

import killed  # noqa: E402

RESULTS = ROOT / "docs" / "reliability.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill merges at random moments.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        tally = killed.kill_merges(Path(folder), given.kills, given.seed)
    for line in tally.wrong:
        print(f"wrong: {line}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    faults = results.setdefault("faults", {})
    faults["kills"] = {
        "seed": given.seed,
        "recipes": list(killed.RECIPES),
        "total": tally.kills,
        **asdict(tally),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(bool(tally.wrong))


if __name__ == "__main__":
    main()
