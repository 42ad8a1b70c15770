"""The page of a plan."""

from __future__ import annotations

from collections import Counter

import numpy as np
from jinja2.filters import do_filesizeformat as size

from meldkit.layout import Layout, Place, all_parts, infer_layout, part_of
from meldkit.plan import Plan
from meldkit.report.html.figures import Curve, bars, curves
from meldkit.report.html.grid import Grid, grids_of
from meldkit.report.html.page import (
    Block,
    Cards,
    Cell,
    Code,
    Figure,
    Items,
    Page,
    Section,
    Table,
    Words,
)
from meldkit.report.html.values import short_names, value_blocks
from meldkit.report.plan import PlanSummary, StageSummary, Treatment

#: Notes of a page; a model of thousands of tensors can earn as many of one kind.
_NOTES = 100
#: More notes than this are folded away.
_FEW = 8


def plan_page(summary: PlanSummary) -> Page:
    """What a merge would do."""
    plan = summary.plan
    return Page(
        f"Plan of {plan.recipe.name or plan.recipe.origin or 'a recipe'}",
        f"{plan.method.name}: {plan.method.summary}",
        [
            Section("Summary", [_output(summary), *warnings_of(plan)]),
            Section("Cost", [_cost(summary)]),
            *plan_sections(summary),
        ],
    )


def plan_sections(summary: PlanSummary) -> list[Section]:
    """What is to be said of a merge before and after it is run."""
    plan = summary.plan
    layout = infer_layout([job.name for job in plan.jobs], plan.config or {})
    grids = grids_of(_numbered(layout.places[job.name]) for job in plan.jobs)
    return [
        Section("Models", [_models(summary)]),
        Section("Output", [_sizes(plan, layout), *_origins(plan, grids)]),
        Section("Parameters", value_blocks(plan, grids)),
        Section("Tensors", [_treatments(summary)]),
        *(Section(f"Stage {name}", _stage(stage)) for name, stage in summary.stages.items()),
        Section("Recipe", [Code(plan.recipe.to_yaml())]),
        Section("Notes", _notes(plan)),
    ]


def _stage(stage: StageSummary) -> list[Block]:
    """What is computed when the output's recipe reads it."""
    plan = stage.plan
    layout = infer_layout([job.name for job in plan.jobs], plan.config or {})
    grids = grids_of(_numbered(layout.places[job.name]) for job in plan.jobs)
    words = f"{plan.method.name}: {plan.method.summary} It is stored nowhere."
    return [Words([words]), _models(stage), *value_blocks(plan, grids), _treatments(stage)]


def warnings_of(plan: Plan) -> list[Block]:
    """What the user should look at, if anything."""
    return [Items(plan.warnings, warning=True)] if plan.warnings else []


def _output(summary: PlanSummary) -> Cards:
    output, plan = summary.output, summary.plan
    merged = sum(job.method is not None for job in plan.jobs)
    facts: list[tuple[str, Cell, str]] = [
        ("method", plan.method.name, ""),
        ("parameters", output.num_parameters, ""),
        ("layers", output.num_layers, ""),
        ("vocabulary", output.vocabulary, "rows of the embedding"),
        ("tensors", output.num_tensors, f"{merged:,} merged, {output.num_tensors - merged:,} copied"),
        ("type", ", ".join(output.dtypes), ""),
        ("size", size(output.num_bytes), f"in {len(output.files):,} file{'s' * (len(output.files) != 1)}"),
    ]
    return Cards([fact for fact in facts if fact[1] is not None])


def _cost(summary: PlanSummary) -> Cards:
    cost = summary.cost
    passes = f"inputs are read up to {cost.passes} times" if cost.passes > 1 else "inputs are read once"
    facts: list[tuple[str, Cell, str]] = [
        ("to read", size(cost.bytes_to_read), passes),
        ("to write", size(cost.bytes_to_write), ""),
        ("peak memory", size(cost.memory.peak), f"with {cost.threads} thread{'s' * (cost.threads != 1)}"),
    ]
    if cost.bytes_to_download:
        facts.insert(0, ("to download", size(cost.bytes_to_download), "not here yet"))
    if cost.seconds is not None:
        facts.append(("time", time_text(cost.seconds), "as fast as this machine was when the plan was made"))
    return Cards(facts)


def time_text(seconds: float) -> str:
    """A duration, with as many digits as an estimate is worth."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def _models(summary: PlanSummary | StageSummary) -> Table:
    rows: list[list[Cell]] = []
    for model in summary.models:
        parts = ["base"] * model.base + ["gives config and tokenizer"] * model.donor
        if model.num_adapters:
            parts.append(f"with {model.num_adapters} adapter{'s' * (model.num_adapters != 1)}")
        types = ", ".join(model.dtypes)
        rows.append([model.label, model.num_tensors, size(model.num_bytes), types, ", ".join(parts)])
    return Table(["model", "tensors", "size", "type", "part in the merge"], rows)


def _numbered(place: Place) -> tuple[str | None, int | None, str]:
    """What a tensor's stack is called, the number of its layer, and the rest of its name."""
    if place.stack is None or place.block is None:
        return None, None, place.leaf
    return place.stack.prefix, place.stack.first + place.block, place.leaf


def _sizes(plan: Plan, layout: Layout) -> Figure:
    parts = all_parts(layout)
    sizes: dict[str, Counter[str]] = {}
    for job in plan.jobs:
        part = part_of(parts, job.name)
        sizes.setdefault(part, Counter())[layout.places[job.name].role] += job.nbytes
    totals = sum(sizes.values(), Counter[str]())
    # The largest first, in every part alike.
    ordered = {part: {role: own[role] for role, _ in totals.most_common()} for part, own in sizes.items()}
    return bars("Size by role", "What the output's bytes are.", ordered, "bytes")


def _origins(plan: Plan, grids: list[Grid]) -> list[Figure]:
    """For recipes that rearrange layers: from which layer of which model each one comes."""
    if all(module.from_models for module in plan.recipe.modules):
        return []
    used = {tensor.checkpoint for job in plan.jobs for tensor in job.inputs}
    layouts = {index: infer_layout(plan.checkpoints[index], plan.checkpoints[index].config) for index in used}
    short = short_names([checkpoint.label for checkpoint in plan.checkpoints])
    figures: list[Figure] = []
    for grid in grids:
        found: dict[int, list[float]] = {}
        for position, column in zip(grid.tensors, grid.columns, strict=True):
            for tensor in plan.jobs[int(position)].inputs:
                place = layouts[tensor.checkpoint].places[tensor.tensor]
                if place.block is not None:
                    own = found.setdefault(tensor.checkpoint, [np.nan] * len(grid.layers))
                    own[column] = _numbered(place)[1] or 0
        if all(own == list(grid.layers) for own in found.values()):
            continue
        lines = [
            Curve(short[index], np.array(found[index]), group) for group, index in enumerate(sorted(found))
        ]
        words = "The layer of each model that every layer of the output is made from."
        title = f"Where the layers of {grid.prefix}* come from"
        figures.append(curves(title, words, grid, lines, "layer of the model"))
    return figures


def _treatments(summary: PlanSummary | StageSummary) -> Table:
    rows = [_treatment(summary.plan, treatment) for treatment in summary.treatments]
    return Table(["tensors", "number", "parameters", "type", "how they are made"], rows)


def _treatment(plan: Plan, treatment: Treatment) -> list[Cell]:
    ways = [plan.method.name] * (treatment.num_merged > 0)
    ways += [f"copied from {label}" for label in treatment.copied_from]
    return [
        ".".join(filter(None, (treatment.stack, treatment.leaf))),
        treatment.num_tensors,
        treatment.num_parameters,
        ", ".join(treatment.dtypes),
        ", ".join(ways),
    ]


def _notes(plan: Plan) -> list[Block]:
    if not plan.notes:
        return []
    shown = list(plan.notes[:_NOTES])
    if len(plan.notes) > _NOTES:
        shown.append(f"and {len(plan.notes) - _NOTES:,} more; meldkit plan -v lists them")
    return [Items(shown, title=f"{len(plan.notes):,} notes" if len(plan.notes) > _FEW else "")]
