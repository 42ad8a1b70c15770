"""Fuzz everything that is read of strangers: `make fuzz`, or scripts/fuzz.py --minutes 10.

--minutes N         in all, spread over the targets (default 10)
--target NAME       only this one; may be repeated
--case N            run one case of one target again, with its stack trace
--write FILE        put the counts into that JSON file under "fuzz" (default docs/reliability.json)
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import os
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> None:
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--case", type=int)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--write", type=Path, default=ROOT / "docs/reliability.json")
    args = parser.parse_args()
    names = args.target or list(TARGETS)
    if args.case is not None:
        again(names[0], args.case)
        return
    results = {
        name: in_child(name, args.start, 60 * args.minutes / len(names), number)
        for number, name in enumerate(names, start=1)
    }
    known: dict[str, Any] = json.loads(args.write.read_text()) if args.write.exists() else {}
    fuzz = known.setdefault("fuzz", {})
    fuzz["targets"] = fuzz.get("targets", {}) | results
    args.write.write_text(json.dumps(known, indent=2) + "\n")
    found = sum(len(result["findings"]) for result in results.values())
    print(f"{sum(result['cases'] for result in results.values()):,} cases, {found} findings")
    sys.exit(1 if found else 0)


def again(target: str, case: int) -> None:
    from fuzz_targets import Bench, bounded_memory

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    bench = Bench(target, folder)
    bench.warm_up()
    print(f"files in {folder}")
    with bounded_memory():
        print(bench.run(case))


def in_child(target: str, start: int, seconds: float, number: int) -> dict[str, Any]:
    """Run a target in a process of its own: whatever it does to that, the next one starts afresh."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        child = os.fork()
        if child == 0:
            os._exit(fuzz(target, start, seconds, Path(folder, "work"), report))
        _, status = os.waitpid(child, 0)
        result: dict[str, Any] = json.loads(report.read_text())
    if status:
        result["findings"].append({"what": f"the process died: status {status}", "cases": [result["cases"]]})
    counts = ", ".join(f"{n} {kind}" for kind, n in result["outcomes"].items())
    print(f"{number:2} {target}: {result['cases']:,} cases; {counts}", flush=True)
    for finding in result["findings"]:
        print(f"     {finding['what']}  cases {finding['cases']}", flush=True)
    return result


def fuzz(target: str, start: int, seconds: float, work: Path, report: Path) -> int:
    from fuzz_targets import Bench, bounded_memory

    work.mkdir()
    faulthandler.enable()
    counts: collections.Counter[str] = collections.Counter()
    findings: dict[str, list[int]] = {}
    bench = Bench(target, work)
    bench.warm_up()
    for number in range(-20, 0):
        with suppress(Exception):
            bench.run(number)
    slowest, case, end = 0.0, start, time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        try:
            with bounded_memory():
                counts[bench.run(case)] += 1
        except BaseException as e:  # noqa: BLE001 - all of them are what is looked for
            findings.setdefault(where(e), []).append(case)
            counts["finding"] += 1
        slowest = max(slowest, time.perf_counter() - began)
        case += 1
        if case % 50 == 0 or time.monotonic() >= end:
            result = {
                "cases": case - start,
                "outcomes": dict(counts.most_common()),
                "slowest": round(slowest, 2),
                "findings": [{"what": what, "cases": cases[:5]} for what, cases in findings.items()],
            }
            report.write_text(json.dumps(result))
    return 0


def where(error: BaseException) -> str:
    """The error, and the innermost line of ours that it came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "src/meldkit" in f.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "tests"
    return f"{type(error).__name__} at {place}: {str(error)[:150]}"


if __name__ == "__main__":
    main()
