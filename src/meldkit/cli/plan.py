"""meldkit plan: what a recipe would do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from meldkit.cli.arguments import Recipe
from meldkit.cli.display import count, table, text_of, text_size, text_time, wrapped, wrapped_table

if TYPE_CHECKING:
    from meldkit.methods import Method
    from meldkit.plan import Plan, TensorJob
    from meldkit.report import Cost, InputModel, Output, PlanSummary, StageSummary, Treatment

#: Rows of a part of the table, notes and files shown without -v.
_ROWS = 24
_NOTES = 8


def planning_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What decides a plan, as options of the same names as those of merge."""
    for decorate in (
        click.option("--plugin", multiple=True, help="As for merge."),
        click.option("--transformers-cache", default=None, help="As for merge."),
        click.option("--trust-remote-code/--no-trust-remote-code", default=False, help="As for merge."),
        click.option("--allow-crop/--no-allow-crop", default=False, help="As for merge."),
        click.option("--allow-crimes/--no-allow-crimes", default=False, help="As for merge."),
    ):
        function = decorate(function)
    return function


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("recipe", type=Recipe())
@planning_options
@click.option("--out-shard-size", default="5B", show_default=True, help="As for merge.")
@click.option("--num-threads", "-j", type=int, default=None, help="As for merge.")
@click.option("--cuda/--no-cuda", default=False, help="As for merge.")
@click.option("--device", default=None, help="As for merge.")
@click.option("--multi-gpu/--no-multi-gpu", default=False, help="As for merge.")
@click.option(
    "--probe/--no-probe",
    "probing",
    default=True,
    help="Measure for up to a second how fast this machine reads, computes and writes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with plots to this file.")
@click.option("--verbose", "-v", is_flag=True, help="List every tensor and every note.")
def command(
    recipe: Path, probing: bool, as_json: bool, html: Path | None, verbose: bool, **given: Any
) -> None:
    """Show what RECIPE (a YAML file, or - for standard input) would do, and what it takes.

    It is found out from the headers of the models. To estimate the time, a little of the inputs is read and a
    file without a name is written in the current folder for a moment; --no-probe leaves that out.
    """
    from meldkit.api import devices_of, plan
    from meldkit.options import MergeOptions
    from meldkit.report import summarise_plan, with_time

    options = MergeOptions(**given)
    if html is not None:
        from meldkit.report.html import check_html

        check_html(html)
    devices = devices_of(options)
    chosen = plan(recipe, options, headers_only=True)
    summary = summarise_plan(chosen, threads=options.num_threads, devices=devices)
    if not as_json:
        click.echo(describe(summary, verbose=verbose))
    if probing:
        # Last of all, because torch is needed for it, and importing that takes longer than all the rest.
        sys.stdout.flush()
        summary = with_time(summary)
    if as_json:
        click.echo(json.dumps(summary.data(), ensure_ascii=False))
    elif summary.cost.seconds is not None:
        click.echo("\n".join(["", "time", *_time(summary.cost, chosen.method.name)]))
    if html is not None:
        from meldkit.report.html import plan_page, write_html

        write_html(html, plan_page(summary))


def in_numbers(summary: PlanSummary) -> list[str]:
    """What will be written, and what that takes."""
    return ["output", *_output(summary.output), "", "cost", *_cost(summary.cost)]


def describe(summary: PlanSummary, *, verbose: bool = False) -> str:
    """The plan in words and tables, 80 columns wide where names allow.

    Args:
        summary: what to describe.
        verbose: list every tensor instead of groups, and every note.
    """
    plan = summary.plan
    lines: list[str] = []
    if plan.tool is not None:
        lines += [*wrapped(plan.tool.summary, indent=0, hanging=2), ""]
    for name, stage in summary.stages.items():
        lines += wrapped(f"{name}: {stage.plan.method.name}, computed when it is read", indent=0, hanging=2)
        lines += ["", "models", *wrapped_table(map(_model, stage.models))]
        lines += ["", "tensors", *(_tensors(stage.plan) if verbose else _treatments(stage)), ""]
    if plan.tool is None:
        lines += [*wrapped(f"{plan.method.name}: {plan.method.summary}", indent=0, hanging=2), ""]
    lines += ["models", *wrapped_table(map(_model, summary.models)), "", *in_numbers(summary)]
    lines += ["", "tensors", *(_tensors(plan) if verbose else _treatments(summary))]
    notes = list(plan.notes)
    if not verbose and len(notes) > _NOTES:
        notes[_NOTES:] = [f"… and {len(notes) - _NOTES} more like these; -v lists them"]
    for title, sentences in (("notes", notes), ("warnings", plan.warnings)):
        if sentences:
            lines += ["", title, *(line for sentence in sentences for line in wrapped(sentence))]
    return text_of(lines)


def _model(model: InputModel) -> tuple[str, ...]:
    """A model's row: name, tensors, size, dtypes, part in the merge."""
    roles = [
        word
        for word, holds in (
            ("base", model.base),
            ("gives config and tokenizer", model.donor),
            (count(model.num_adapters, "adapter"), model.num_adapters > 0),
        )
        if holds
    ]
    size = "computed" if model.computed else text_size(model.num_bytes)
    return (model.label, count(model.num_tensors, "tensor"), size, ", ".join(model.dtypes), ", ".join(roles))


def _output(output: Output) -> Iterator[str]:
    parts = [f"{output.num_parameters:,} parameters", count(output.num_tensors, "tensor")]
    if output.num_layers is not None:
        parts.append(count(output.num_layers, "layer"))
    if output.vocabulary is not None:
        parts.append(f"vocabulary of {output.vocabulary:,}")
    yield from wrapped(", ".join([*parts, *output.dtypes]))
    first, *more = (name for name, _ in output.files)
    names = f"{first} to {more[-1].rpartition('/')[2]}" if more else first
    yield from wrapped(f"{text_size(output.num_bytes)} in {count(len(output.files), 'file')}: {names}")


def _cost(cost: Cost) -> list[str]:
    rows: list[tuple[str, str]] = []
    if cost.bytes_to_download:
        rows.append(("download", f"{text_size(cost.bytes_to_download)} of weights that are not here yet"))
    passes = f", in up to {cost.passes} passes" if cost.passes > 1 else ""
    rows.append(("read", text_size(cost.bytes_to_read) + passes))
    rows.append(("write", text_size(cost.bytes_to_write)))
    rows.append(("memory", f"up to {text_size(cost.memory.peak)}, with {count(cost.threads, 'thread')}"))
    room = f"up to {text_size(cost.memory.on_device)} of its memory"
    rows += [(device.name, f"{room}: {device.model}") for device in cost.devices]
    return wrapped_table(rows)


def _time(cost: Cost, method: str) -> list[str]:
    assert cost.probe is not None
    assert cost.seconds is not None
    writing = cost.probe.writing
    measured = [
        f"reads {text_size(cost.probe.reading)}/s",
        f"writes {text_size(writing)}/s" if writing else "what writing takes is not known",
    ]
    if cost.probe.computing:
        measured.append(f"{method} takes {cost.probe.computing * 1e9:.1f} ns per element and pass")
    return wrapped(f"about {text_time(cost.seconds)}; this machine {', '.join(measured)}")


def _tensors(plan: Plan) -> list[str]:
    """One line for each tensor: name, dtype, shape, and where it comes from."""
    return table([(job.name, job.dtype, str(list(job.shape)), _of_job(plan, job)) for job in plan.jobs])


def _of_job(plan: Plan, job: TensorJob) -> str:
    if job.method is None:
        return f"copied from {plan.checkpoints[job.inputs[0].checkpoint].label}"
    values = {name: (value,) for name, value in job.values.items()}
    return f"{plan.method.name} {in_words(values, usual(plan.method))}".rstrip()


def _treatments(summary: PlanSummary | StageSummary) -> Iterator[str]:
    """A row for each leaf of each stack, with the values in which it differs from others."""
    merged = [t for t in summary.treatments if t.num_merged]
    common = {
        name: found.pop()
        for name in (merged[0].values if merged else ())
        if len(found := {t.values[name] for t in merged}) == 1
    }
    everywhere = in_words(common, usual(summary.plan.method))
    if everywhere:
        yield from wrapped(f"{summary.plan.method.name} with {everywhere}")
    for stack, treatments in groupby(summary.treatments, lambda t: t.stack):
        own = list(treatments)
        blocks = max(t.num_blocks for t in own)
        yield f"  {stack}, {count(blocks, 'layer')}" if stack else "  outside the layers"
        rows = [
            (f"{t.num_tensors:>4} ×", t.leaf, _words(summary.plan.method, t, common)) for t in own[:_ROWS]
        ]
        yield from wrapped_table(rows, indent=2)
        if len(own) > _ROWS:
            rest = sum(t.num_tensors for t in own[_ROWS:])
            yield f"  {rest:>4} × under {len(own) - _ROWS} other names; -v lists every tensor"


def _words(method: Method, treatment: Treatment, common: Mapping[str, object]) -> str:
    """What is done with a group of tensors, but for what is done with all."""
    parts: list[str] = []
    if treatment.num_merged:
        own = {name: values for name, values in treatment.values.items() if name not in common}
        parts.append(f"{method.name} {in_words(own, usual(method))}".rstrip())
    if treatment.copied_from:
        all_of_one = len(treatment.copied_from) == 1 and not treatment.num_merged
        sources = [
            label if all_of_one or not blocks else f"{label} ({_runs(blocks)})"
            for label, blocks in treatment.copied_from.items()
        ]
        parts.append(f"copied from {', '.join(sources)}")
    return " or ".join(parts)


def _runs(numbers: Iterable[int]) -> str:
    """Ascending numbers with runs of them taken together: "0-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def usual(method: Method) -> dict[str, object]:
    """Values of parameters that choose between variants of a method: as usual, they go without saying."""
    return {p.name: p.default for p in method.parameters if p.kind is str or p.of_recipe}


def in_words(values: Mapping[str, Sequence[object]], left_out: Mapping[str, object]) -> str:
    """Parameters and their distinct values, such as "weight=[1, 0…0.5], normalize=true"."""
    return ", ".join(
        f"{name}={span(found)}"
        for name, found in values.items()
        if any(value != left_out.get(name) for value in found)
    )


def span(values: Iterable[object]) -> str:
    """One value, or where values differ, the lowest and the highest; tuples entry by entry."""
    distinct = list(dict.fromkeys(values))
    if all(isinstance(value, tuple) for value in distinct):
        rows = [cast("tuple[object, ...]", value) for value in distinct]
        if len({len(row) for row in rows}) == 1:
            return "[" + ", ".join(span(column) for column in zip(*rows, strict=True)) + "]"
    if len(distinct) == 1:
        return text_value(distinct[0])
    if all(isinstance(value, float) for value in distinct):
        numbers = cast("list[float]", distinct)
        return f"{min(numbers):.4g}…{max(numbers):.4g}"
    return "/".join(map(text_value, distinct[:3])) + "/…" * (len(distinct) > 3)


def text_value(value: object) -> str:
    """A value as recipes have it, numbers to four digits."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
