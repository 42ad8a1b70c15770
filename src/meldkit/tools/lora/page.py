"""The page of an adapter that was extracted: what is left out of each change, by layer and over all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from meldkit.layout import infer_layout
from meldkit.report.html.figures import colours, distribution, heat_map
from meldkit.report.html.grid import grids_of
from meldkit.report.html.page import Block, Items, Page, Section, Table
from meldkit.tools.lora.errors import ModuleError
from meldkit.tools.lora.extract import PlannedAdapter

#: Maps of one page: stacks of layers.
_MAPS = 4


def adapter_page(planned: PlannedAdapter, errors: Sequence[ModuleError]) -> Page:
    """How far an adapter is from the fine-tune that it was made of.

    Args:
        planned: what was written.
        errors: of its modules.
    """
    plan, model = planned.plan, planned.models[1]
    assert plan.tool is not None
    known = infer_layout(model, model.config).places
    places = [known[e.name if e.name in known else f"{e.name}.weight"] for e in errors]
    grids = grids_of(
        (p.stack.prefix, p.stack.first + p.block, p.leaf)
        if p.stack is not None and p.block is not None
        else (None, None, p.leaf)
        for p in places
    )
    maps: list[Block] = []
    for title, words, values, unit in (
        (
            "Left out of each change",
            "|change − B A| / |change|: what the rank does not reach.",
            [100 * error.error for error in errors],
            "left out, %",
        ),
        ("Ranks", "Singular values that are kept.", [error.rank for error in errors], "rank"),
    ):
        numbers = np.array(values, np.float64)
        spreads = [(grid, grid.spread(numbers)) for grid in grids[:_MAPS]]
        shades = colours([spread.mean for _, spread in spreads])
        maps += [
            heat_map(title, words, grid, spread, unit, shades)
            for grid, spread in spreads
            if spread.varied or unit == "left out, %"
        ]
    kinds: dict[str, list[float]] = {}
    for error, place in zip(errors, places, strict=True):
        kinds.setdefault(place.leaf.removesuffix(".weight"), []).append(100 * error.error)
    worst = sorted(errors, key=lambda error: -error.error)
    table = Table(
        ["module", "rank", "change", "left out, %"],
        [[error.name, error.rank, error.norm, 100 * error.error] for error in worst],
        title="All modules, the worst first",
    )
    spread = distribution(
        "How much is left out of how many",
        "",
        {kind: np.array(values) for kind, values in kinds.items()},
        "left out, %",
    )
    stored: list[Block] = [Items(planned.saved, title="Stored as they are")] if planned.saved else []
    return Page(
        "Adapter",
        plan.tool.summary,
        [Section("Layers", maps), Section("Modules", [spread, table, *stored])],
    )
