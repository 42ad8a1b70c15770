"""The merges to time: one row per method, with the goal it has to meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

SIBLINGS = ("sibling-1", "sibling-2", "sibling-3")
MODELS = ("base", *SIBLINGS)

MIN_MEAN_GAIN = 10  # geometric mean over all methods of how many times faster than mergekit
MAX_HELP_SECONDS = 0.3
START_UP_SECONDS = 1.5  # granted on top of the floor: starting Python and importing torch


@dataclass(frozen=True, slots=True)
class Case:
    """One merge.

    `base` says what `base_model` names: nothing, the first of the merged models, or the common base (one
    more input). `each` holds the parameters every model gets, `whole` those of the recipe. `floor_goal` is
    the goal in multiples of the floor (plus START_UP_SECONDS), `mergekit_goal` how many times faster than
    mergekit. Where a run of mergekit takes minutes (not `quick_mergekit`) there is just one.
    """

    name: str
    num_models: int
    base: Literal["none", "first", "common"]
    each: Mapping[str, float] = field(default_factory=dict[str, float])
    whole: Mapping[str, float] = field(default_factory=dict[str, float])
    floor_goal: float = 2
    mergekit_goal: float = 1
    max_rss_mb: float = 800
    quick_mergekit: bool = True

    @property
    def inputs(self) -> tuple[str, ...]:
        """The checkpoints read, in recipe order, the common base last."""
        return SIBLINGS[: self.num_models] + (("base",) if self.base == "common" else ())

    def recipe(self, folder: Path) -> str:
        """The YAML that both programs read, with the checkpoints found in `folder`."""
        names = SIBLINGS[: self.num_models]
        models = [
            {"model": str(folder / name)} | ({"parameters": dict(self.each)} if self.each else {})
            for name in names
        ]
        recipe: dict[str, object] = {"merge_method": self.name, "models": models}
        if self.base != "none":
            recipe["base_model"] = str(folder / ("base" if self.base == "common" else names[0]))
        if self.whole:
            recipe["parameters"] = dict(self.whole)
        recipe["dtype"] = "bfloat16"
        return yaml.safe_dump(recipe, sort_keys=False)


#: Goals in multiples of the floor of methods that need statistics first, and of those that rank every row.
MEASURED, RANKED = 4, 15
WEIGHTS = {"weight": 1.0}
SPARSE = {"density": 0.5, "weight": 1.0}


def _slow(name: str, each: Mapping[str, float], floor_goal: float = MEASURED, **more: Any) -> Case:
    """Task vectors of three models, of which a single run of mergekit takes up to minutes."""
    return Case(name, 3, "common", each, floor_goal=floor_goal, quick_mergekit=False, **more)


CASES = (
    Case("linear", 2, "none", {"weight": 0.5}, floor_goal=1.5, mergekit_goal=5, max_rss_mb=600),
    Case("slerp", 2, "first", whole={"t": 0.5}, floor_goal=1.5, mergekit_goal=5, max_rss_mb=600),
    Case("task_arithmetic", 3, "common", WEIGHTS, floor_goal=1.5, max_rss_mb=600),
    _slow("ties", SPARSE, mergekit_goal=25, max_rss_mb=600),
    Case("passthrough", 1, "none", {"scale": 0.9}),
    Case("nuslerp", 2, "none", {"weight": 0.5}),
    Case("multislerp", 3, "none", WEIGHTS, quick_mergekit=False),
    Case("karcher", 3, "none", quick_mergekit=False),
    Case("model_stock", 3, "common"),
    Case("nearswap", 2, "first", whole={"t": 0.001}),
    Case("ram", 3, "common", quick_mergekit=False),
    _slow("ramplus_tl", {}),
    _slow("sce", {}, whole={"select_topk": 0.5}),
    Case("arcee_fusion", 2, "first", floor_goal=MEASURED, quick_mergekit=False),
    _slow("dare_linear", SPARSE),
    _slow("dare_ties", SPARSE),
    _slow("breadcrumbs", SPARSE | {"gamma": 0.01}),
    _slow("breadcrumbs_ties", SPARSE | {"gamma": 0.01}),
    _slow("della", SPARSE | {"epsilon": 0.15}, RANKED),
    _slow("della_linear", SPARSE | {"epsilon": 0.15}, RANKED),
)
