"""The page of a mixture of experts: where prompts go, as a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meldkit.report.html.page import Block, Figure, Items, Page, Section, Table, plotly_text
from meldkit.tools.moe.make import PlannedMixture, Routing

#: Sides of a picture's cell and of what stands around it, in CSS pixels; up to so many layers have numbers.
_ROW, _AROUND, _NUMBERED = 22, 90, 40


def mixture_page(planned: PlannedMixture) -> Page:
    """What a mixture is made of, and where prompts go."""
    plan, routings = planned.plan, planned.routings
    assert plan.tool is not None
    experts = [str(number) for number in range(len(planned.experts))]
    blocks: list[Block] = []
    if routings:
        shares = Table(
            ["prompt", "of expert", *experts],
            [[r.prompt, r.expert, *(f"{100 * share:.0f} %" for share in r.shares)] for r in routings],
            title="In what share of the layers each expert is among those that a prompt takes",
        )
        blocks = [_first_choices(routings, planned.layers), shares]
    made_of = Table(["expert", "made of"], list(enumerate(planned.experts)))
    warnings: list[Block] = [Items(plan.warnings, warning=True)] if plan.warnings else []
    return Page(
        "Mixture of experts",
        plan.tool.summary,
        [Section("Experts", [made_of, *warnings]), Section("Where prompts go", blocks)],
    )


def _first_choices(routings: Sequence[Routing], numbers: Sequence[int]) -> Figure:
    """Which expert each layer likes best, one row per prompt."""
    # Prompts may be the same; rows must not.
    labels = [f"{place}: {routing.prompt}" for place, routing in enumerate(routings)]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "y": [plotly_text(label) for label in labels],
        "x": list(numbers),
        "z": [list(routing.first) for routing in routings],
        "xgap": 1,
        "ygap": 1,
        "showscale": False,
        "hovertemplate": "layer %{x}: expert %{z}<extra>%{y}</extra>",
    }
    if len(numbers) <= _NUMBERED:
        trace["texttemplate"] = "%{z}"
    axis = {"showgrid": False, "automargin": True}
    layout = {
        "margin": {"l": 8, "r": 8, "t": 12, "b": 40},
        "xaxis": {**axis, "title": {"text": "layer", "standoff": 6}},
        "yaxis": {**axis, "autorange": "reversed", "fixedrange": True},
    }
    rows = [[routing.prompt, routing.expert, *routing.first] for routing in routings]
    return Figure(
        "The expert that a layer likes best",
        "One row per prompt. Where experts do what they are for, its own one stands in most layers.",
        [trace],
        layout,
        ["sequential"],
        Table(["prompt", "of expert", *map(str, numbers)], rows),
        _ROW * len(routings) + _AROUND,
    )
