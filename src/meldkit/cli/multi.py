"""meldkit multi: several recipes of one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meldkit.cli.arguments import Folder, Recipe
from meldkit.cli.display import show_progress, warn
from meldkit.cli.merge import (
    announce,
    data,
    first_steps,
    interruptible,
    peak_memory,
    summary,
    warn_of_values,
    with_options,
)
from meldkit.errors import RecipeError
from meldkit.options import MergeOptions

if TYPE_CHECKING:
    from meldkit.tools.multi import Step


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("recipe", type=Recipe())
@click.argument("out", type=Folder(), required=False)
@click.option("--out-path", type=Folder(), help="The same as OUT.")
@click.option(
    "--intermediate-dir",
    "-I",
    type=Folder(),
    help="Store what recipes with a name give in folders of these names there.",
)
@click.option("--lazy/--no-lazy", default=True, help="Use what is stored there already.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, and nothing else there.")
@with_options
def command(
    recipe: Path,
    out: Path | None,
    out_path: Path | None,
    intermediate_dir: Path | None,
    lazy: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Carry out the recipes of RECIPE, a YAML file in which --- separates them.

    A recipe uses what another gives by its name: 'name: first' in one, 'model: first' in the other. The
    result of the one without a name goes to OUT. Results of others are computed when they are read and stored
    nowhere, as 'meldkit merge' does it too, unless --intermediate-dir says where.
    """
    if out is not None and out_path is not None and out != out_path:
        raise RecipeError("OUT and --out-path name different folders", hint="keep one of them")
    out = out or out_path
    options = MergeOptions(**given)
    loud = not options.quiet
    found: list[dict[str, Any]] = []
    if not lazy and intermediate_dir is None:
        warn("--no-lazy has no effect without --intermediate-dir: nothing is stored on the way")
    with interruptible():
        from meldkit.api import merge

        for step in _steps(recipe, intermediate_dir, out, options, lazy=lazy):
            title = step.name or str(step.path)
            if step.plan is None:
                whose = "made by another program, and used as it is" if step.stranger else "there already"
                if loud:
                    click.echo(f"{title}: {step.path} is {whose}", err=as_json)
                found.append({"name": step.name, "path": str(step.path), "merged": False})
                continue
            if loud:
                click.echo(f"{title}: {step.plan.method.name}", err=as_json)
                announce(step.plan, options)
            with show_progress(enabled=loud) as progress:
                result = merge(step.plan, step.path, step.options, progress=progress)
            if loud:
                warn_of_values(result)
                if not as_json:
                    summary(result, first_steps(result))
            found.append({"name": step.name, "merged": True, **data(result, peak_memory(), None)})
    if out is not None and all(step["name"] is not None for step in found):
        warn(f"nothing goes to {out}, as every recipe has a name; see {intermediate_dir}")
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))


def _steps(
    recipe: Path, folder: Path | None, out: Path | None, options: MergeOptions, *, lazy: bool
) -> Iterator[Step]:
    from meldkit.api import plan
    from meldkit.tools.multi import Step, steps

    if folder is not None:
        yield from steps(recipe, folder, out, options, lazy=lazy)
        return
    if out is None:
        raise RecipeError("OUT is missing", hint="meldkit multi RECIPE OUT")
    yield Step(None, out, plan(recipe, options, headers_only=True), options)
