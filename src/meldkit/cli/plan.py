"""meldkit plan: what a recipe would do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from meldkit.cli.arguments import Recipe
from meldkit.cli.display import count, table, text_size

if TYPE_CHECKING:
    from meldkit.plan import Plan, TensorJob

#: With more sets of values than this they are taken together by families of tensors.
_FEW = 6
#: Lines and notes shown without -v.
_GROUPS = 12
_NOTES = 8
#: The number of a layer or an expert in a tensor's name.
_LAYER = re.compile(r"\.\d+\.")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("recipe", type=Recipe())
@click.option("--allow-crimes/--no-allow-crimes", default=False, help="As for merge.")
@click.option("--allow-crop/--no-allow-crop", default=False, help="As for merge.")
@click.option("--trust-remote-code/--no-trust-remote-code", default=False, help="As for merge.")
@click.option("--out-shard-size", default="5B", show_default=True, help="As for merge.")
@click.option("--transformers-cache", default=None, help="As for merge.")
@click.option("--plugin", multiple=True, help="As for merge.")
@click.option("--verbose", "-v", is_flag=True, help="List every tensor and every note.")
def command(
    recipe: Path,
    allow_crimes: bool,
    allow_crop: bool,
    trust_remote_code: bool,
    out_shard_size: str,
    transformers_cache: str | None,
    plugin: tuple[str, ...],
    verbose: bool,
) -> None:
    """Show what RECIPE (a YAML file, or - for standard input) would do.

    It is found out from the headers of the models; no weight is read and nothing written.
    """
    from meldkit.api import plan
    from meldkit.options import MergeOptions

    options = MergeOptions(
        allow_crimes=allow_crimes,
        allow_crop=allow_crop,
        trust_remote_code=trust_remote_code,
        out_shard_size=out_shard_size,
        transformers_cache=transformers_cache,
        plugin=plugin,
    )
    click.echo(describe(plan(recipe, options, headers_only=True), verbose=verbose))


def describe(plan: Plan, *, verbose: bool = False) -> str:
    """The plan in words and tables, 80 columns wide where names allow.

    Args:
        plan: what to describe.
        verbose: list every tensor instead of groups, and every note.
    """
    lines = [f"{plan.method.name}: {plan.method.summary}"]
    lines += ["", "models", *table([_model(plan, index) for index in range(len(plan.checkpoints))])]
    size = f"{text_size(plan.bytes_to_write)} in {count(len(plan.files), 'file')}"
    lines += ["", "output", f"  {_content(plan)}", f"  {size}; {text_size(plan.bytes_to_read)} to read"]
    lines += ["", "tensors", *(_tensors(plan) if verbose else _groups(plan))]
    notes = list(plan.notes)
    if not verbose and len(notes) > _NOTES:
        notes[_NOTES:] = [f"… and {len(notes) - _NOTES} more like these; -v lists them"]
    for title, sentences in (("notes", notes), ("warnings", plan.warnings)):
        if sentences:
            lines += ["", title, *(f"  {sentence}" for sentence in sentences)]
    return "\n".join(lines)


def _model(plan: Plan, index: int) -> tuple[str, ...]:
    """A model's row: name, tensors, size, dtypes, part in the merge."""
    checkpoint = plan.checkpoints[index]
    roles = [
        word
        for word, holds in (
            ("base", checkpoint.label == str(plan.recipe.base_model)),
            ("gives config and tokenizer", index == plan.donor),
            (count(len(checkpoint.adapters), "adapter"), bool(checkpoint.adapters)),
        )
        if holds
    ]
    return (
        checkpoint.label,
        count(len(checkpoint), "tensor"),
        text_size(sum(info.nbytes for info in checkpoint.values())),
        ", ".join(dict.fromkeys(info.dtype for info in checkpoint.values())),
        ", ".join(roles),
    )


def _content(plan: Plan) -> str:
    parts = [f"{plan.num_parameters:,} parameters", count(len(plan.jobs), "tensor")]
    if plan.num_layers is not None:
        parts.append(count(plan.num_layers, "layer"))
    return ", ".join([*parts, *dict.fromkeys(job.dtype for job in plan.jobs)])


def _tensors(plan: Plan) -> list[str]:
    """One line for each tensor: name, dtype, shape, and where it comes from."""
    return table([(job.name, job.dtype, str(list(job.shape)), _treatment(plan, [job])) for job in plan.jobs])


def _groups(plan: Plan) -> list[str]:
    """Tensors that are treated alike, one line each: how many, how, and with which values."""
    alike: dict[str, list[TensorJob]] = {}
    families: dict[str, list[TensorJob]] = {}
    for job in plan.jobs:
        alike.setdefault(_treatment(plan, [job]), []).append(job)
        families.setdefault(_LAYER.sub(".*.", job.name), []).append(job)
    if len(alike) > _FEW:
        # Values that change from layer to layer: the same tensor of all layers is one family.
        alike = {}
        for jobs in families.values():
            alike.setdefault(_treatment(plan, jobs), []).extend(jobs)
    lines: list[str] = []
    for treatment, jobs in list(alike.items())[:_GROUPS]:
        names = dict.fromkeys(_LAYER.sub(".*.", job.name) for job in jobs)
        first = next(iter(names)) if len(jobs) > 1 else jobs[0].name
        lines.append(f"  {len(jobs):>4} × {treatment}  ({first}{', …' * (len(names) > 1)})")
    if len(alike) > _GROUPS:
        rest = sum(len(jobs) for jobs in list(alike.values())[_GROUPS:])
        lines.append(f"  {rest:>4} × with {len(alike) - _GROUPS} other sets of values; -v lists every tensor")
    return lines


def _treatment(plan: Plan, jobs: Sequence[TensorJob]) -> str:
    """What is done with tensors, in words; values that differ between them as the range they span."""
    copies = [plan.checkpoints[job.inputs[0].checkpoint].label for job in jobs if job.method is None]
    merged = [job for job in jobs if job.method is not None]
    parts: list[str] = []
    if merged:
        # Words choose between variants; those that are as usual go without saying.
        usual = {p.name: p.default for p in plan.method.parameters if p.kind is str or p.of_recipe}
        values = [
            f"{name}={_span([job.values[name] for job in merged])}"
            for name in dict.fromkeys(name for job in merged for name in job.values)
            if any(job.values[name] != usual.get(name) for job in merged)
        ]
        parts.append(f"{plan.method.name} {', '.join(values)}".rstrip())
    if copies:
        parts.append(f"copied from {', '.join(dict.fromkeys(copies))}")
    return " or ".join(parts)


def _span(values: Sequence[object]) -> str:
    """One value, or where values differ, the lowest and the highest; tuples entry by entry."""
    if all(isinstance(value, tuple) for value in values):
        rows = [cast("tuple[object, ...]", value) for value in values]
        if len({len(row) for row in rows}) == 1:
            return "[" + ", ".join(_span(column) for column in zip(*rows, strict=True)) + "]"
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return _text(distinct[0])
    if all(isinstance(value, float) for value in distinct):
        numbers = cast("list[float]", distinct)
        return f"{min(numbers):.4g}…{max(numbers):.4g}"
    return "/".join(map(_text, distinct[:3]))


def _text(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
