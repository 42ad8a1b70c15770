"""The page of a comparison of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jinja2.filters import do_filesizeformat as size

from meldkit.report.diff import Difference, ModelComparison, Pair, PairKey, TensorDifference
from meldkit.report.html.figures import colours, distribution, heat_map, matrix
from meldkit.report.html.grid import Floats, Grid, grids_of
from meldkit.report.html.page import Block, Cell, Figure, Items, Page, Section, Table, Words

#: Plots by layer of one page, pairs that have a plot of their own, and rows of the most changed tensors.
_MAX_MAPS = 40
_MAX_PAIRS = 6
_MOST_CHANGED = 50


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that is known of each tensor and pair of models.

    Attributes:
        title: what it is called.
        words: how to read it.
        unit: what stands at the colour bar.
        of: its value; None where it has none.
        around: the middle of a scale that has two sides.
        falling: whether less is better.
        digits: that tell something.
    """

    title: str
    words: str
    unit: str
    of: Callable[[Difference], float | None]
    around: float | None = None
    falling: bool = False
    digits: int = 4


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


_OF_WEIGHTS = (
    Quantity(
        "Relative change",
        "|b − a| / |a| of each tensor: how far it moved, for its size.",
        "change, %",
        lambda d: _percent(d.relative_change),
    ),
    Quantity(
        "Cosine of the weights",
        "1 means that they still point in the same direction.",
        "cosine",
        lambda d: d.cosine,
        digits=6,
    ),
)
_OF_TASKS = (
    Quantity(
        "Cosine of the task vectors",
        "What both models changed against the base: blue the same way, red opposite ways, pale unrelated.",
        "cosine",
        lambda d: d.task and d.task.cosine,
        around=0.0,
    ),
    Quantity(
        "Signs in conflict",
        "Of the elements that both changed, those that moved in opposite directions; half of them by chance.",
        "signs in conflict, %",
        lambda d: d.task and _percent(d.task.sign_conflict),
        around=50.0,
        falling=True,
    ),
    Quantity(
        "Largest changes in common",
        "How many of the largest 1 % of changes both have; 1 % of them by chance.",
        "in common, %",
        lambda d: d.task and _percent(d.task.top_overlap),
    ),
)


def diff_page(comparison: ModelComparison) -> Page:
    """How models differ."""
    names = [model.label for model in comparison.models]
    grids = grids_of((tensor.stack, tensor.block, tensor.leaf) for tensor in comparison.tensors)
    lead = f"{size(comparison.bytes_read)} of weights compared in {comparison.seconds:.1f} s."
    return Page(
        f"Comparison of {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}",
        lead,
        [
            Section("What it means", _findings(comparison)),
            Section("Models", [_models(comparison)]),
            Section("Totals", [*_totals(comparison), *_matrices(comparison)]),
            Section("Distribution", _distributions(comparison)),
            Section("Layers", _maps(comparison, grids)),
            Section("Tensors", [*_outside(comparison), *_most_changed(comparison), *_only_some(comparison)]),
        ],
    )


def _findings(comparison: ModelComparison) -> list[Block]:
    texts = [(f"{f.text}. {f.advice}".rstrip(". ") + ".", f.warning) for f in comparison.findings]
    blocks: list[Block] = []
    for warning in (True, False):
        own = [text[0].upper() + text[1:] for text, warns in texts if warns == warning]
        if own:
            blocks.append(Items(own, warning=warning))
    if comparison.notes:
        blocks.append(Items(comparison.notes, title="How the models were brought together"))
    return blocks


def _models(comparison: ModelComparison) -> Table:
    rows: list[list[Cell]] = []
    for model in comparison.models:
        types = ", ".join(model.dtypes) + " quantised" * model.quantised
        rows.append(
            [model.name, model.label, model.architecture, model.num_tensors, model.num_parameters, types]
        )
    return Table(["", "model", "architecture", "tensors", "parameters", "type"], rows)


def _names(comparison: ModelComparison, pair: Pair, between: str) -> str:
    return f"{comparison.models[pair.first].name} {between} {comparison.models[pair.second].name}"


def _totals(comparison: ModelComparison) -> list[Block]:
    rows: list[list[Cell]] = []
    of_tasks: list[list[Cell]] = []
    for pair in comparison.pairs:
        d = pair.total
        equal = f"{pair.num_equal:,} of {pair.num_tensors:,}"
        change = _percent(d.relative_change)
        name = _names(comparison, pair, "→")
        rows.append(
            [name, pair.relation.value, change, d.cosine, d.norm_first, d.norm_second, d.largest, equal]
        )
        if (task := d.task) is not None:
            both = _names(comparison, pair, "and")
            of_tasks.append([both, task.norm_first, task.norm_second, *(q.of(d) for q in _OF_TASKS)])
    head = ["models", "relation", "change, %", "cosine", "norm", "norm", "largest change", "equal tensors"]
    blocks: list[Block] = [Table(head, rows, digits=6)]
    if of_tasks:
        head = ["task vectors", "norm", "norm", "cosine", "signs in conflict, %", "largest 1 % in common, %"]
        blocks.append(Table(head, of_tasks))
    return blocks


def _matrices(comparison: ModelComparison) -> list[Figure]:
    """Every model against every other one, where there are more than two."""
    if len(comparison.models) - (comparison.base is not None) <= 2:
        return []
    names = [f"{model.name}: {model.label}" for model in comparison.models]
    figures: list[Figure] = []
    for quantity in (*_OF_WEIGHTS, *_OF_TASKS[: 2 * (comparison.base is not None)]):
        values = np.full((len(names), len(names)), np.nan)
        for pair in comparison.pairs:
            value = quantity.of(pair.total)
            if value is not None:
                values[pair.first, pair.second] = values[pair.second, pair.first] = value
        if not np.isnan(values).all():
            words = {"Relative change": "Against the first of the two."}.get(quantity.title, "")
            shades = colours([values], around=quantity.around, falling=quantity.falling)
            short = [model.name for model in comparison.models]
            title, digits = f"{quantity.title}, all pairs", min(quantity.digits, 5)
            figures.append(matrix(title, words, short, names, values, quantity.unit, shades, digits=digits))
    return figures


def _shown(comparison: ModelComparison) -> list[Pair]:
    """Pairs with plots of their own: changes from the reference, of models that differ."""
    found = [p for p in comparison.pairs if p.first == comparison.reference and not p.total.equal]
    return found[:_MAX_PAIRS]


def _values(comparison: ModelComparison, pair: PairKey, quantity: Quantity) -> Floats:
    """By tensor; NaN where it has none."""
    values = np.full(len(comparison.tensors), np.nan)
    for position, tensor in enumerate(comparison.tensors):
        if pair in tensor.pairs and not tensor.whole_numbers:
            value = quantity.of(tensor.pairs[pair])
            values[position] = np.nan if value is None else value
    return values


def _distributions(comparison: ModelComparison) -> list[Block]:
    roles = np.array([tensor.role for tensor in comparison.tensors])
    change = _OF_WEIGHTS[0]
    blocks: list[Block] = []
    for pair in _shown(comparison):
        values = _values(comparison, pair.key, change)
        groups = {role: values[roles == role] for role in dict.fromkeys(roles.tolist())}
        title = f"Relative change of tensors, {_names(comparison, pair, '→')}"
        blocks.append(distribution(title, "How many tensors changed how much.", groups, change.unit))
    return blocks


def _maps(comparison: ModelComparison, grids: Sequence[Grid]) -> list[Block]:
    pairs = _shown(comparison)
    tasks = [pair for pair in comparison.pairs if pair.total.task is not None][:_MAX_PAIRS]
    figures: list[Figure] = []
    for grid in grids:
        for quantities, own, between in ((_OF_WEIGHTS, pairs, "→"), (_OF_TASKS, tasks, "and")):
            for quantity in quantities:
                spreads = [grid.spread(_values(comparison, pair.key, quantity)) for pair in own]
                known = [spread.mean for spread in spreads if spread.count.any()]
                shades = colours(known, around=quantity.around, falling=quantity.falling, robust=True)
                for pair, spread in zip(own, spreads, strict=True):
                    if spread.count.any():
                        title = f"{quantity.title}, {_names(comparison, pair, between)}"
                        title += f" in {grid.prefix}*" * (len(grids) > 1)
                        figures.append(
                            heat_map(
                                title,
                                quantity.words,
                                grid,
                                spread,
                                quantity.unit,
                                shades,
                                empty="nothing to compare",
                                digits=quantity.digits,
                            )
                        )
        figures += _ranks(comparison, grid)
    blocks: list[Block] = [*figures[:_MAX_MAPS]]
    if len(figures) > _MAX_MAPS:
        blocks.append(Words([f"{len(figures) - _MAX_MAPS} more plots are left out; --json has all numbers."]))
    return blocks


def _ranks(comparison: ModelComparison, grid: Grid) -> Iterator[Figure]:
    """How many directions the changes have, if they were counted."""
    found: dict[int, Floats] = {}
    for position, tensor in enumerate(comparison.tensors):
        for model, spectrum in tensor.spectra.items():
            own = found.setdefault(model, np.full(len(comparison.tensors), np.nan))
            own[position] = spectrum.effective_rank
    spreads = {model: grid.spread(values) for model, values in found.items()}
    shades = colours([spread.mean for spread in spreads.values()])
    reference = comparison.models[comparison.reference].name
    for model, spread in spreads.items():
        if spread.count.any():
            title = f"Effective rank of the change, {reference} → {comparison.models[model].name}"
            words = "In how many directions each matrix changed; a LoRA adapter leaves few."
            yield heat_map(title, words, grid, spread, "rank", shades, empty="no matrix, or no change")


def _row(tensor: TensorDifference, pairs: Sequence[Pair]) -> list[Cell]:
    cells: list[Cell] = [tensor.name]
    for pair in pairs:
        difference = tensor.pairs.get(pair.key)
        cells += [None, None] if difference is None else [q.of(difference) for q in _OF_WEIGHTS]
    return cells


def _head(comparison: ModelComparison, pairs: Sequence[Pair], first: str) -> list[str]:
    units = [(_names(comparison, pair, "→"), quantity.unit) for pair in pairs for quantity in _OF_WEIGHTS]
    return [first, *(f"{name} {unit}" for name, unit in units)]


def _outside(comparison: ModelComparison) -> list[Block]:
    pairs = _shown(comparison)
    rows = [
        _row(tensor, pairs)
        for tensor in comparison.tensors
        if tensor.stack is None and any(pair.key in tensor.pairs for pair in pairs)
    ]
    return [Table(_head(comparison, pairs, "outside the layers"), rows, digits=6)] if rows else []


def _most_changed(comparison: ModelComparison) -> list[Block]:
    pairs = _shown(comparison)

    def change(tensor: TensorDifference) -> float:
        found = [tensor.pairs[pair.key].relative_change for pair in pairs if pair.key in tensor.pairs]
        return max((value for value in found if value is not None), default=0.0)

    tensors = sorted((t for t in comparison.tensors if change(t) > 0), key=change, reverse=True)
    rows = [_row(tensor, pairs) for tensor in tensors[:_MOST_CHANGED]]
    return [Table(_head(comparison, pairs, "most changed"), rows, digits=6)] if rows else []


def _only_some(comparison: ModelComparison) -> list[Block]:
    blocks: list[Block] = []
    for model in comparison.models:
        if model.extra:
            title = f"{len(model.extra):,} tensors that only {model.name} has"
            blocks.append(Table(["tensor"], [[name] for name in model.extra], title=title))
    shapes = {tensor.name: tensor.shapes for tensor in comparison.tensors}
    for pair in comparison.pairs:
        if pair.unfit:
            title = f"{len(pair.unfit):,} tensors of {_names(comparison, pair, 'and')} in different shapes"
            rows = [[name, *(str(list(shapes[name][m] or ())) for m in pair.key)] for name in pair.unfit]
            blocks.append(Table(["tensor", "first", "second"], rows, title=title))
    return blocks
