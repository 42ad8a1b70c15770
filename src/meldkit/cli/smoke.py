"""meldkit smoke: whether a model still works."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meldkit.cli import INTERRUPTED
from meldkit.cli.arguments import Model
from meldkit.cli.display import show_steps, table, text_of, warn
from meldkit.options import MergeOptions

if TYPE_CHECKING:
    from meldkit.recipe import ModelRef
    from meldkit.report import ModelRun, SmokeTest


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=Model())
@click.argument("inputs", nargs=-1, type=Model())
@click.option("--device", default=None, help="Where to compute, such as cuda; on the CPU if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.option("--transformers-cache", default=None, help="Folder for downloaded models.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that models bring along.")
@click.option("--verbose", "-v", is_flag=True, help="Show what the models wrote.")
def command(
    model: str,
    inputs: tuple[str, ...],
    device: str | None,
    as_json: bool,
    quiet: bool,
    transformers_cache: str | None,
    trust_remote_code: bool,
    verbose: bool,
) -> None:
    """Let MODEL read and write a little, and compare it with INPUTS, the models it was made of.

    All are anything that a recipe may name: folders, GGUF files, hub ids, models with adapters. One is in
    memory at a time.
    """
    options = MergeOptions(
        device=device,
        quiet=quiet,
        transformers_cache=transformers_cache,
        trust_remote_code=trust_remote_code,
    )
    test = run(model, inputs, options, Path.cwd())
    report(test, table_to_stderr=as_json, verbose=verbose)
    if as_json:
        click.echo(json.dumps(test.data(), indent=2, ensure_ascii=False))


def run(model: str | Path, inputs: Sequence[str | ModelRef], options: MergeOptions, work: Path) -> SmokeTest:
    """Run the models with progress; Ctrl-C says how to start again.

    Args:
        model: the one in question.
        inputs: those that it is compared with.
        options: how to run.
        work: a folder with room for one model.
    """
    from meldkit.report import smoke

    try:
        with show_steps(enabled=not options.quiet) as progress:
            return smoke(model, inputs, work, options, progress=progress)
    except KeyboardInterrupt:
        again = shlex.join(["meldkit", "smoke", str(model), *map(str, inputs)])
        click.echo("\n" * sys.stderr.isatty() + f"stopped. To start again: {again}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


def report(test: SmokeTest, *, table_to_stderr: bool = False, verbose: bool = False) -> None:
    """Print the table if there is one, then warnings on standard error."""
    if not test.tested.failure:
        click.echo(text_of(describe(test, verbose=verbose)), err=table_to_stderr)
    for line in test.warnings:
        warn(line)


def describe(test: SmokeTest, *, verbose: bool = False) -> Iterator[str]:
    """The test as a table; with `verbose`, what was written too."""
    runs = [*test.inputs, test.tested]
    passages = list(test.tested.perplexity)
    yield ""
    if passages:
        yield "smoke test: perplexity on three passages; how often the likeliest token is the"
        yield "result's; repetition in what was written"
        yield from _numbers(["", *passages, "same token", "repeated"], runs)
    else:
        yield "smoke test: cosine of embeddings with the result's"
        yield from _numbers(["", "cosine"], runs)
    for run in runs if verbose else ():
        for passage, text in run.continuations.items():
            yield f"{run.label} continues '{passage}': {text!r}"


def _numbers(titles: list[str], runs: Sequence[ModelRun]) -> list[str]:
    rows = [titles, *([run.label, *_cells(run, titles[1:])] for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(1, len(titles))]
    return table([row[0], *(cell.rjust(w) for cell, w in zip(row[1:], widths, strict=True))] for row in rows)


def _cells(run: ModelRun, titles: Sequence[str]) -> list[str]:
    if run.failure:
        return ["not run", *[""] * (len(titles) - 1)]
    if not run.perplexity:
        return ["-" if run.cosine is None else f"{run.cosine:.3f}"]
    return [
        *(_number(value) for value in run.perplexity.values()),
        "-" if run.agreement is None else f"{run.agreement:.0%}",
        "-" if run.repetition is None else f"{run.repetition:.0%}",
    ]


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.1f}" if value < 1000 else f"{value:.1e}" if value >= 1e6 else f"{value:,.0f}"
