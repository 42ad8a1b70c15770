"""A plan's parameters as tables, curves over depth and heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from meldkit.plan import Plan
from meldkit.report.html.figures import Curve, colours, curves, heat_map
from meldkit.report.html.grid import Floats, Grid, Spread, gather
from meldkit.report.html.page import Block, Cell, Figure, Items, Table

#: Plots of one page; each of a large model's is a few tens of kB.
MAX_FIGURES = 40
#: Curves in one plot that can still be told apart.
_MAX_CURVES = 24


@dataclass(slots=True)
class Series:
    """One parameter of one model, or of whole tensors, over all tensors of a plan.

    Attributes:
        parameter: its name.
        model: short name of the model; "" for what is one value for the whole tensor.
        numbers: by position of the job.
        words: how many tensors have which value that is no number.
    """

    parameter: str
    model: str
    numbers: dict[int, float] = field(default_factory=dict[int, float])
    words: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, position: int, value: object) -> None:
        """The value of one tensor."""
        if isinstance(value, float | int) and not isinstance(value, bool):
            self.numbers[position] = float(value)
        elif value is not None:
            word = str(value).lower() if isinstance(value, bool) else str(value)
            self.words[word] = self.words.get(word, 0) + 1

    @property
    def title(self) -> str:
        """The parameter, and whose."""
        return f"{self.parameter} of {self.model}" if self.model else self.parameter

    def row(self) -> Sequence[Cell]:
        """For the table of values: parameter, model, lowest, highest, tensors."""
        low: Cell = min(self.numbers.values(), default=None)
        high: Cell = max(self.numbers.values(), default=None)
        if self.words:
            numbers = [] if low is None else [f"{low:.4g} to {high:.4g}"]
            low = high = ", ".join([*self.words, *numbers])
        num_tensors = len(self.numbers) + sum(self.words.values())
        return (self.parameter, self.model or "all", low, high, num_tensors)


def series(plan: Plan) -> list[Series]:
    """Every parameter of the method, in its order, for each model in the order of the recipe."""
    found: dict[str, dict[str, Series]] = {p.name: {} for p in plan.method.parameters if not p.of_recipe}
    short = short_names([checkpoint.label for checkpoint in plan.checkpoints])
    labels: dict[tuple[int, ...], list[str]] = {}
    for position, job in enumerate(plan.jobs):
        models = tuple(tensor.checkpoint for tensor in job.inputs)
        if models not in labels:
            labels[models] = _labels([short[model] for model in models])
        for name, value in job.values.items():
            if name not in found:
                continue
            several = zip(labels[models], value, strict=True) if isinstance(value, tuple) else [("", value)]
            for label, single in several:
                found[name].setdefault(label, Series(name, label)).add(position, single)
    return [one for own in found.values() for one in own.values() if one.numbers or one.words]


def short_names(labels: Sequence[str]) -> list[str]:
    """Labels of models without the folders that they lie in, where that leaves them different."""
    short = ["+".join(Path(part).name or part for part in label.split("+")) for label in labels]
    return short if len(set(short)) == len(set(labels)) else list(labels)


def _labels(models: Sequence[str]) -> list[str]:
    """The inputs of a tensor by their models; a model that takes part twice is two inputs."""
    return [
        f"{model} (input {place + 1})" if models.count(model) > 1 else model
        for place, model in enumerate(models)
    ]


def value_blocks(plan: Plan, layers: Sequence[Grid]) -> list[Block]:
    """What the recipe's parameters come to: a table, and plots of those that differ between tensors."""
    every = series(plan)
    if not every:
        return []
    rows = [one.row() for one in every]
    blocks: list[Block] = [Table(["parameter", "model", "lowest", "highest", "tensors"], rows)]
    figures: list[Figure] = []
    for parameter in dict.fromkeys(one.parameter for one in every):
        own = [one for one in every if one.parameter == parameter and one.numbers]
        for grid in layers:
            figures += _figures(parameter, own, grid, len(plan.jobs), several=len(layers) > 1)
    blocks += figures[:MAX_FIGURES]
    if len(figures) > MAX_FIGURES:
        more = len(figures) - MAX_FIGURES
        blocks.append(Items([f"{more} more plots are left out; meldkit explain lists all values"]))
    return blocks


def _figures(
    parameter: str, own: Sequence[Series], grid: Grid, length: int, *, several: bool
) -> list[Figure]:
    spreads = [(one, grid.spread(gather(one.numbers, length))) for one in own]
    varied = [(one, spread) for one, spread in spreads if spread.varied]
    if not varied:
        return []
    place = f" in {grid.prefix}*" if several else ""
    lines = [
        Curve(f"{one.model}: {name}" if one.model else name, values, group)
        for one, spread in spreads
        for group, (name, values) in enumerate(_alike(grid, spread))
    ]
    result: list[Figure] = []
    if any(_runs(line.values) for line in lines) and len(lines) <= _MAX_CURVES:
        words = "The value that each layer takes; tensors with the same values share a line."
        result.append(curves(f"{parameter} over depth{place}", words, grid, lines, parameter))
    shades = colours([spread.mean for _, spread in spreads])
    for one, spread in varied:
        if len(_alike(grid, spread)) > 1:
            words = "Each cell is a tensor of the output."
            title = f"{one.title} by layer and tensor{place}"
            empty = "copied, or this model takes no part"
            result.append(heat_map(title, words, grid, spread, parameter, shades, empty=empty))
    return result


def _runs(values: Floats) -> bool:
    """Whether a line is more than a level."""
    known = values[~np.isnan(values)]
    return known.size > 1 and bool(known.min() < known.max())


def _alike(grid: Grid, spread: Spread) -> list[tuple[str, Floats]]:
    """Leaves that have the same value in every layer, under a common name."""
    groups: dict[bytes, list[int]] = {}
    for row in range(len(grid.leaves)):
        if spread.count[row].any():
            groups.setdefault(spread.mean[row].tobytes(), []).append(row)
    if len(groups) == 1:
        return [("all tensors of a layer", spread.mean[next(iter(groups.values()))[0]])]
    modules = [leaf.partition(".")[0] for leaf in grid.leaves]
    result: list[tuple[str, Floats]] = []
    for rows in groups.values():
        names = list(dict.fromkeys(modules[row] for row in rows))
        if {row for row, module in enumerate(modules) if module in names} != set(rows):
            names = [grid.labels[row] for row in rows]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        result.append((", ".join(names[:3]) + more, spread.mean[rows[0]]))
    return result
