"""Draws what has been measured, as SVG files."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from cases import CASES, COLD_CASES
from contestants import CONTESTANTS, FLOOR, MELDKIT
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter
from parts import PARTS, parts
from targets import Data, billions, by_inputs, by_size, line, races

#: Okabe and Ito's colours, which the colour-blind tell apart.
COLORS = dict(
    zip(CONTESTANTS, ("#999999", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00"), strict=True)
)
PART_COLORS = (
    "#999999",
    "#56B4E9",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#F0E442",
    "#009E73",
    "#E69F00",
    "#DDDDDD",
    "#555555",
)
#: Of methods drawn by size: slerp's line would lie on linear's.
MARKERS = {"linear": "o", "ties": "s"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, and files small
    "svg.hashsalt": "meldkit",  # the same numbers give the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
}


def plain(value: float, position: object) -> str:
    """Numbers on an axis without powers of ten."""
    del position
    return f"{value:g}"


PLAIN = FuncFormatter(plain)


@contextmanager
def figure(path: Path, width: float, height: float) -> Generator[Any]:
    """Axes to draw on; inches."""
    with plt.rc_context(STYLE):
        drawn, axes = plt.subplots(figsize=(width, height))
        yield axes
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, metadata={"Date": None})
        plt.close(drawn)


def methods(data: Data, path: Path) -> None:
    """Time of every method, by contestant."""
    results = races(data["peers"], CASES)
    ticks, bars, row = list[float](), dict[str, list[tuple[float, float]]](), 0
    for race in results.values():
        first = row
        for contestant in CONTESTANTS:
            if (seconds := race.median(contestant)) is not None:
                bars.setdefault(contestant, []).append((row, seconds))
                row += 1
        ticks.append((first + row - 1) / 2)
        row += 1  # between methods
    with figure(path, 8, 1 + 0.1 * row) as axes:
        for contestant in (c for c in CONTESTANTS if c in bars):
            axes.barh(*zip(*bars[contestant], strict=True), 0.9, color=COLORS[contestant], label=contestant)
        axes.set_yticks(ticks, list(results))
        axes.margins(y=0.01)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(PLAIN)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"seconds, {billions(data['peers'])} parameters")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(bars))


def by_size_of(data: Data, path: Path, what: str, label: str) -> None:
    """Time or memory against the size of models; a line per contestant and method."""
    with figure(path, 7, 4.5) as axes:
        for case in (case for case in COLD_CASES if case.name in MARKERS):
            for contestant in CONTESTANTS:
                points = list[tuple[float, float]]()
                for section in by_size(data).values():
                    race = races(section, [case]).get(case.name)
                    value = race.median(contestant, what) if race else None
                    if value is not None:
                        points.append((section["parameters"] / 1e9, value))
                if not points or (contestant == FLOOR and what != "seconds"):
                    continue
                style = "--" if contestant == FLOOR else "-"
                name = f"{contestant}, {case.name}"
                axes.plot(
                    *zip(*points, strict=True),
                    style,
                    marker=MARKERS[case.name],
                    color=COLORS[contestant],
                    label=name,
                    markersize=5,
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(PLAIN)
        axes.yaxis.set_major_formatter(PLAIN)
        axes.set_xlabel("billions of parameters of each model; cold cache")
        axes.set_ylabel(label)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def inputs(data: Data, path: Path) -> None:
    """Time against the number of models, and the line that fits meldkit's best."""
    found = by_inputs(data)
    with figure(path, 6, 3.5) as axes:
        for contestant in (FLOOR, MELDKIT):
            points = [(num, value) for num, race in found.items() if (value := race.median(contestant))]
            axes.plot(
                *zip(*points, strict=True), "o", color=COLORS[contestant], label=contestant, markersize=5
            )
            if len(points) > 1:
                numbers, seconds = zip(*points, strict=True)
                start, slope, _ = line(numbers, seconds)
                ends = [min(numbers), max(numbers)]
                axes.plot(ends, [start + slope * end for end in ends], color=COLORS[contestant], linewidth=1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"models of {billions(data['inputs'])} parameters, linear")
        axes.set_ylabel("seconds")
        axes.legend()


def stacked(data: Data, path: Path) -> None:
    """Where the time of each method goes."""
    profiles = data["profile"]["cases"]
    names = [case.name for case in CASES if case.name in profiles]
    found = {name: parts(profiles[name]) for name in names}
    with figure(path, 8, 1.2 + 0.28 * len(names)) as axes:
        ends = [0.0] * len(names)
        for part, color in zip(PARTS, PART_COLORS, strict=True):
            widths = [found[name][part] for name in names]
            axes.barh(names, widths, 0.75, ends, color=color, label=part)
            ends = [end + width for end, width in zip(ends, widths, strict=True)]
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"seconds, {billions(data['profile'])} parameters")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5)


def draw(data: Data, folder: Path) -> list[Path]:
    """Draw all that can be drawn; the files written."""
    drawn = list[Path]()

    def path(name: str) -> Path:
        drawn.append(folder / f"bench-{name}.svg")
        return drawn[-1]

    if data.get("peers", {}).get("cases"):
        methods(data, path("methods"))
    if by_size(data):
        by_size_of(data, path("time"), "seconds", "seconds")
        by_size_of(data, path("memory"), "rss_mb", "peak RSS, MB")
    if by_inputs(data):
        inputs(data, path("inputs"))
    if data.get("profile", {}).get("cases"):
        stacked(data, path("parts"))
    return drawn
