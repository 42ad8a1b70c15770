"""What the commands share that make a recipe and carry it out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from meldkit.cli.display import note, show_progress
from meldkit.cli.merge import announce, first_steps, interruptible, summary, warn_of_values
from meldkit.options import MergeOptions


def recipe_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What may be done with a recipe besides carrying it out."""
    for decorate in (
        click.option("--dry-run", is_flag=True, help="Write or print the recipe, and stop."),
        click.option("--write-yaml", type=click.Path(path_type=Path), help="Write the recipe here too."),
        click.option("--print-yaml/--no-print-yaml", default=False, help="Print the recipe."),
        click.option("--dtype", default=None, help="Type of the output, such as bfloat16."),
    ):
        function = decorate(function)
    return function


def carry_out(
    make: Callable[[], dict[str, Any]],
    out: Path,
    given: dict[str, Any],
    *,
    dry_run: bool,
    write_yaml: Path | None,
    print_yaml: bool,
    dtype: str | None,
) -> None:
    """Make a recipe, show it, and merge as it says.

    Args:
        make: makes it, as data.
        out: folder to write.
        given: options of merges.
        dry_run, write_yaml, print_yaml, dtype: see `recipe_options`.
    """
    options = MergeOptions(**given)
    loud = not options.quiet
    with interruptible(out):
        from meldkit.api import check_free, merge, plan
        from meldkit.tools.surgery import as_recipe, as_text

        if not dry_run:
            check_free(out, overwrite=options.overwrite)
        recipe = make() | ({"dtype": dtype} if dtype else {})
        text = as_text(recipe)
        if write_yaml is not None:
            write_yaml.write_text(text, encoding="utf-8")
            if loud:
                note(f"the recipe is written to {write_yaml}")
        if print_yaml or (dry_run and write_yaml is None):
            click.echo(text, nl=False)
        if dry_run:
            return
        chosen = plan(as_recipe(recipe), options, headers_only=True)
        if loud:
            announce(chosen, options)
        with show_progress(enabled=loud) as progress:
            result = merge(chosen, out, options, progress=progress)
    if loud:
        warn_of_values(result)
        summary(result, first_steps(result))
