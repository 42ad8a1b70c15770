"""How much of src/meldkit the tests run: lines and branches. For docs/reliability.json.

python scripts/reliability_coverage.py     runs `make test` under coverage.py; writes the key "coverage"

Processes that the tests start count too; what they hand to a process that is killed does not. A run with too
little coverage, or with a test that fails, is not entered.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "meldkit"
RESULTS = ROOT / "docs" / "reliability.json"
REPORT = ROOT / "build" / "coverage"
#: Percent of lines and branches together that each folder must reach; pyproject.toml has that of the whole.
EACH_FOLDER = 85
_COUNTS = {
    "lines": "num_statements",
    "lines_run": "covered_lines",
    "branches": "num_branches",
    "branches_run": "covered_branches",
}

Counts = Mapping[str, int]


def measure(arguments: list[str]) -> None:
    """Run the tests and print the table; build/coverage/ then has report.json, and html/ to look at.

    Args:
        arguments: of pytest.

    Raises:
        subprocess.CalledProcessError: a test fails, or the coverage of the whole is too small.
    """
    _coverage("erase")
    _coverage("run", "-m", "pytest", *arguments)
    _coverage("combine", "-q")
    _coverage("json", "-q", "--fail-under=0", "-o", str(REPORT / "report.json"))
    _coverage("html", "-q", "--fail-under=0", "-d", str(REPORT / "html"))
    _coverage("report")


def _coverage(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "coverage", *arguments], cwd=ROOT, check=True)


def counts(report: Mapping[str, Any]) -> dict[str, Any]:
    """What docs/reliability.json keeps.

    Args:
        report: what `coverage json` wrote.
    """
    folders: dict[str, dict[str, int]] = {}
    for name, file in sorted(report["files"].items()):
        folder = Path(name).parent.relative_to("src/meldkit").as_posix()
        row = folders.setdefault("" if folder == "." else folder, dict.fromkeys(_COUNTS, 0))
        for count, theirs in _COUNTS.items():
            row[count] += file["summary"][theirs]
    return {
        "made_with": {"python": platform.python_version(), "coverage": report["meta"]["version"]},
        "total": {count: sum(row[count] for row in folders.values()) for count in _COUNTS},
        "folders": folders,
    }


def _percent(run: int, of: int) -> float:
    return 100 * run / of if of else 100.0


def _both(row: Counts) -> float:
    return _percent(row["lines_run"] + row["branches_run"], row["lines"] + row["branches"])


def section(result: Mapping[str, Any]) -> str:
    """The part of docs/reliability.md, in Markdown.

    Args:
        result: what `counts` gave.
    """

    def row(name: str, found: Counts) -> str:
        lines, branches = (
            f"{_percent(found[kind + '_run'], found[kind]):.1f} % of {found[kind]:,}"
            for kind in ("lines", "branches")
        )
        return f"| {name} | {lines} | {branches} | {_both(found):.1f} % |"

    rows = "\n".join(
        (
            *(row(f"`meldkit/{folder}`", found) for folder, found in result["folders"].items()),
            row("**all**", result["total"]),
        )
    )
    made = result["made_with"]
    return f"""\
## Coverage

What `make test` runs of the code, in all its processes (Linux, Python {made["python"]}, coverage.py
{made["coverage"]}; `make coverage`). It fails when lines and branches together are under 90 %, or under
{EACH_FOLDER} % in one folder.

| folder | lines run | branches run | both |
|---|---:|---:|---:|
{rows}
"""


def main() -> None:
    """Measure, and enter the result."""
    try:
        measure(sys.argv[1:] or ["-q", "-n", "auto"])
    except subprocess.CalledProcessError as e:
        sys.exit(e.returncode)
    result = counts(json.loads((REPORT / "report.json").read_text("utf-8")))
    low = [f"meldkit/{folder}" for folder, row in result["folders"].items() if _both(row) < EACH_FOLDER]
    if low:
        sys.exit(f"under {EACH_FOLDER} % of lines and branches: {', '.join(low)}")
    everything = json.loads(RESULTS.read_text("utf-8"))
    everything["coverage"] = result
    RESULTS.write_text(json.dumps(everything, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
