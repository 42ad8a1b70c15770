"""meldkit merge: run a recipe."""

from __future__ import annotations

import resource
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from meldkit.cli.display import show_progress, text_size
from meldkit.options import MergeOptions


def _with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Every field of `MergeOptions` as an option of the same name."""
    for option in reversed(fields(MergeOptions)):
        name = option.name.replace("_", "-")
        doc, flags = option.metadata["doc"], option.metadata["flags"]
        if option.metadata["idle"]:
            doc += f" (Accepted; {option.metadata['idle']}.)"
        if option.name == "verbosity":
            spelled: tuple[str, ...] = (*flags, "--verbose", option.name)
            decorate = click.option(*spelled, count=True, help=doc)
        elif isinstance(option.default, bool):
            spelled = (f"--{name}/--no-{name}", *flags)
            decorate = click.option(*spelled, default=option.default, help=doc)
        else:
            kind = int if "int" in str(option.type) and "str" not in str(option.type) else str
            decorate = click.option(
                f"--{name}",
                *flags,
                type=kind,
                default=option.default,
                help=doc,
                show_default=bool(option.default),
            )
        function = decorate(function)
    return function


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@_with_options
def command(recipe: Path, out: Path, **given: Any) -> None:
    """Merge models as RECIPE (a YAML file) says, into the new folder OUT.

    Interrupted, it leaves nothing that looks like a model; the same command continues.
    """
    from meldkit.api import MergeResult, merge, plan

    options = MergeOptions(**given)
    loud = not options.quiet
    if options.verbosity and loud:
        for line in options.idle():
            click.echo(f"note: {line}", err=True)
    chosen = plan(recipe, options)
    if loud:
        for line in chosen.warnings:
            click.secho("warning: ", fg="yellow", nl=False, err=True)
            click.echo(line, err=True)
        shown = chosen.notes if options.verbosity else chosen.notes[:3]
        for line in shown:
            click.echo(f"note: {line}", err=True)
        if len(shown) < len(chosen.notes):
            click.echo(
                f"note: {len(chosen.notes) - len(shown)} more tensors like these; -v lists them", err=True
            )
    try:
        with show_progress(enabled=loud) as progress:
            result: MergeResult = merge(chosen, out, options, progress=progress)
    except KeyboardInterrupt:
        again = shlex.join(["meldkit", *sys.argv[1:]])
        click.echo(f"\nstopped; what is done is kept. To continue: {again}", err=True)
        sys.exit(4)
    if loud:
        _summary(result)


def _summary(result: Any) -> None:
    traffic = result.bytes_read + result.bytes_written
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if result.discarded:
        click.echo("unfinished work for another recipe or other inputs was in the folder and was thrown away")
    if result.num_resumed:
        click.echo(f"continued: {result.num_resumed} of {len(result.plan.jobs)} tensors were already done")
    click.echo(
        f"merged {len(result.plan.jobs)} tensors, {text_size(result.bytes_written)}, "
        f"in {result.seconds:.1f} s "
        f"({traffic / 1e9 / result.seconds:.1f} GB/s read and written), peak memory {text_size(peak)}"
    )
    click.echo(f"written to {result.path}")
    model = str(result.path)
    generate = f"pipeline('text-generation', {model!r})('Hello')[0]['generated_text']"
    click.echo(f'try it: python -c "from transformers import pipeline; print({generate})"')
