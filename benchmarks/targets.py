"""What meldkit is asked to reach, and what was measured of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cases import (
    CASES,
    COLD_CASES,
    COLD_GOALS,
    FLOOR_GOALS,
    LINEAR,
    MAX_GROWTH,
    MAX_HELP_SECONDS,
    MAX_RSS_MB,
    MAX_TINY_SECONDS,
    MAX_UNEVENNESS,
    MIN_MEAN_GAIN,
    START_UP_SECONDS,
    Case,
)
from checkpoints import SIZES
from contestants import FLOOR, MELDKIT, MERGEKIT, PEERS
from measure import Cost
from race import Race, from_json

#: Everything that has been measured, by section, as it is kept.
Data = Mapping[str, Mapping[str, Any]]
#: A missed target of time is explained by a run with timers: section, key of the profiles in it, case.
ProfileKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Target:
    where: str
    what: str
    limit: str
    measured: str
    met: bool
    profile: ProfileKey | None = None

    @property
    def verdict(self) -> str:
        return "met" if self.met else "**missed**"


def billions(data: Mapping[str, Any]) -> str:
    """The size of a section's models."""
    parameters = data["parameters"]
    return f"{parameters / 1e9:.1f} B" if parameters >= 5e7 else f"{data['model_bytes'] / 1e6:.0f} MB"


def races(section: Mapping[str, Any], cases: Sequence[Case]) -> dict[str, Race]:
    """The races of a section, in the order of `cases`."""
    found = section["cases"]
    return {case.name: from_json(case, found[case.name]) for case in cases if case.name in found}


def by_size(data: Data) -> dict[str, Mapping[str, Any]]:
    """What was measured with a cold cache, from the smallest models to the largest."""
    sections = dict(data.get("growth", {}).get("sizes", {}))
    if "cold" in data:
        sections[data["cold"]["size"]] = data["cold"]
    return {size: sections[size] for size in SIZES if size in sections}


def by_inputs(data: Data) -> dict[int, Race]:
    """Races over more and more models."""
    found = data.get("inputs", {}).get("cases", {})
    return {int(num): from_json(replace(LINEAR, num_models=int(num)), race) for num, race in found.items()}


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """The line a + b·x that fits best relative to y: a, b, and the largest relative deviation from it.

    Raises:
        statistics.StatisticsError: fewer than two different x.
    """
    weights = [1 / value**2 for value in y]
    total = sum(weights)
    mean_x = sum(w * v for w, v in zip(weights, x, strict=True)) / total
    mean_y = sum(w * v for w, v in zip(weights, y, strict=True)) / total
    spread = sum(w * (v - mean_x) ** 2 for w, v in zip(weights, x, strict=True))
    if spread == 0:
        raise statistics.StatisticsError("a line needs two different x")
    slope = sum(w * (u - mean_x) * (v - mean_y) for w, u, v in zip(weights, x, y, strict=True)) / spread
    start = mean_y - slope * mean_x
    return start, slope, max(abs(start + slope * u - v) / v for u, v in zip(x, y, strict=True))


def all_targets(data: Data) -> list[Target]:
    """Every target of which both sides have been measured."""
    return [
        *(_peers(data["peers"]) if "peers" in data else ()),
        *(_cold(data["cold"]) if "cold" in data else ()),
        *_growth(data),
        *_inputs(data),
        *(_startup(data["startup"]) if "startup" in data else ()),
    ]


def _most_seconds(race: Race, limit: float, formula: str, where: str, key: ProfileKey) -> Target | None:
    seconds = race.median(MELDKIT)
    if seconds is None:
        return None
    text = f"≤ {limit:.2f} s = {formula}"
    return Target(where, f"{race.case.name}: time", text, f"{seconds:.2f} s", seconds <= limit, key)


def _memory(race: Race, where: str) -> Target | None:
    rss = race.median(MELDKIT, "rss_mb")
    if rss is None:
        return None
    limit = race.case.max_rss_mb
    return Target(where, f"{race.case.name}: peak RSS", f"≤ {limit:g} MB", f"{rss:,.0f} MB", rss <= limit)


def _peers(section: Mapping[str, Any]) -> list[Target]:
    where, found = billions(section), list[Target | None]()
    results = races(section, CASES)
    for name, race in results.items():
        if (floor := race.median(FLOOR)) is not None:
            factor = FLOOR_GOALS[race.case.kind]
            limit = factor * floor + START_UP_SECONDS
            formula = f"{factor:g} × floor + {START_UP_SECONDS:g} s"
            found.append(_most_seconds(race, limit, formula, where, ("profile", "cases", name)))
    rss = {name: mb for name, race in results.items() if (mb := race.median(MELDKIT, "rss_mb"))}
    if rss:
        worst = max(rss, key=lambda name: rss[name])
        most, limit = f"{rss[worst]:,.0f} MB ({worst})", f"≤ {MAX_RSS_MB} MB"
        found.append(Target(where, "peak RSS, each method", limit, most, rss[worst] <= MAX_RSS_MB))
    for peer in PEERS:
        gains = {name: gain for name, race in results.items() if (gain := race.ratio(peer, MELDKIT))}
        if not gains:
            continue
        worst = min(gains, key=lambda name: gains[name])
        slowest = f"{gains[worst]:.1f} × ({worst})"
        found.append(Target(where, f"faster than {peer}, each method", "≥ 1 ×", slowest, gains[worst] >= 1))
        if peer == MERGEKIT:
            mean = statistics.geometric_mean(gains.values())
            what = f"faster than {peer}, geometric mean of {len(gains)} methods"
            found.append(
                Target(where, what, f"≥ {MIN_MEAN_GAIN:g} ×", f"{mean:.2f} ×", mean >= MIN_MEAN_GAIN)
            )
    return [target for target in found if target is not None]


def _cold(section: Mapping[str, Any]) -> list[Target]:
    where, found = f"{billions(section)}, cold", list[Target | None]()
    for name, race in races(section, COLD_CASES).items():
        if (floor := race.median(FLOOR)) is not None:
            factor = COLD_GOALS[name]
            key = ("cold", "profiles", name)
            found.append(_most_seconds(race, factor * floor, f"{factor:g} × floor", where, key))
        found.append(_memory(race, where))
    return [target for target in found if target is not None]


def _growth(data: Data) -> list[Target]:
    found = list[Target]()
    sizes = by_size(data)
    for case in COLD_CASES:
        known = {size: races(section, [case]) for size, section in sizes.items()}
        measured = {
            size: race[case.name] for size, race in known.items() if race and race[case.name].median(MELDKIT)
        }
        rss = {size: race.median(MELDKIT, "rss_mb") or 0 for size, race in measured.items()}
        if "full" in rss and "large" in rss:
            growth = rss["large"] / rss["full"]
            what = f"{case.name}: peak RSS, 8 B against 1.1 B"
            limit = f"≤ {MAX_GROWTH:g} ×"
            found.append(Target("growth, cold", what, limit, f"{growth:.2f} ×", growth <= MAX_GROWTH))
        # The models of 1 MB, of a benchmark that is only tried, are all start-up.
        points = {s: r for s, r in measured.items() if s != "tiny"}
        if len(points) > 2:
            moved = [race.bytes_moved / 1e9 for race in points.values()]
            seconds = [race.median(MELDKIT) or 0 for race in points.values()]
            target = _even(moved, seconds, "growth, cold", f"{case.name}: time per byte, all sizes")
            floor = [race.median(FLOOR) or 0 for race in points.values()]
            if all(floor):
                # What is uneven of the disk itself.
                of_floor = f"; the floor {line(moved, floor)[2]:.0%} off its own line"
                target = replace(target, measured=target.measured + of_floor)
            found.append(target)
    return found


def _inputs(data: Data) -> list[Target]:
    found = by_inputs(data)
    if len(found) < 3:
        return []
    moved = [race.bytes_moved / 1e9 for race in found.values()]
    seconds = [race.median(MELDKIT) or 0 for race in found.values()]
    what = f"linear of {min(found)} to {max(found)} models: time per byte"
    return [_even(moved, seconds, billions(data["inputs"]), what)]


def _even(moved: Sequence[float], seconds: Sequence[float], where: str, what: str) -> Target:
    start, slope, worst = line(moved, seconds)
    measured = f"{worst:.0%} off {start:.2f} s + {slope:.3f} s/GB"
    return Target(where, what, f"≤ {MAX_UNEVENNESS:.0%} off a line", measured, worst <= MAX_UNEVENNESS)


def _startup(section: Mapping[str, Any]) -> list[Target]:
    median = statistics.median(Cost(**cost).seconds for cost in section["help"])
    found = [
        Target(
            "start-up",
            "`meldkit --help`",
            f"≤ {MAX_HELP_SECONDS:g} s",
            f"{median:.2f} s",
            median <= MAX_HELP_SECONDS,
        )
    ]
    race = races(section, [LINEAR]).get("linear")
    if race is not None and (seconds := race.median(MELDKIT)) is not None:
        met = seconds <= MAX_TINY_SECONDS
        limit, key = f"≤ {MAX_TINY_SECONDS:g} s", ("startup", "profiles", "linear")
        found.append(Target("start-up", "merge of two models of 1 MB", limit, f"{seconds:.2f} s", met, key))
    return found
