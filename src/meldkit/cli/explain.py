"""meldkit explain: where the values of a recipe's parameters come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meldkit.cli.arguments import Recipe
from meldkit.cli.display import WIDTH, count, text_of, wrapped, wrapped_table
from meldkit.cli.plan import planning_options, span, text_value, usual

if TYPE_CHECKING:
    from meldkit.plan import Decision
    from meldkit.report import Explanation, Grid, Group, TensorExplanation

#: With more tensors than this they are taken together by stack and leaf, unless -v lists them.
_FEW = 4
#: Places of the recipe and names that are listed in one cell.
_PLACES = 3
#: Heights of the cells of a grid and their colours, from the lowest value to the highest, as in matplotlib's
#: viridis in 256 colours; and a cell without a value.
_HEIGHTS = "▁▂▃▄▅▆▇█"
_COLOURS = (54, 60, 61, 67, 73, 72, 114, 227)
_NOTHING = "·"
#: Columns of a grid's names at most.
_NAMES = 30
#: What the recipe calls the scopes of parameters.
_SCOPES = {"source": "model"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("recipe", type=Recipe())
@click.argument("pattern", required=False)
@planning_options
@click.option("--grid", "as_grid", is_flag=True, help="Draw values over the layers instead.")
@click.option("--parameter", help="Which parameter to draw; those that vary if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--verbose", "-v", is_flag=True, help="Every tensor by itself.")
def command(
    recipe: Path,
    pattern: str | None,
    as_grid: bool,
    parameter: str | None,
    as_json: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Show which value each parameter of RECIPE has, and which of its lines says so.

    PATTERN chooses tensors of the output: a name, a part of names, or an expression as in the recipe's
    filters (re:… or glob:…). Without it all are explained, those that are alike together. Reads headers only.
    """
    from meldkit.api import plan
    from meldkit.options import MergeOptions
    from meldkit.report import explain, explain_stages

    planned = plan(recipe, MergeOptions(**given), headers_only=True)
    explanation, stages = explain(planned, pattern), explain_stages(planned, pattern)
    if as_json:
        found = explanation.data()
        if stages:
            found["stages"] = {name: stage.data() for name, stage in stages.items()}
        click.echo(json.dumps(found, ensure_ascii=False))
        return

    def told(each: Explanation) -> str:
        if as_grid or parameter is not None:
            return "\n".join(draw(each, parameter))
        return text_of(describe(each, verbose=verbose))

    parts = {**stages, "": explanation}
    if parameter is not None:
        # It may be one of a stage's method alone.
        owners = {
            n: e for n, e in parts.items() if any(p.name == parameter for p in e.plan.method.parameters)
        }
        parts = owners or {"": explanation}
    for name, each in parts.items():
        if stages:
            method = each.plan.method.name
            click.echo(f"{name}: {method}, computed when it is read" if name else f"the output: {method}")
        click.echo(told(each) + "\n" * bool(name))


def describe(explanation: Explanation, *, verbose: bool = False) -> Iterator[str]:
    """The explanation in words and tables, 80 columns wide where names allow."""
    plan = explanation.plan
    num = len(explanation.decisions)
    if explanation.pattern is not None:
        yield f"'{explanation.pattern}' matches {num:,} of {count(len(plan.jobs), 'tensor')}"
        yield ""
    if verbose or num <= _FEW:
        for place, tensor in enumerate(explanation.tensors()):
            yield from [""] * (place > 0)
            yield tensor.name
            yield from _body(explanation, [tensor])
        return
    # Groups of a stack about which the same is to be said are said it once.
    alike: dict[tuple[str, tuple[str, ...]], list[Group]] = {}
    for group in explanation.groups:
        body = tuple(_body(explanation, explanation.distinct(group.members)))
        alike.setdefault((group.stack, body), []).append(group)
    for place, ((stack, body), groups) in enumerate(alike.items()):
        yield from [""] * (place > 0)
        num = sum(len(group.members) for group in groups)
        yield f"{stack or 'outside the layers'}, {count(num, 'tensor')}"
        yield from wrapped(", ".join(group.leaf for group in groups), hanging=2)
        yield from body


def _body(explanation: Explanation, tensors: Sequence[TensorExplanation]) -> list[str]:
    """What is done with tensors, and a row for each parameter and model."""
    plan = explanation.plan
    merged = [t for t in tensors if t.method is not None]
    lines: list[str] = []
    if merged:
        bases = dict.fromkeys(t.base[0] for t in merged if t.base is not None)
        words = [plan.method.name, f"t = {span(t.t for t in merged)}"]
        if bases:
            words.append(f"differences from {_listed(bases)}")
        lines += wrapped(", ".join(words))
    for t in dict.fromkeys((t.models[0].label, t.why_copied) for t in tensors if t.method is None):
        lines += wrapped(f"copied from {t[0]}: {t[1]}")
    for note in dict.fromkeys(note for t in tensors if t.method is not None for note in t.notes):
        lines += wrapped(f"note: {note}")
    rows = list(_rows(explanation, tensors))
    return lines + (wrapped_table(rows) if rows else [])


def _rows(explanation: Explanation, tensors: Sequence[TensorExplanation]) -> Iterator[tuple[str, ...]]:
    """(parameter, model, value, places)."""
    left_out = usual(explanation.plan.method)
    for parameter in explanation.plan.method.parameters:
        name = parameter.name
        whole = [t.values[name] for t in tensors if name in t.values]
        if whole and (not parameter.of_recipe or any(d.value != left_out[name] for d in whole)):
            yield (name, "", span(d.value for d in whole), _places(whole))
        columns: dict[tuple[int, str], list[Decision]] = {}
        for tensor in tensors:
            for place, model in enumerate(tensor.models):
                if name in model.values:
                    columns.setdefault((place, model.label), []).append(model.values[name])
        for index, ((_, label), found) in enumerate(columns.items()):
            yield ("" if index else name, label, span(d.value for d in found), _places(found))


def _places(found: Iterable[Decision]) -> str:
    return _listed(dict.fromkeys(map(_place, found)), "; ")


def _place(decision: Decision) -> str:
    scope = _SCOPES.get(decision.scope, decision.scope)
    chosen = [f"filter {decision.filter}"] if decision.filter is not None else []
    return ", ".join([*([decision.where] if decision.where else []), scope, *chosen])


def _listed(words: Iterable[str], separator: str = ", ") -> str:
    listed = list(words)
    return separator.join(listed[:_PLACES] + ["…"] * (len(listed) > _PLACES))


def draw(explanation: Explanation, parameter: str | None = None) -> Iterator[str]:
    """Parameters over the layers: a row for each leaf, a cell for each layer, higher for larger values.

    Raises:
        RecipeError: the method has no such parameter.
    """
    from meldkit.report import grids, varying

    chosen = [parameter] if parameter is not None else varying(explanation.plan)
    drawn = [grid for name in chosen for grid in grids(explanation, name)]
    if not drawn:
        names = [p.name for p in explanation.plan.method.parameters]
        if any(grids(explanation, name) for name in names):
            yield f"no parameter varies over the layers; --parameter draws one of {', '.join(names)}"
        else:
            yield "nothing to draw: none of these tensors is merged in a layer"
        return
    for place, grid in enumerate(drawn):
        yield from [""] * (place > 0)
        of_all = [g for g in drawn if g.parameter == grid.parameter]
        yield from _draw(grid, _scale(of_all))


def _scale(drawn: Sequence[Grid]) -> list[Any]:
    """What the heights stand for: the lowest and the highest number, or words as they come."""
    values = [v for grid in drawn for row in grid.rows.values() for v in row if v is not None]
    if all(isinstance(value, float) for value in values):
        return [min(values), max(values)]
    return list(dict.fromkeys(values))


def _draw(grid: Grid, scale: Sequence[Any]) -> Iterator[str]:
    model = f" of {grid.model}" if grid.model is not None else ""
    yield f"{grid.parameter}{model}, {grid.stack}"
    names = {leaf: _short(leaf) for leaf in grid.rows}
    width = max(map(len, names.values()))
    spans = {leaf: span(v for v in row if v is not None) for leaf, row in grid.rows.items()}
    room = WIDTH - width - max(map(len, spans.values())) - 6
    for first in range(0, grid.num_blocks, room):
        last = min(first + room, grid.num_blocks)
        yield f"  {'':{width}}  {_ruler(first, last)}"
        for leaf, row in grid.rows.items():
            cells = "".join(_cell(value, scale) for value in row[first:last])
            yield f"  {names[leaf]:{width}}  {cells}  {spans[leaf]}"
    low, high = text_value(scale[0]), text_value(scale[-1])
    legend = " ".join(_cell(v, scale) + f" {text_value(v)}" for v in scale) if len(scale) < 5 else ""
    if all(isinstance(value, float) for value in scale) and scale[0] != scale[-1]:
        ramp = "".join(click.style(h, fg=c) for h, c in zip(_HEIGHTS, _COLOURS, strict=True))
        legend = f"{low} {ramp} {high}"
    yield f"  {'':{width}}  {legend}"


def _short(leaf: str) -> str:
    """A leaf's name without what they all end in, cut in the middle if it is long."""
    name = leaf.removesuffix(".weight")
    half = _NAMES // 2
    return name if len(name) <= _NAMES else f"{name[: half - 1]}…{name[-half:]}"


def _ruler(first: int, last: int) -> str:
    """The numbers of every tenth layer, each above its cell."""
    line = ""
    for layer in range(first, last):
        if (layer == first or layer % 10 == 0) and len(line) <= layer - first:
            line = line.ljust(layer - first) + f"{layer} "
    return line[: last - first + 3].rstrip()


def _cell(value: Any, scale: Sequence[Any]) -> str:
    if value is None:
        return _NOTHING
    if isinstance(value, float):
        low, high = scale[0], scale[-1]
        share = (value - low) / (high - low) if high > low else 0.5
    else:
        share = scale.index(value) / max(1, len(scale) - 1)
    level = min(int(share * len(_HEIGHTS)), len(_HEIGHTS) - 1)
    return click.style(_HEIGHTS[level], fg=_COLOURS[level])
