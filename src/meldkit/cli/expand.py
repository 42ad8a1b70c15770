"""meldkit expand: a deeper model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meldkit.cli.arguments import Folder, Model
from meldkit.cli.merge import with_options
from meldkit.cli.surgery import carry_out, recipe_options
from meldkit.errors import RecipeError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=Model())
@click.argument("out", type=Folder())
@click.option("--every", type=click.IntRange(min=1), help="After so many layers each, the last one again.")
@click.option("--layers", multiple=True, help="Runs of layers one after the other, such as 0:24 and 8:32.")
@click.option(
    "--idle/--as-they-are",
    default=None,
    help="Have repeated layers change nothing until they are trained. Usual with --every, not with --layers.",
)
@recipe_options
@with_options
def command(
    model: str, out: Path, every: int | None, layers: tuple[str, ...], idle: bool | None, **given: Any
) -> None:
    """Make a deeper MODEL by repeating layers, in the new folder OUT."""
    if every is None and not layers:
        raise RecipeError(
            "nothing says what to repeat", hint="such as --every 4, or --layers 0:24 --layers 8:32"
        )
    if every is not None and layers:
        raise RecipeError("--every and --layers say the same in two ways", hint="give one of them")
    recipe = {name: given.pop(name) for name in ("dry_run", "write_yaml", "print_yaml", "dtype")}

    def make() -> dict[str, Any]:
        from meldkit.tools.surgery import deepened, parse_layers

        quiet = every is not None if idle is None else idle
        return deepened(model, every=every or 0, ranges=parse_layers(layers), idle=quiet)

    carry_out(make, out, given, **recipe)
