"""meldkit layershuffle: a model of layers drawn at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meldkit.cli.arguments import Folder
from meldkit.cli.merge import with_options
from meldkit.cli.surgery import carry_out, recipe_options
from meldkit.errors import RecipeError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=Folder())
@click.option("--model", "-m", "models", multiple=True, help="Draw layers of this model too.")
@click.option("--weight", "-w", "weights", multiple=True, type=float, help="How likely each model is.")
@click.option("--full-random/--no-full-random", default=False, help="Draw the layer too.")
@click.option("--fp16/--no-fp16", default=False, help="The same as --dtype float16.")
@recipe_options
@with_options
def command(
    out: Path,
    models: tuple[str, ...],
    weights: tuple[float, ...],
    full_random: bool,
    fp16: bool,
    dry_run: bool,
    write_yaml: Path | None,
    print_yaml: bool,
    dtype: str | None,
    **given: Any,
) -> None:
    """Make a model of layers drawn from several, in the new folder OUT.

    What is drawn depends on --random-seed alone; the recipe lies in OUT, and --write-yaml keeps it elsewhere.
    """
    if fp16 and dtype not in (None, "float16"):
        raise RecipeError(f"--fp16 and --dtype {dtype} are both given", hint="keep one of them")

    def make() -> dict[str, Any]:
        from meldkit.tools.surgery import shuffled

        return shuffled(models, weights, seed=given["random_seed"] or 0, any_layer=full_random)

    carry_out(
        make,
        out,
        given,
        dry_run=dry_run,
        write_yaml=write_yaml,
        print_yaml=print_yaml,
        dtype=dtype or ("float16" if fp16 else None),
    )
