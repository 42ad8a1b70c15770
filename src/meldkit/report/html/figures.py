"""The kinds of plots: heat maps of layers and leaves, curves over depth, distributions, pairwise matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from meldkit.report.html.grid import Floats, Grid, Spread
from meldkit.report.html.page import Cell, Figure, Table, plotly_text

#: Sides of a heat map's cell and of what stands around it, in CSS pixels.
_ROW = 22
_AROUND = 110
#: Up to so many layers every one has a tick, every point of a curve a marker, and a matrix's cell its number.
_FEW = 12
_MARKED = 40
_BINS = 40
#: Share of a map's values at either end that may lie outside of its colours.
_RARE = 0.02
#: Above the plot, where it takes nothing of its width.
_COLOUR_BAR = {
    "orientation": "h",
    "y": 1,
    "yanchor": "bottom",
    "ypad": 4,
    "len": 260,
    "lenmode": "pixels",
    "thickness": 9,
    "outlinewidth": 0,
    "nticks": 5,
}
#: Below the plot, where it takes nothing of its width.
_LEGEND = {
    "orientation": "h",
    "x": 0,
    "y": 0,
    "yref": "container",
    "yanchor": "bottom",
    "traceorder": "normal",
}


@dataclass(frozen=True, slots=True)
class Colours:
    """How numbers become colours; maps that are to be compared share one.

    Attributes:
        scale: "sequential", or "diverging" around the middle of low and high.
        low, high: values of the first and the last colour.
        falling: whether the colours run the other way.
    """

    scale: str
    low: float
    high: float
    falling: bool = False


def colours(
    values: Sequence[Floats], *, around: float | None = None, falling: bool = False, robust: bool = False
) -> Colours:
    """Colours that span all values, or nearly all.

    Args:
        values: of all maps that are to be compared.
        around: the middle of a scale that reaches equally far to both sides; None for one that only rises.
        falling: turn the colours round.
        robust: give the last colour to a few values far from all others, which else would leave the others
            no colours to be told apart by.
    """
    known = np.concatenate([each[~np.isnan(each)] for each in values] or [np.zeros(0)])
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if robust and known.size:
        usual = np.quantile(known, (_RARE, 1 - _RARE))
        span = float(usual[1] - usual[0])
        low, high = max(low, float(usual[0]) - span / 4), min(high, float(usual[1]) + span / 4)
    if around is not None:
        reach = max(abs(low - around), abs(high - around)) or 1.0
        return Colours("diverging", around - reach, around + reach, falling)
    return Colours("sequential", low, high if high > low else low + 1.0, falling)


def heat_map(
    title: str,
    words: str,
    grid: Grid,
    spread: Spread,
    quantity: str,
    shades: Colours,
    *,
    empty: str = "",
    digits: int = 4,
) -> Figure:
    """One number per layer and leaf.

    Args:
        title, words: of the figure.
        grid: the tensors.
        spread: their numbers.
        quantity: what the numbers are, with their unit; stands at the colour bar.
        shades: which colours mean what.
        empty: what a cell without a number means.
        digits: of the numbers.
    """
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": list(grid.layers),
        "y": [plotly_text(leaf) for leaf in grid.leaves],
        "z": _matrix(spread.mean),
        "zmin": _short(shades.low),
        "zmax": _short(shades.high),
        "reversescale": shades.falling,
        "xgap": 1 if len(grid.layers) <= _MARKED else 0,
        "ygap": 1,
        "hoverongaps": False,
        "meta": [plotly_text(grid.prefix)],
        # Names stand in `meta` and the axes: in the template itself a name could be read as part of it.
        "hovertemplate": f"%{{meta[0]}}%{{x}}.%{{y}}<br>%{{z:.{digits}~g}}<extra></extra>",
        "colorbar": _COLOUR_BAR
        | {"x": 1, "xanchor": "right", "title": {"text": plotly_text(quantity), "side": "top"}},
    }
    if (spread.count > 1).any():
        trace["customdata"] = [
            [[int(n), _short(low), _short(high)] for n, low, high in zip(*rows, strict=True)]
            for rows in zip(spread.count, spread.low, spread.high, strict=True)
        ]
        trace["hovertemplate"] = (
            f"%{{meta[0]}}%{{x}}.%{{y}}<br>%{{z:.{digits}~g}}, the mean of %{{customdata[0]}} tensors<br>"
            f"%{{customdata[1]:.{digits}~g}} to %{{customdata[2]:.{digits}~g}}<extra></extra>"
        )
    if np.nanmax(spread.mean) > shades.high or np.nanmin(spread.mean) < shades.low:
        words = f"{words} Colours reach from {shades.low:.{digits}g} to {shades.high:.{digits}g}.".strip()
    layout = {
        "margin": {"l": 8, "r": 8, "t": 44, "b": 44},
        "xaxis": _layer_axis(grid) | {"showgrid": False, "title": {"text": ""}, "automargin": False},
        # On a narrow screen the axis would put its title among its numbers.
        "annotations": [
            {
                "text": "layer",
                "showarrow": False,
                "x": 0.5,
                "xref": "paper",
                "y": 0,
                "yref": "paper",
                "yanchor": "top",
                "yshift": -20,
            }
        ],
        "yaxis": {
            "autorange": "reversed",
            "automargin": True,
            "ticklabelstandoff": 4,
            "showgrid": False,
            "tickmode": "array",
            "tickvals": list(range(len(grid.leaves))),
            "ticktext": [plotly_text(label) for label in grid.labels],
            "fixedrange": True,
        },
    }
    rows = [
        [layer, *(_cell(value) for value in spread.mean[:, column])]
        for column, layer in enumerate(grid.layers)
    ]
    if empty and (spread.count == 0).any():
        words = f"{words} Empty: {empty}.".strip()
    height = _ROW * len(grid.leaves) + _AROUND
    table = Table(["layer", *grid.labels], rows, digits=digits)
    return Figure(title, words, [trace], layout, [shades.scale], table, height)


@dataclass(frozen=True, slots=True)
class Curve:
    """A line over the layers of a stack; NaN where there is nothing. Lines of one `group` look related."""

    name: str
    values: Floats
    group: int = 0


def curves(title: str, words: str, grid: Grid, lines: Sequence[Curve], quantity: str) -> Figure:
    """Lines over depth, such as a recipe's gradients."""
    dashes = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(grid.layers) <= _MARKED else "lines",
            "name": plotly_text(line.name),
            "x": list(grid.layers),
            "y": _row(line.values),
            "line": {"dash": dashes[line.group % len(dashes)], "width": 2},
            "marker": {"size": 5},
            "hovertemplate": "layer %{x}: %{y:.4~g}<extra>%{fullData.name}</extra>",
        }
        for line in lines
    ]
    layout = {
        "margin": {"l": 8, "r": 12, "t": 12, "b": 40},
        "xaxis": _layer_axis(grid),
        "yaxis": {"automargin": True, "title": {"text": plotly_text(quantity)}, "fixedrange": True},
        "legend": _LEGEND,
        "showlegend": len(traces) > 1 or bool(lines and lines[0].name),
        "hovermode": "closest",
    }
    rows = [
        [layer, *(_cell(line.values[index]) for line in lines)] for index, layer in enumerate(grid.layers)
    ]
    table = Table(["layer", *(line.name for line in lines)], rows)
    return Figure(title, words, traces, layout, [""] * len(traces), table, 300 + 20 * len(lines))


def distribution(title: str, words: str, groups: Mapping[str, Floats], quantity: str) -> Figure:
    """How many tensors have which value, groups on top of each other.

    Args:
        title, words: of the figure.
        groups: values by group; NaN are left out.
        quantity: what is counted, with its unit; none is negative. What spans more than two decades is binned
            by its logarithm, and zeros are only told.
    """
    known = {name: values[~np.isnan(values)] for name, values in groups.items()}
    known = {name: values for name, values in known.items() if values.size}
    every = np.concatenate([*known.values(), np.zeros(0)])
    positive = every[every > 0]
    decades = positive.size > 0 and positive.max() > 100 * positive.min()
    zeros = {name: int((values == 0).sum()) for name, values in known.items()}
    every = np.log10(positive) if decades else positive
    scaled = {name: values[values > 0] for name, values in known.items()}
    if decades:
        scaled = {name: np.log10(values) for name, values in scaled.items()}
    edges = np.histogram_bin_edges(every, _BINS) if every.size else np.array([0.0, 1.0])
    middles, width = (edges[:-1] + edges[1:]) / 2, float(edges[1] - edges[0])
    ends = 10.0**edges if decades else edges
    counts = {name: np.histogram(values, edges)[0] for name, values in scaled.items()}
    spans = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(ends)]
    traces: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": plotly_text(name),
            "x": _row(middles),
            "y": [int(n) for n in number],
            "width": _short(width),
            "customdata": spans,
            "hovertemplate": "%{customdata}: %{y} tensors<extra>%{fullData.name}</extra>",
        }
        for name, number in counts.items()
        if number.any()
    ]
    axis: dict[str, Any] = {"title": {"text": plotly_text(quantity), "standoff": 6}, "automargin": True}
    if decades:
        powers = range(math.floor(edges[0]), math.ceil(edges[-1]) + 1)
        axis |= {"tickmode": "array", "tickvals": list(powers), "ticktext": [f"{10.0**p:g}" for p in powers]}
    layout = {
        "barmode": "stack",
        "bargap": 0,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 40},
        "xaxis": axis,
        "yaxis": {"title": {"text": "tensors"}, "automargin": True, "fixedrange": True},
        "legend": _LEGEND,
        "showlegend": len(traces) > 1,
    }
    rows: list[list[Cell]] = [
        [span, *(int(number[index]) for number in counts.values())] for index, span in enumerate(spans)
    ]
    if any(zeros.values()):
        rows.insert(0, ["0", *(zeros[name] for name in counts)])
        words = f"{words} {sum(zeros.values()):,} did not change and are not drawn.".strip()
    return Figure(title, words, traces, layout, [""] * len(traces), Table([quantity, *counts], rows), 340)


def matrix(
    title: str,
    words: str,
    short: Sequence[str],
    names: Sequence[str],
    values: Floats,
    quantity: str,
    shades: Colours,
    *,
    digits: int = 4,
) -> Figure:
    """One number for each pair of models.

    Args:
        title, words: of the figure.
        short: what the axes call the models.
        names: what else they are called.
        values: [models, models], NaN where there is nothing.
        quantity: what the numbers are, with their unit.
        shades: which colours mean what.
        digits: of the numbers.
    """
    places = [plotly_text(name) for name in short]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": places,
        "y": places,
        "z": _matrix(values),
        "zmin": _short(shades.low),
        "zmax": _short(shades.high),
        "reversescale": shades.falling,
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "customdata": [[[plotly_text(one), plotly_text(other)] for other in names] for one in names],
        "hovertemplate": "%{customdata[0]}<br>%{customdata[1]}<br>%{z:.6~g}<extra></extra>",
        "colorbar": _COLOUR_BAR
        | {"x": 0, "xanchor": "left", "title": {"text": plotly_text(quantity), "side": "top"}},
    }
    if len(names) <= _FEW:
        trace["texttemplate"] = f"%{{z:.{digits}~g}}"
    axis = {"type": "category", "showgrid": False, "fixedrange": True}
    layout = {
        "margin": {"l": 8, "r": 8, "t": 44, "b": 30},
        "xaxis": axis | {"automargin": True, "constrain": "domain", "constraintoward": "left"},
        "yaxis": axis
        | {"automargin": True, "autorange": "reversed", "scaleanchor": "x", "constrain": "domain"},
    }
    rows = [[name, *map(_cell, values[place])] for place, name in enumerate(names)]
    height = min(600, 150 + 48 * len(names))
    return Figure(title, words, [trace], layout, [shades.scale], Table(["", *short], rows, digits=6), height)


def bars(title: str, words: str, parts: Mapping[str, Mapping[str, float]], quantity: str) -> Figure:
    """Amounts by kind, parts end to end: {part: {kind: amount}}."""
    kinds = list(dict.fromkeys(kind for amounts in parts.values() for kind in amounts))
    traces: list[dict[str, Any]] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plotly_text(part),
            "y": [plotly_text(kind) for kind in kinds],
            "x": [_short(amounts.get(kind, 0)) for kind in kinds],
            "hovertemplate": "%{y}: %{x:.4~s}<extra>%{fullData.name}</extra>",
        }
        for part, amounts in parts.items()
    ]
    layout = {
        "barmode": "stack",
        "bargap": 0.3,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 40},
        "xaxis": {
            "title": {"text": plotly_text(quantity), "standoff": 6},
            "automargin": True,
            "fixedrange": True,
            "tickformat": "~s",
        },
        "yaxis": {"automargin": True, "autorange": "reversed", "ticklabelstandoff": 4, "fixedrange": True},
        "legend": _LEGEND,
        "showlegend": len(traces) > 1,
    }
    rows = [[kind, *(amounts.get(kind) for amounts in parts.values())] for kind in kinds]
    height = 90 + 28 * len(kinds) + 24 * (len(traces) > 1)
    return Figure(title, words, traces, layout, [""] * len(traces), Table(["", *parts], rows), height)


def _layer_axis(grid: Grid) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": "layer", "standoff": 6}, "zeroline": False, "automargin": True}
    if len(grid.layers) <= _FEW:
        axis["dtick"] = 1
    return axis


def _short(number: float) -> float | int | None:
    """Six digits are more than a plot shows."""
    if math.isnan(number):
        return None
    return int(number) if float(number).is_integer() and abs(number) < 1e15 else float(f"{number:.6g}")


def _row(values: Floats) -> list[float | int | None]:
    return [_short(float(value)) for value in values]


def _matrix(values: Floats) -> list[list[float | int | None]]:
    return [_row(row) for row in values]


def _cell(value: float) -> Cell:
    return None if math.isnan(value) else float(value)
