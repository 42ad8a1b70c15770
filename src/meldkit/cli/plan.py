"""meldkit plan: what a recipe would do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from meldkit.cli.display import text_size

if TYPE_CHECKING:
    from meldkit.plan import Plan, TensorJob


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--allow-crimes/--no-allow-crimes", default=False, help="As for merge.")
@click.option("--out-shard-size", default="5B", show_default=True, help="As for merge.")
@click.option("--transformers-cache", default=None, help="As for merge.")
def command(recipe: Path, allow_crimes: bool, out_shard_size: str, transformers_cache: str | None) -> None:
    """Show what RECIPE would do, from the headers of its models; no weight is read and nothing written."""
    from meldkit.api import plan
    from meldkit.options import MergeOptions

    options = MergeOptions(
        allow_crimes=allow_crimes, out_shard_size=out_shard_size, transformers_cache=transformers_cache
    )
    click.echo(describe(plan(recipe, options)))


def describe(plan: Plan) -> str:
    """The plan in words and tables, 80 columns wide where names allow."""
    lines = [f"{plan.method.name}: {plan.method.summary}", "", "models"]
    for index, checkpoint in enumerate(plan.checkpoints):
        roles = [
            word
            for word, holds in (
                ("base", checkpoint.label == str(plan.recipe.base_model)),
                ("gives config and tokenizer", index == plan.donor),
                (f"{len(checkpoint.adapters)} adapter", bool(checkpoint.adapters)),
            )
            if holds
        ]
        size = text_size(sum(info.nbytes for info in checkpoint.values()))
        lines.append(f"  {checkpoint.label}  {len(checkpoint)} tensors, {size}  {', '.join(roles)}".rstrip())
    depth = (plan.config or {}).get("num_hidden_layers")
    dtypes = Counter(job.dtype for job in plan.jobs)
    lines += [
        "",
        "output",
        f"  {plan.num_parameters:,} parameters in {len(plan.jobs)} tensors"
        + (f", {depth} layers" if depth is not None else "")
        + f", {', '.join(f'{dtype}' for dtype in dtypes)}",
        f"  {text_size(plan.bytes_to_write)} in {len(plan.files)} file{'s' * (len(plan.files) > 1)}",
        f"  {text_size(plan.bytes_to_read)} to read",
        "",
        "tensors",
        *_groups(plan),
    ]
    for title, sentences in (("notes", plan.notes), ("warnings", plan.warnings)):
        if sentences:
            lines += ["", title, *(f"  {sentence}" for sentence in sentences)]
    return "\n".join(lines)


def _groups(plan: Plan) -> list[str]:
    """Tensors that are treated alike, one line each: how many, how, and with which values."""
    groups: dict[str, list[TensorJob]] = {}
    for job in plan.jobs:
        groups.setdefault(_treatment(plan, job), []).append(job)
    shown = 12
    lines = [
        f"  {len(jobs):>4} × {treatment}  ({jobs[0].name}{', …' * (len(jobs) > 1)})"
        for treatment, jobs in list(groups.items())[:shown]
    ]
    if len(groups) > shown:
        rest = sum(len(jobs) for jobs in list(groups.values())[shown:])
        lines.append(f"  {rest:>4} × {plan.method.name} with {len(groups) - shown} other sets of values")
    return lines


def _treatment(plan: Plan, job: TensorJob) -> str:
    if job.method is None:
        return f"copied from {plan.checkpoints[job.inputs[0].checkpoint].label}"

    def text(value: object) -> str:
        if isinstance(value, tuple):
            return "[" + ", ".join(map(text, cast("tuple[object, ...]", value))) + "]"
        if isinstance(value, bool) or value is None:
            return str(value).lower()
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    values = ", ".join(f"{name}={text(value)}" for name, value in job.values.items())
    return f"{job.method.name} {values}".rstrip()
