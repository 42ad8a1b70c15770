"""Turns measurements into medians, verdicts and tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from cases import MAX_HELP_SECONDS, MIN_MEAN_GAIN, START_UP_SECONDS, Case
from measure import Cost

NOISY_CORES = 0.2  # a run during which more cores than this worked for others is marked

INTRODUCTION = """
Written by `make bench`; the raw numbers are in the JSON file beside this page.

Models of {billions:.2f} B parameters (Llama-shaped, bf16, one file of {gigabytes:.2f} GB each), inputs in
the page cache. Each number is the median over the runs that the tables count, of the whole process, start-up
included, after {warm_up}.
The contestants take turns on the same recipe: `meldkit merge RECIPE OUT`, `mergekit-yaml RECIPE OUT
--lazy-unpickle --copy-tokenizer`, and the floor, which is what moving the bytes costs: `cat` of all inputs
to /dev/null, then `cp` of one of them to the output's folder.
"""
TIMING_LEGEND = """
*Spread* is the fastest and the slowest run. *Then sync* is how long the kernel took afterwards to bring to
the disk what the program had left in memory; it is no part of the time. Neither the floor nor mergekit waits
for the disk; meldkit does, within its time. *Peak RSS* is the kernel's `ru_maxrss`, which counts mapped pages
of the input files too; the *anonymous* part, sampled every 50 ms, does not. MB are 10⁶ bytes.
"""
NOISY = "†"
NOISE_LEGEND = f"{NOISY} During a run, more than {NOISY_CORES:g} cores were busy with something else."
CHECK_LEGEND = """
Elements *disagree* when they differ by more than one bf16 spacing of the operands (the largest of inputs and
outputs, plus the deltas). *Tied* are larger differences where trimming or the sign election is undecided up
to one bf16 rounding, so that either outcome is right. The largest difference is relative to the largest
element of its tensor.
"""


@dataclass(frozen=True, slots=True)
class Goal:
    limit: str
    measured: str
    met: bool

    @property
    def verdict(self) -> str:
        return f"{'met' if self.met else '**missed**'} ({self.limit})"


@dataclass(slots=True)
class Result:
    """All counted runs of one method, by contestant, and how the two outputs compare (None: not checked)."""

    case: Case
    runs: dict[str, list[Cost]] = field(default_factory=dict[str, list[Cost]])
    check: Mapping[str, Any] | None = None

    def median(self, contestant: str, what: str) -> float | None:
        costs = self.runs.get(contestant)
        return statistics.median(getattr(cost, what) for cost in costs) if costs else None

    def ratio(self, slow: str, fast: str) -> float | None:
        above, below = self.median(slow, "seconds"), self.median(fast, "seconds")
        return above / below if above is not None and below is not None else None

    def is_noisy(self, contestant: str) -> bool:
        return any(cost.other_cores > NOISY_CORES for cost in self.runs[contestant])

    def goals(self) -> dict[str, Goal]:
        """What was asked of meldkit and what came out; a goal that was not measured is left out."""
        found: dict[str, Goal] = {}
        seconds, floor = self.median("meldkit", "seconds"), self.median("floor", "seconds")
        if seconds is not None and floor is not None:
            limit = self.case.floor_goal * floor + START_UP_SECONDS
            text = f"≤ {limit:.2f} s = {self.case.floor_goal:g} × floor + {START_UP_SECONDS:g} s"
            found["time"] = Goal(text, f"{seconds:.2f} s", seconds <= limit)
        if (gain := self.ratio("mergekit", "meldkit")) is not None:
            text = f"≥ {self.case.mergekit_goal:g} ×"
            found["against mergekit"] = Goal(text, f"{gain:.1f} × faster", gain >= self.case.mergekit_goal)
        if (rss := self.median("meldkit", "rss_mb")) is not None:
            found["peak RSS"] = Goal(
                f"≤ {self.case.max_rss_mb:g} MB", f"{rss:,.0f} MB", rss <= self.case.max_rss_mb
            )
        return found


def help_goal(seconds: float) -> Goal:
    return Goal(f"≤ {MAX_HELP_SECONDS:g} s", f"{seconds:.2f} s", seconds <= MAX_HELP_SECONDS)


def mean_goal(gains: Sequence[float]) -> Goal:
    mean = statistics.geometric_mean(gains)
    return Goal(f"≥ {MIN_MEAN_GAIN:g} ×", f"{mean:.1f} × faster", mean >= MIN_MEAN_GAIN)


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "–" if value is None else f"{value:,.{digits}f}{unit}"


def timing_rows(results: Sequence[Result]) -> list[list[str]]:
    head = "method,inputs,contestant,runs,time,spread,then sync,÷ floor,mergekit ÷ it,peak RSS,anonymous"
    rows: list[list[str]] = [[*head.split(",")]]
    for result in results:
        for contestant, costs in result.runs.items():
            times = [cost.seconds for cost in costs]
            anonymous = None if contestant == "floor" else result.median(contestant, "anonymous_mb")
            rows.append(
                [
                    result.case.name,
                    str(len(result.case.inputs)),
                    contestant,
                    str(len(costs)),
                    f"{statistics.median(times):.2f} s"
                    + (f" {NOISY}" if result.is_noisy(contestant) else ""),
                    f"{min(times):.2f}–{max(times):.2f}",
                    number(result.median(contestant, "sync_seconds"), unit=" s"),
                    number(result.ratio(contestant, "floor")),
                    number(result.ratio("mergekit", contestant), 1),
                    number(result.median(contestant, "rss_mb"), 0, " MB"),
                    number(anonymous, 0, " MB"),
                ]
            )
    return rows


def goal_rows(results: Sequence[Result], help_seconds: float | None) -> list[list[str]]:
    """One row for what was measured, with each goal's verdict beside it."""
    kinds = ("time", "against mergekit", "peak RSS")
    rows = [["meldkit", *(cell for kind in kinds for cell in (kind, "goal"))]]
    for result in results:
        goals = result.goals()
        cells = [
            (goals[kind].measured, goals[kind].verdict) if kind in goals else ("–", "–") for kind in kinds
        ]
        rows.append([result.case.name, *(text for pair in cells for text in pair)])
    gains = [gain for result in results if (gain := result.ratio("mergekit", "meldkit")) is not None]
    if gains:
        goal = mean_goal(gains)
        rows.append(["geometric mean", "–", "–", goal.measured, goal.verdict, "–", "–"])
    if help_seconds is not None:
        goal = help_goal(help_seconds)
        rows.append(["--help", goal.measured, goal.verdict, *["–"] * 4])
    return rows


def check_rows(results: Sequence[Result]) -> list[list[str]]:
    rows = [["method", "elements", "bit-equal", "tied", "disagree", "largest relative difference"]]
    for result in results:
        if (found := result.check) is not None:
            shares = [f"{found[key] / found['elements']:.4%}" for key in ("bit_equal", "tied", "disagree")]
            worst = f"{found['largest_relative_difference']:.1e}"
            if found["largest_in"]:
                worst += f" in {found['largest_in']}"
            rows.append([result.case.name, f"{found['elements']:,}", *shares, worst])
    return rows


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def markdown(results: Sequence[Result], data: Mapping[str, Any]) -> str:
    """The page that a complete run writes."""
    once = [result.case.name for result in results if not result.case.quick_mergekit]
    introduction = INTRODUCTION.format(
        billions=data["parameters"] / 1e9,
        gigabytes=data["model_bytes"] / 1e9,
        warm_up="a warm-up"
        + (f" (mergekit: without one where it takes minutes: {', '.join(once)})" if once else ""),
    )
    noisy = any(result.is_noisy(contestant) for result in results for contestant in result.runs)
    parts = [
        "# Benchmarks",
        introduction,
        "## Goals",
        markdown_table(goal_rows(results, data["help_seconds"])),
        "## Times and memory",
        markdown_table(timing_rows(results)),
        *([NOISE_LEGEND] if noisy else []),
        TIMING_LEGEND,
    ]
    if len(rows := check_rows(results)) > 1:
        parts += ["## Agreement with mergekit", markdown_table(rows), CHECK_LEGEND]
    parts += ["## Machine", markdown_table([["", ""], *map(list, data["machine"].items())])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def from_json(case: Case, data: Mapping[str, Any]) -> Result:
    """A method's measurements as `as_json` wrote them."""
    runs = {name: [Cost(**cost) for cost in costs] for name, costs in data["runs"].items()}
    return Result(case, runs, data["check"])


def as_json(results: Sequence[Result], data: Mapping[str, Any]) -> dict[str, Any]:
    def plain(cost: Cost) -> dict[str, float]:
        return {item.name: round(getattr(cost, item.name), 4) for item in fields(cost)}

    def one(result: Result) -> dict[str, Any]:
        return {
            "inputs": len(result.case.inputs),
            "runs": {name: [plain(cost) for cost in costs] for name, costs in result.runs.items()},
            "goals": {kind: asdict(goal) for kind, goal in result.goals().items()},
            "check": result.check,
        }

    return {**data, "methods": {result.case.name: one(result) for result in results}}
