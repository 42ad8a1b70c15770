"""Times meldkit against mergekit and against the floor: reading all inputs and copying one of them.

    python benchmarks/bench.py                                      everything, and writes the page
    python benchmarks/bench.py --size small --methods linear,ties   a quick look; writes no page
    python benchmarks/bench.py --contestants floor,meldkit --runs 1
    python benchmarks/bench.py --methods ties                       again, and writes the page anew

    cases.py        the merges and their goals          checkpoints.py  makes the models to merge
    measure.py      runs a program, describes a machine check.py        compares two outputs
    report.py       medians, verdicts, tables

Everything it makes lies under .cache/bench/ and is used again. mergekit is installed into an environment of
its own there; MELDKIT_BENCH_MERGEKIT=/path/to/mergekit-yaml points at another one.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cases import CASES, MODELS, Case
from checkpoints import SIZES, WEIGHTS, missing
from measure import MB, Cost, ProgramFailed, machine, package_version, read_through, run
from report import Result, as_json, check_rows, from_json, goal_rows, markdown, timing_rows
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
MERGEKIT_PACKAGES = ("torch==2.13.0", "mergekit==0.1.5")
MERGEKIT_ENV_BYTES = 8e9  # torch with its libraries, at most
CONTESTANTS = ("floor", "meldkit", "mergekit")
HELP_RUNS = 5
OFFLINE = {"HF_HUB_OFFLINE": "1"}

console = Console(width=None if sys.stdout.isatty() else 140)


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of comma-separated names out of `known`, which puts them in that order."""

    def parse(text: str) -> list[str]:
        wanted = [name.strip() for name in text.split(",")]
        if unknown := [name for name in wanted if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; choose from {', '.join(known)}")
        return [name for name in known if name in wanted]

    return parse


def parse_args() -> argparse.Namespace:
    methods = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--methods", type=names(methods), default=methods, metavar="A,B", help=f"of {', '.join(methods)}"
    )
    parser.add_argument(
        "--contestants",
        type=names(CONTESTANTS),
        default=list(CONTESTANTS),
        metavar="A,B",
        help=f"of {', '.join(CONTESTANTS)}",
    )
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each contestant (default 3)")
    parser.add_argument(
        "--size", choices=list(SIZES), default="full", help="full: 1.1 B parameters; small: 0.1 B"
    )
    parser.add_argument(
        "--check", action="store_true", help="compare the outputs of meldkit and mergekit element by element"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "docs" / "benchmarks.md",
        help="page to write, with a .json beside it",
    )
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs must be at least 1")
    if args.check and not {"meldkit", "mergekit"} <= set(args.contestants):
        parser.error("--check compares meldkit with mergekit: name both in --contestants")
    return args


def mergekit_program(needed: bool) -> Path | None:
    """The mergekit-yaml to run; installs it on first use."""
    if not needed:
        return None
    if given := os.environ.get("MELDKIT_BENCH_MERGEKIT"):
        if not Path(given).is_file():
            raise SystemExit(f"MELDKIT_BENCH_MERGEKIT={given} is not a file")
        return Path(given)
    env = CACHE / "mergekit-venv"
    program, done = env / "bin" / "mergekit-yaml", env / "complete"
    if not done.exists():
        console.print(f"installing {' '.join(MERGEKIT_PACKAGES)} into {env}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(env)], check=True)
        subprocess.run([str(env / "bin" / "pip"), "install", "-qq", *MERGEKIT_PACKAGES], check=True)
        done.touch()
    return program


def check_space(folder: Path, model_bytes: float, num_missing: int, install: bool) -> None:
    """Two outputs fit at a time, besides what is still to be made."""
    needed = (num_missing + 2) * model_bytes + (MERGEKIT_ENV_BYTES if install else 0)
    free = shutil.disk_usage(folder).free
    text = f"disk: {needed / 1e9:.1f} GB needed under {folder}, {free / 1e9:.1f} GB free"
    if free < needed:
        raise SystemExit(f"{text}; make room, or use --size small")
    console.print(text, highlight=False)


def command(
    contestant: str, case: Case, models: Path, recipe: Path, out: Path, mergekit: Path | None
) -> list[str]:
    if contestant == "meldkit":
        return [str(Path(sys.executable).with_name("meldkit")), "merge", str(recipe), str(out)]
    if contestant == "mergekit":
        return [str(mergekit), str(recipe), str(out), "--lazy-unpickle", "--copy-tokenizer"]
    files = [str(models / name / WEIGHTS) for name in case.inputs]
    read, copy = shlex.join(["cat", *files]), shlex.join(["cp", files[0], str(out / WEIGHTS)])
    return ["sh", "-c", f"{read} > /dev/null && {shlex.join(['mkdir', str(out)])} && {copy}"]


def compare(case: Case, models: Path, outputs: dict[str, Path]) -> dict[str, object]:
    """How the two outputs differ; a process of its own, because it needs torch and ours must stay small."""
    inputs = [str(models / name) for name in case.inputs]
    density = ["--density", str(case.each["density"])] if "density" in case.each else []
    program = [sys.executable, str(Path(__file__).with_name("check.py"))]
    program += [str(outputs["meldkit"]), str(outputs["mergekit"]), *inputs, *density]
    done = subprocess.run(program, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise ProgramFailed(f"the outputs of {case.name} could not be compared: see above")
    return json.loads(done.stdout)


def race(case: Case, args: argparse.Namespace, models: Path, mergekit: Path | None) -> Result:
    """Run all contestants in turn: a warm-up round, then the counted ones."""
    work = CACHE / "outputs"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    recipe = work / f"{case.name}.yml"
    recipe.write_text(case.recipe(models))
    result = Result(case, {contestant: [] for contestant in args.contestants})
    outputs = {contestant: work / f"{case.name}-{contestant}" for contestant in args.contestants}
    for number in range(args.runs + 1):
        for contestant in args.contestants:
            if contestant == "mergekit" and not case.quick_mergekit and number != args.runs:
                continue
            out = outputs[contestant]
            read_through([models / name / WEIGHTS for name in case.inputs])
            os.sync()
            cost = run(command(contestant, case, models, recipe, out, mergekit), OFFLINE)
            show(case, contestant, number, cost)
            if number > 0:
                result.runs[contestant].append(cost)
            if not (args.check and number == args.runs and contestant != "floor"):
                shutil.rmtree(out)
    if args.check:
        result.check = compare(case, models, outputs)
    shutil.rmtree(work)
    return result


def show(case: Case, contestant: str, number: int, cost: Cost) -> None:
    turn = f"run {number}" if number else "warm-up"
    console.print(
        f"{case.name:16} {contestant:9} {turn:8} {cost.seconds:8.2f} s  {cost.rss_mb:7,.0f} MB"
        f"  sync {cost.sync_seconds:5.2f} s  others used {cost.other_cores:.1f} cores",
        highlight=False,
    )


def help_seconds() -> float:
    """Median time of `meldkit --help`, after one run that is not counted."""
    program = [str(Path(sys.executable).with_name("meldkit")), "--help"]
    return statistics.median([run(program, OFFLINE).seconds for _ in range(HELP_RUNS + 1)][1:])


def show_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows[1:]:
        table.add_row(*(cell.replace("**", "") for cell in row))
    console.print(table)


def as_text(data: object) -> str:
    return json.dumps(data, indent=2) + "\n"


def remember(known: Path, result: Result, data: dict[str, Any]) -> None:
    """Keep a method's measurements, in place of earlier ones, for the page."""
    stored = json.loads(known.read_text())["methods"] if known.exists() else {}
    known.write_text(as_text({**data, "methods": {**stored, **as_json([result], data)["methods"]}}))


def main() -> None:
    args = parse_args()
    if sys.platform != "linux":
        raise SystemExit("this benchmark reads /proc and needs Linux")
    CACHE.mkdir(parents=True, exist_ok=True)
    shape, models = SIZES[args.size], CACHE / args.size
    model_bytes = 2 * shape.num_parameters()
    race_mergekit = "mergekit" in args.contestants
    install = (
        race_mergekit
        and "MELDKIT_BENCH_MERGEKIT" not in os.environ
        and not (CACHE / "mergekit-venv" / "complete").exists()
    )
    check_space(CACHE, model_bytes, len(missing(models, shape)), install)
    mergekit = mergekit_program(race_mergekit)
    if missing(models, shape):
        console.print(f"making {len(MODELS)} checkpoints of {model_bytes / MB:,.0f} MB")
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("checkpoints.py")), args.size, str(models)],
            check=True,
        )

    about = machine(CACHE) | {"torch": package_version(Path(sys.executable), "torch")}
    if "meldkit" in args.contestants:
        about["meldkit"] = package_version(Path(sys.executable), "meldkit")
    if mergekit is not None:
        python = mergekit.with_name("python")
        about["mergekit"] = (
            f"{package_version(python, 'mergekit')} (torch {package_version(python, 'torch')})"
        )
    about["date"] = datetime.now(timezone.utc).strftime("%Y-%m-%d")

    data: dict[str, Any] = {
        "machine": about,
        "parameters": shape.num_parameters(),
        "model_bytes": model_bytes,
        "runs": args.runs,
        "help_seconds": help_seconds() if "meldkit" in args.contestants else None,
    }
    results, failure = list[Result](), None
    known = CACHE / f"{args.size}.json"
    try:
        for case in CASES:
            if case.name in args.methods:
                results.append(race(case, args, models, mergekit))
                if len(args.contestants) == len(CONTESTANTS):
                    remember(known, results[-1], data)
    except ProgramFailed as error:  # what was measured before is still shown
        failure = str(error)

    if results:
        show_table("Times and memory", timing_rows(results))
    if "meldkit" in args.contestants:
        show_table("Goals, set for the full size", goal_rows(results, data["help_seconds"]))
    if args.check:
        show_table("Agreement with mergekit", check_rows(results))
    if failure is not None:
        raise SystemExit(failure)
    if args.size == "full" and len(args.contestants) == len(CONTESTANTS):
        write_page(known, args.out)
    else:
        console.print(f"{args.out} is left as it is: that takes all contestants at full size")


def write_page(known: Path, out: Path) -> None:
    """Write the page, and its numbers beside it, from what has been measured so far."""
    stored = json.loads(known.read_text())
    results = [from_json(c, stored["methods"][c.name]) for c in CASES if c.name in stored["methods"]]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(markdown(results, stored))
    out.with_suffix(".json").write_text(as_text(as_json(results, stored)))
    console.print(f"wrote {out} and {out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
