"""The page of a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jinja2.filters import do_filesizeformat as size

from meldkit.layout import Layout, Place, all_parts, infer_layout, part_of
from meldkit.plan import Plan
from meldkit.report.html.figures import Curve, bars, curves
from meldkit.report.html.grid import Grid, family
from meldkit.report.html.grid import grids as grids_of
from meldkit.report.html.page import Block, Cards, Cell, Code, Figure, Items, Page, Section, Table
from meldkit.report.html.values import value_blocks

#: Notes of a page; a model of thousands of tensors can earn as many of one kind.
_NOTES = 100


def plan_page(plan: Plan) -> Page:
    """What a merge would do."""
    name = plan.recipe.name or plan.recipe.origin or "recipe"
    return Page(f"Plan of {name}", f"{plan.method.name}: {plan.method.summary}", plan_sections(plan))


def plan_sections(plan: Plan) -> list[Section]:
    """The parts of a plan's page, which a merge's page has as well."""
    layout = infer_layout([job.name for job in plan.jobs], plan.config or {})
    places = [layout.places[job.name] for job in plan.jobs]
    grids, _ = grids_of(places)
    return [
        Section("Summary", [_summary(plan), *_warnings(plan)]),
        Section("Models", [_models(plan)]),
        Section("Output", [_sizes(plan, layout, places), *_origins(plan, grids)]),
        Section("Parameters", value_blocks(plan, grids)),
        Section("Tensors", [_treatments(plan, places)]),
        Section("Recipe", [Code(plan.recipe.to_yaml())]),
        Section("Notes", _notes(plan)),
    ]


def _summary(plan: Plan) -> Cards:
    merged = sum(job.method is not None for job in plan.jobs)
    facts: list[tuple[str, Cell, str]] = [
        ("method", plan.method.name, ""),
        ("parameters", plan.num_parameters, ""),
        ("tensors", len(plan.jobs), f"{merged:,} merged, {len(plan.jobs) - merged:,} copied"),
        ("type", ", ".join(dict.fromkeys(job.dtype for job in plan.jobs)), ""),
        ("output", size(plan.bytes_to_write), f"in {len(plan.files):,} file{'s' * (len(plan.files) != 1)}"),
        ("to read", size(plan.bytes_to_read), "each pass counted"),
    ]
    if plan.num_layers is not None:
        facts.insert(2, ("layers", plan.num_layers, ""))
    return Cards(facts)


def _warnings(plan: Plan) -> list[Block]:
    return [Items(plan.warnings, warning=True)] if plan.warnings else []


def _models(plan: Plan) -> Table:
    rows: list[list[Cell]] = []
    for index, checkpoint in enumerate(plan.checkpoints):
        parts = [
            word
            for word, holds in (
                ("base", checkpoint.label == str(plan.recipe.base_model)),
                ("gives config and tokenizer", index == plan.donor),
            )
            if holds
        ]
        types = ", ".join(dict.fromkeys(info.dtype for info in checkpoint.values()))
        num_bytes = sum(info.nbytes for info in checkpoint.values())
        rows.append([checkpoint.label, len(checkpoint), size(num_bytes), types, ", ".join(parts)])
    return Table(["model", "tensors", "size", "type", "part in the merge"], rows)


def _sizes(plan: Plan, layout: Layout, places: Sequence[Place]) -> Figure:
    parts = all_parts(layout)
    sizes: dict[str, Counter[str]] = {}
    for job, place in zip(plan.jobs, places, strict=True):
        sizes.setdefault(part_of(parts, job.name), Counter())[place.role] += job.nbytes
    totals = sum(sizes.values(), Counter[str]())
    # The largest first, in every part alike.
    ordered = {part: {role: own[role] for role, _ in totals.most_common()} for part, own in sizes.items()}
    return bars("Size by role", "What the output's bytes are.", ordered, "bytes")


def _origins(plan: Plan, grids: Sequence[Grid]) -> list[Figure]:
    """For recipes that rearrange layers: from which layer of which model each one comes."""
    if all(module.from_models for module in plan.recipe.modules):
        return []
    used = {tensor.checkpoint for job in plan.jobs for tensor in job.inputs}
    layouts = {index: infer_layout(plan.checkpoints[index], plan.checkpoints[index].config) for index in used}
    figures: list[Figure] = []
    for grid in grids:
        found: dict[int, list[float]] = {}
        for position, column in zip(grid.tensors, grid.columns, strict=True):
            for tensor in plan.jobs[int(position)].inputs:
                place = layouts[tensor.checkpoint].places[tensor.tensor]
                if place.block is not None:
                    own = found.setdefault(tensor.checkpoint, [np.nan] * len(grid.layers))
                    own[column] = place.block
        if all(own == list(range(len(own))) for own in found.values()):
            continue
        lines = [
            Curve(plan.checkpoints[index].label, np.array(found[index]), group)
            for group, index in enumerate(sorted(found))
        ]
        words = "The layer of each model that every layer of the output is made from."
        title = f"Where the layers of {grid.stack.prefix}* come from"
        figures.append(curves(title, words, grid, lines, "layer of the model"))
    return figures


def _treatments(plan: Plan, places: Sequence[Place]) -> Table:
    """How the tensors of each family are made."""
    rows: dict[tuple[str, str], list[int]] = {}
    for position, (job, place) in enumerate(zip(plan.jobs, places, strict=True)):
        key = ("", job.name) if place.stack is None else (f"{place.stack.prefix}*", family(place.leaf))
        rows.setdefault(key, []).append(position)
    table: list[list[Cell]] = []
    for (stack, leaf), positions in rows.items():
        jobs = [plan.jobs[position] for position in positions]
        donors = [plan.checkpoints[job.inputs[0].checkpoint].label for job in jobs if job.method is None]
        ways = ["merged"] * (len(donors) < len(jobs))
        ways += [f"copied from {label}" for label in dict.fromkeys(donors)]
        shapes = list(dict.fromkeys("×".join(map(str, job.shape)) for job in jobs))
        shape = shapes[0] if len(shapes) == 1 else f"{len(shapes)} shapes"
        name = f"{stack}.{leaf}" if stack else leaf
        table.append([name, len(jobs), shape, sum(job.numel for job in jobs), ", ".join(ways)])
    return Table(["tensors", "number", "shape", "parameters", "how they are made"], table)


def _notes(plan: Plan) -> list[Block]:
    if not plan.notes:
        return []
    shown = list(plan.notes[:_NOTES])
    if len(plan.notes) > _NOTES:
        shown.append(f"and {len(plan.notes) - _NOTES:,} more; meldkit plan -v lists them")
    return [Items(shown, title=f"{len(plan.notes):,} notes" if len(plan.notes) > 8 else "")]
