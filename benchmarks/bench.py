"""Times meldkit against other programs and against the floor: reading all inputs and copying one of them.

    python benchmarks/bench.py                                       everything, for hours; writes the page
    python benchmarks/bench.py --sections cold,growth                a part of it; the page keeps the rest
    python benchmarks/bench.py --sections peers --methods ties       a method of a section
    python benchmarks/bench.py --quick                               small models, to try the benchmark itself
    python benchmarks/bench.py --sections ""                         just the page, from what was measured

    cases.py        the merges and their goals          checkpoints.py   makes the models to merge
    contestants.py  who takes part (peer_*.py: how)     measure.py       runs a program, describes a machine
    sections.py     what is measured                    race.py          contestants in turns
    timers.py       where meldkit's time goes           parts.py         the same, added up
    targets.py      what was to be reached              check.py         compares two outputs
    report.py       the page                            plots.py         its pictures

Models and results lie under .cache/bench/ and are used again; where there are no results, those of the page.
Models of one size are removed where the disk is too small for those of another. Results are kept method by
method, so that parts can be measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from cases import CASES
from contestants import CACHE, CONTESTANTS, FLOOR, MELDKIT, PEERS, ROOT, console
from measure import ProgramFailed
from sections import FULL, QUICK, SECTIONS, Settings

#: Parts of results to which later runs add.
GROWING = {"machine", "sizes", "cases", "profiles", "runs", "checks"}


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of comma-separated names out of `known`, which puts them in that order."""

    def parse(text: str) -> list[str]:
        wanted = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := [name for name in wanted if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; choose from {', '.join(known)}")
        return [name for name in known if name in wanted]

    return parse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])

    def choice(option: str, known: Sequence[str], text: str) -> None:
        parser.add_argument(
            option,
            type=names(known),
            default=list(known),
            metavar="A,B",
            help=f"{text} of {', '.join(known)}",
        )

    choice("--sections", list(SECTIONS), "what to measure,")
    choice("--methods", [case.name for case in CASES], "which methods,")
    choice("--contestants", CONTESTANTS, "who takes part,")
    parser.add_argument(
        "--runs", type=int, default=5, help="counted runs of meldkit and the floor (default 5)"
    )
    parser.add_argument(
        "--peer-seconds",
        type=float,
        default=60,
        help="other programs get no further run of a merge once theirs have taken this long (default 60)",
    )
    parser.add_argument("--quick", action="store_true", help="small models, and a page of their own")
    parser.add_argument(
        "--check", action="store_true", help="compare outputs with meldkit's element by element"
    )
    parser.add_argument("--root", type=Path, default=CACHE, help=f"for models and results (default {CACHE})")
    parser.add_argument("--out", type=Path, help="page to write, with a .json and images/ beside it")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs must be at least 1")
    if args.check and MELDKIT not in args.contestants:
        parser.error("--check compares with meldkit: name it in --contestants")
    return args


def merged(earlier: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What is known now of a section: methods measured before stay, and so do contestants of a method."""
    if earlier.get("size") != new.get("size"):
        return dict(new)
    result = {**earlier, **new}
    for key, value in new.items():
        if isinstance(value, dict) and (key in GROWING or GROWING & value.keys()):
            result[key] = merged(earlier.get(key, {}), cast("dict[str, Any]", value))
    return result


def main() -> None:
    args = parse_args()
    if sys.platform != "linux":
        raise SystemExit("this benchmark reads /proc and needs Linux")
    settings = Settings(
        scale=QUICK if args.quick else FULL,
        root=args.root,
        methods=args.methods,
        contestants=args.contestants,
        runs=args.runs,
        peer_seconds=args.peer_seconds,
        check=args.check,
    )
    known = args.root / ("quick.json" if args.quick else "results.json")
    args.root.mkdir(parents=True, exist_ok=True)
    published = ROOT / "docs/benchmarks.json"
    earlier_results = known if known.exists() or args.quick else published
    data: dict[str, Any] = json.loads(earlier_results.read_text()) if earlier_results.exists() else {}
    data = {name: found for name, found in data.items() if name in SECTIONS}
    if {FLOOR, MELDKIT} < set(args.contestants) and args.sections:
        for name in args.contestants:
            if name in PEERS:
                PEERS[name].install()
    failure = None
    for name in args.sections:
        earlier = data.get(name, {})

        def keep(found: Mapping[str, Any], name: str = name, earlier: Mapping[str, Any] = earlier) -> None:
            data[name] = merged(earlier, found)
            known.write_text(json.dumps(data, indent=1) + "\n")

        console.rule(name)
        try:
            SECTIONS[name](settings, keep)
        except ProgramFailed as error:  # what was measured before is still shown
            failure = str(error)
            break
    out = args.out or (args.root / "quick" / "benchmarks.md" if args.quick else ROOT / "docs/benchmarks.md")
    write_page(data, out, args.peer_seconds)
    if failure is not None:
        raise SystemExit(failure)


def write_page(data: Mapping[str, Any], out: Path, peer_seconds: float) -> None:
    """Write the page, and its numbers and pictures beside it."""
    # Not before everything is measured: programs are charged with the memory of who starts them.
    from plots import draw
    from report import markdown

    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(markdown(data, peer_seconds))
    out.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    drawn = draw(data, out.parent / "images")
    console.print(f"wrote {out}, {out.with_suffix('.json')} and {len(drawn)} pictures")


if __name__ == "__main__":
    main()
