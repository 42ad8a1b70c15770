"""The merges to time, and the goals they have to meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from checkpoints import BASE

START_UP_SECONDS = 1.2  # granted on top of the floor: starting Python and importing torch
#: Multiples of the floor, by how much of a tensor a method has to see at once.
FLOOR_GOALS = {"elementwise": 1.2, "spanned": 1.2, "measured": 2.0, "rows": 10.0}
MIN_MEAN_GAIN = 15  # geometric mean over all methods of how many times faster than mergekit
MAX_HELP_SECONDS = 0.25
MAX_TINY_SECONDS = 1.5  # of a merge of two models of 1 MB
MAX_RSS_MB = 800
MAX_GROWTH = 1.1  # of the memory, from 1.1 B to 8 B parameters
MAX_UNEVENNESS = 0.15  # of the time per byte over all sizes; of times over numbers of inputs, from a line


@dataclass(frozen=True, slots=True)
class Case:
    """One merge.

    `base` says what `base_model` names: nothing, the first of the merged models, or the common base (one
    more input). `each` holds the parameters every model gets, `whole` those of the recipe. `passes` is how
    often the floor reads the inputs. Outputs of a `random` method are not compared with those of others.
    """

    name: str
    kind: Literal["elementwise", "spanned", "measured", "rows"]
    num_models: int
    base: Literal["none", "first", "common"] = "none"
    each: Mapping[str, float] = field(default_factory=dict[str, float])
    whole: Mapping[str, float] = field(default_factory=dict[str, float])
    passes: int = 1
    max_rss_mb: float = MAX_RSS_MB
    random: bool = False

    @property
    def siblings(self) -> list[str]:
        """The models merged."""
        return [f"sibling-{number}" for number in range(1, self.num_models + 1)]

    @property
    def inputs(self) -> list[str]:
        """The checkpoints read, in recipe order, the common base last."""
        return self.siblings + ([BASE] if self.base == "common" else [])

    def recipe(self, folder: Path) -> str:
        """The YAML that all programs read, with the checkpoints found in `folder`."""
        models = [
            {"model": str(folder / name)} | ({"parameters": dict(self.each)} if self.each else {})
            for name in self.siblings
        ]
        recipe: dict[str, object] = {"merge_method": self.name, "models": models}
        if self.base != "none":
            recipe["base_model"] = str(folder / (BASE if self.base == "common" else self.siblings[0]))
        if self.whole:
            recipe["parameters"] = dict(self.whole)
        recipe["dtype"] = "bfloat16"
        return yaml.safe_dump(recipe, sort_keys=False)


WEIGHTS = {"weight": 1.0}
SPARSE = {"density": 0.5, "weight": 1.0}
EDGES = SPARSE | {"gamma": 0.01}
RANKED = SPARSE | {"epsilon": 0.15}


def _sparse(name: str, each: Mapping[str, float] = SPARSE, **more: Any) -> Case:
    """Task vectors of three models that are thinned out first."""
    kind = more.pop("kind", "measured")
    return Case(name, kind, 3, "common", each, **more)


LINEAR = Case("linear", "elementwise", 2, each={"weight": 0.5}, max_rss_mb=600)
SLERP = Case("slerp", "spanned", 2, "first", whole={"t": 0.5}, max_rss_mb=600)
#: One per method, against other programs.
CASES = (
    LINEAR,
    SLERP,
    Case("task_arithmetic", "elementwise", 3, "common", WEIGHTS),
    _sparse("ties"),
    Case("passthrough", "elementwise", 1, each={"scale": 0.9}),
    Case("nuslerp", "spanned", 2, each={"weight": 0.5}),
    Case("multislerp", "spanned", 3, each=WEIGHTS),
    Case("karcher", "spanned", 3),
    Case("model_stock", "spanned", 3, "common"),
    Case("nearswap", "elementwise", 2, "first", whole={"t": 0.001}),
    Case("ram", "elementwise", 3, "common"),
    _sparse("ramplus_tl", {}),
    _sparse("sce", {}, whole={"select_topk": 0.5}),
    Case("arcee_fusion", "measured", 2, "first"),
    _sparse("dare_linear", random=True),
    _sparse("dare_ties", random=True),
    _sparse("breadcrumbs", EDGES),
    _sparse("breadcrumbs_ties", EDGES),
    _sparse("della", RANKED, kind="rows", random=True),
    _sparse("della_linear", RANKED, kind="rows", random=True),
)
#: With a cold cache, at every size; and the multiple of the floor each may take at 8 B parameters.
COLD_CASES = (LINEAR, SLERP, Case("ties", "measured", 2, "common", SPARSE, passes=2))
COLD_GOALS = {"linear": 1.2, "slerp": 1.2, "ties": 1.5}
#: How many inputs are merged to see how time grows with them.
NUM_INPUTS = (2, 4, 8, 16)
