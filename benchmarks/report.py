"""Writes the page from what has been measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cases import CASES, COLD_CASES, LINEAR, START_UP_SECONDS, Case
from contestants import FLOOR, MELDKIT, MERGEKIT, NOT_MEASURED, PEERS
from parts import PARTS, explain, parts
from race import NOISY_CORES, Race
from targets import Data, Target, all_targets, billions, by_inputs, by_size, races

Rows = list[list[str]]

INTRODUCTION = """
Written by `make bench`; everything that was measured is in the [JSON file](benchmarks.json) beside this page.

Models are Llama-shaped, of random bf16 weights, with siblings that differ by 1 %. Each number is the median
over the runs that the tables count, of the whole process, start-up included. Contestants take turns. meldkit
and the floor have a run before, which is not counted; other programs are run again as long as their runs have
not taken {peer_seconds:g} s together, so that slow ones are run once. MB are 10⁶ bytes.

The **floor** is what moving the bytes costs: `cat` of all inputs to /dev/null, then `cp` of one of them to
the output's folder. It does not wait until the disk has them; meldkit does, within its time.
"""
PEAK_RSS = """
*Spread* is the fastest and the slowest run. *Then sync* is how long the kernel took afterwards to bring to
the disk what the program had left in memory; it is no part of the time. *Peak RSS* is the kernel's
`ru_maxrss`, which counts mapped pages of the input files too; the *anonymous* part, sampled every 50 ms, does
not.
"""
COLD = """
Before each run, the inputs' pages were dropped from the page cache (`posix_fadvise`, and `fincore` said that
they were gone); the programs and their libraries stay there. The floor reads and copies the models file by
file, so that each byte comes from the disk once; where a method has to read its inputs twice (ties), the
floor reads each file twice, the second time from the page cache.
"""
INPUTS = """
Each model is a file of its own, none a link or a copy of another, so that all of them take room in the page
cache. Inputs in the page cache.
"""
GOES = f"""
From one run of each method with timers around meldkit's functions, put there from outside
(`benchmarks/timers.py`); they make it a little slower. Seconds; while tiles are worked on, a part's time is
what all threads together used of the processors, over the number of processors, so that the parts add up.

{chr(10).join(f"- *{name}*: {text}" for name, text in PARTS.items())}
"""
CHECK = """
Elements *disagree* when they differ by more than one bf16 spacing of the operands (the largest of inputs and
outputs, plus the deltas). *Tied* are larger differences where trimming or the sign election is undecided up
to one bf16 rounding, so that either outcome is right. The largest difference is relative to the largest
element of its tensor. Methods that draw random masks are left out.
"""
#: What a mark of timers.py means.
STAGES = {
    "making the plan": "plan",
    "merging": "merge",
    "the first tile, with torch imported": "first tile",
    "the end of the last tile": "last tile",
    "the published folder": "published",
    "its end": "left",
}
NOISY = "†"
NOISE = f"{NOISY} During a run, more than {NOISY_CORES:g} cores were busy with something else."


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "–" if value is None else f"{value:,.{digits}f}{unit}"


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def time_cell(race: Race, contestant: str) -> str:
    if not race.runs.get(contestant):
        return "failed" if contestant in race.failures else "–"
    mark = f" {NOISY}" if race.is_noisy(contestant) else ""
    return f"{number(race.median(contestant), unit=' s')}{mark}"


def target_rows(targets: Sequence[Target]) -> Rows:
    head = ["where", "what", "target", "measured", ""]
    return [head, *([t.where, t.what, t.limit, t.measured, t.verdict] for t in targets)]


def missed(targets: Sequence[Target], data: Data) -> list[str]:
    """One line per missed target of time that a run with timers explains."""
    lines = list[str]()
    for target in targets:
        if target.met or target.profile is None:
            continue
        section, key, name = target.profile
        profile = data.get(section, {}).get(key, {}).get(name)
        reason = explain(profile) if profile else "not run with timers yet"
        lines.append(f"- **{target.where}, {target.what}** ({target.measured}, {target.limit}): {reason}")
    return lines


def method_rows(results: Mapping[str, Race]) -> Rows:
    """Who took how long for each method, and how many times as long as meldkit."""
    present = [c for c in (FLOOR, MELDKIT, *PEERS) if any(race.runs.get(c) for race in results.values())]
    head = [
        "method",
        "inputs",
        *present,
        *(f"{c} ÷ meldkit" for c in present if c in PEERS),
        "meldkit ÷ floor",
        "on the disk",
    ]
    rows: Rows = [head]
    for name, race in results.items():
        ratios = [number(race.ratio(c, MELDKIT), 1) for c in present if c in PEERS]
        rows.append(
            [
                name,
                str(len(race.case.inputs)),
                *(time_cell(race, c) for c in present),
                *ratios,
                number(race.ratio(MELDKIT, FLOOR)),
                number(race.ratio(MELDKIT, FLOOR, "durable_seconds")),
            ]
        )
    return rows


def on_the_disk(results: Mapping[str, Race]) -> str:
    """What the table's last column says, and the mean gain that belongs to it."""
    text = (
        "*On the disk* is meldkit ÷ floor until the output is there: others leave that to the kernel, and "
        "`sync` is timed after them."
    )
    gains = [gain for race in results.values() if (gain := race.ratio(MERGEKIT, MELDKIT, "durable_seconds"))]
    if not gains:
        return text
    mean = statistics.geometric_mean(gains)
    return f"{text} Counted like this, meldkit is {mean:.1f} times as fast as {MERGEKIT} (geometric mean)."


def run_rows(results: Mapping[str, Race]) -> Rows:
    head = "method,contestant,runs,time,spread,processor,then sync,÷ floor,peak RSS,anonymous"
    rows: Rows = [[*head.split(",")]]
    for label, race in results.items():
        for contestant, costs in race.runs.items():
            if not costs:
                continue
            times = [cost.seconds for cost in costs]
            anonymous = None if contestant == FLOOR else race.median(contestant, "anonymous_mb")
            rows.append(
                [
                    label,
                    contestant,
                    str(len(costs)),
                    time_cell(race, contestant),
                    f"{min(times):.2f}–{max(times):.2f}",
                    number(race.median(contestant, "cpu_seconds"), unit=" s"),
                    number(race.median(contestant, "sync_seconds"), unit=" s"),
                    number(race.ratio(contestant, FLOOR)),
                    number(race.median(contestant, "rss_mb"), 0, " MB"),
                    number(anonymous, 0, " MB"),
                ]
            )
    return rows


def growth_rows(data: Data) -> Rows:
    """meldkit by size, all with a cold cache."""
    rows: Rows = [
        ["parameters", "method", "bytes", "floor", "meldkit", "÷ floor", "meldkit per GB", "peak RSS"]
    ]
    for section in by_size(data).values():
        for name, race in races(section, COLD_CASES).items():
            seconds, gigabytes = race.median(MELDKIT), race.bytes_moved / 1e9
            rows.append(
                [
                    billions(section),
                    name,
                    f"{gigabytes:.2f} GB",
                    time_cell(race, FLOOR),
                    time_cell(race, MELDKIT),
                    number(race.ratio(MELDKIT, FLOOR)),
                    number(None if seconds is None else seconds / gigabytes, unit=" s"),
                    number(race.median(MELDKIT, "rss_mb"), 0, " MB"),
                ]
            )
    return rows


def part_rows(profiles: Mapping[str, Any], cases: Sequence[Case]) -> Rows:
    rows: Rows = [["method", *PARTS, "in all"]]
    for case in cases:
        if case.name in profiles:
            found = parts(profiles[case.name])
            cells = [f"{found[name]:.2f}" for name in PARTS]
            rows.append([case.name, *cells, f"{sum(found.values()):.2f}"])
    return rows


def check_rows(results: Mapping[str, Race]) -> Rows:
    rows: Rows = [
        ["method", "with", "elements", "bit-equal", "tied", "disagree", "largest relative difference"]
    ]
    for name, race in results.items():
        for peer, found in race.checks.items():
            shares = [f"{found[key] / found['elements']:.4%}" for key in ("bit_equal", "tied", "disagree")]
            worst = f"{found['largest_relative_difference']:.1e}"
            if found["largest_in"]:
                worst += f" in {found['largest_in']}"
            rows.append([name, peer, f"{found['elements']:,}", *shares, worst])
    return rows


def machine_rows(data: Data) -> Rows:
    """What each section was measured on; one row where all agree."""
    machines = {name: section["machine"] for name, section in data.items() if "machine" in section}
    sizes = data.get("growth", {}).get("sizes", {})
    machines |= {f"growth, {size}": section["machine"] for size, section in sizes.items()}
    rows: Rows = [["", ""]]
    for fact in dict.fromkeys(fact for machine in machines.values() for fact in machine):
        said = {name: machine[fact] for name, machine in machines.items() if fact in machine}
        for value in dict.fromkeys(said.values()):
            where = [name for name, other in said.items() if other == value]
            rows.append([fact if len(where) == len(said) else f"{fact} ({', '.join(where)})", value])
    return rows


def _peers(data: Data) -> list[str]:
    section = data["peers"]
    results = races(section, CASES)
    taking = [p for p in PEERS.values() if any(race.runs.get(p.name) for race in results.values())]
    texts = [
        "## Against other programs",
        f"{billions(section)} parameters, {section['model_bytes'] / 1e9:.2f} GB a model, inputs in the page "
        "cache.",
        "![Time of each method](images/bench-methods.svg)",
        table(method_rows(results)),
        on_the_disk(results),
        "\n".join(f"- {p.name} {p.version}: {p.note}" for p in taking),
        "Not measured: " + "; ".join(f"{name} ({why})" for name, why in NOT_MEASURED.items()) + ".",
    ]
    failed = [f"- {n}, {c}: {why}" for n, race in results.items() for c, why in race.failures.items()]
    if failed:
        texts += ["Failed:", "\n".join(failed)]
    if len(rows := check_rows(results)) > 1:
        texts += ["### Do they agree?", table(rows), CHECK]
    return [*texts, "### All runs", table(run_rows(results)), PEAK_RSS]


def _growth(data: Data) -> list[str]:
    texts = [
        "## From small models to large ones",
        COLD,
        "![Time by size](images/bench-time.svg)",
        "![Memory by size](images/bench-memory.svg)",
        table(growth_rows(data)),
    ]
    if "cold" in data:
        section = data["cold"]
        results, files = races(section, COLD_CASES), section["files"]
        texts += [
            f"### {billions(section)}, all runs",
            f"{section['model_bytes'] / 1e9:.1f} GB a model, in {files} file{'s' * (files > 1)}."
            + " The disk had no room for models of 8 B parameters." * (section["size"] != "large"),
            table(run_rows(results)),
        ]
    return texts


def _inputs(data: Data) -> list[str]:
    rows: Rows = [["models", "bytes", "floor", "meldkit", "peak RSS"]]
    for num, race in by_inputs(data).items():
        moved, rss = f"{race.bytes_moved / 1e9:.2f} GB", number(race.median(MELDKIT, "rss_mb"), 0, " MB")
        rows.append([str(num), moved, time_cell(race, FLOOR), time_cell(race, MELDKIT), rss])
    introduction = f"`linear` of models of {billions(data['inputs'])} parameters. {INPUTS.strip()}"
    plot = "![Time by number of models](images/bench-inputs.svg)"
    return ["## From 2 models to 16", introduction, plot, table(rows)]


def _startup(data: Data) -> list[str]:
    race = races(data["startup"], [LINEAR])["linear"]
    names = {MELDKIT: "meldkit", **{name: f"{name} {peer.version}" for name, peer in PEERS.items()}}
    rows: Rows = [["program", "merge of two models of 1 MB", "peak RSS"]]
    for contestant, name in names.items():
        if race.runs.get(contestant):
            rss = number(race.median(contestant, "rss_mb"), 0, " MB")
            rows.append([name, time_cell(race, contestant), rss])
    texts = ["## Start-up", table(rows)]
    if profile := data["startup"].get("profiles", {}).get("linear"):
        stages: Rows = [["meldkit has come to", "after"]]
        stages += [[name, f"{profile['at'][mark]:.2f} s"] for name, mark in STAGES.items()]
        texts += ["With timers, once:", table(stages)]
    return texts


def _goes(data: Data) -> list[str]:
    texts = ["## Where the time goes", GOES]
    if "profile" in data:
        section = data["profile"]
        texts += [
            f"{billions(section)} parameters, inputs in the page cache:",
            "![Where the time goes](images/bench-parts.svg)",
            table(part_rows(section["cases"], CASES)),
        ]
    if profiles := data.get("cold", {}).get("profiles"):
        texts += [
            f"{billions(data['cold'])} parameters, cold cache:",
            table(part_rows(profiles, COLD_CASES)),
        ]
    return texts


def markdown(data: Data, peer_seconds: float) -> str:
    """The page, of the sections that have been measured."""
    targets = all_targets(data)
    num_met = sum(target.met for target in targets)
    texts = ["# Benchmarks", INTRODUCTION.format(peer_seconds=peer_seconds)]
    if targets:
        texts += [
            "## Targets",
            f"{num_met} of {len(targets)} met. {START_UP_SECONDS:g} s is for starting Python and torch.",
            table(target_rows(targets)),
        ]
    if lines := missed(targets, data):
        texts += ["Where the time goes that the missed ones take too long:", "\n".join(lines)]
    shown: list[tuple[bool, Callable[[Data], list[str]]]] = [
        ("peers" in data, _peers),
        (bool(by_size(data)), _growth),
        ("inputs" in data, _inputs),
        ("startup" in data, _startup),
        ("profile" in data or "cold" in data, _goes),
    ]
    for measured, section in shown:
        if measured:
            texts += section(data)
    if any(NOISY in text for text in texts):
        texts.append(NOISE)
    texts += ["## Machine", table(machine_rows(data))]
    return "\n\n".join(text.strip() for text in texts) + "\n"
