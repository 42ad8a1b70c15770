"""The merges to time: one row per method, with the goal it has to meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

SIBLINGS = ("sibling-1", "sibling-2", "sibling-3")
MODELS = ("base", *SIBLINGS)

MAX_RSS_MB = 600
MAX_HELP_SECONDS = 0.3
START_UP_SECONDS = 1.5  # granted on top of the floor: starting Python and importing torch


@dataclass(frozen=True, slots=True)
class Case:
    """One merge.

    `base` says what `base_model` names: nothing, the first of the merged models, or the common base (one
    more input). `each` holds the parameters every model gets, `whole` those of the recipe. `floor_goal` is
    the goal in multiples of the floor (plus START_UP_SECONDS), `mergekit_goal` how many times faster than
    mergekit.
    """

    name: str
    num_models: int
    base: Literal["none", "first", "common"]
    each: Mapping[str, float] = field(default_factory=dict[str, float])
    whole: Mapping[str, float] = field(default_factory=dict[str, float])
    floor_goal: float = 1.5
    mergekit_goal: float | None = None
    warm_up_mergekit: bool = True  # False where one mergekit run takes minutes

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


CASES = (
    Case("linear", 2, "none", each={"weight": 0.5}, mergekit_goal=5),
    Case("slerp", 2, "first", whole={"t": 0.5}, mergekit_goal=5),
    Case("task_arithmetic", 3, "common", each={"weight": 1.0}),
    Case(
        "ties",
        3,
        "common",
        each={"density": 0.5, "weight": 1.0},
        floor_goal=4,
        mergekit_goal=25,
        warm_up_mergekit=False,
    ),
)
