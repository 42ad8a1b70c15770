"""meldkit convert-config: recipes from what old programs read."""

from __future__ import annotations

from pathlib import Path

import click

from meldkit.cli.arguments import Recipe
from meldkit.cli.display import warn
from meldkit.errors import RecipeError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=Recipe(), required=False)
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Write the recipe to this file.")
@click.option("--merge", "models", multiple=True, help="Of mergekit-legacy: a model to merge.")
@click.option("--density", "densities", type=float, multiple=True, help="Of mergekit-legacy.")
@click.option("--weight", "weights", type=float, multiple=True, help="Of mergekit-legacy.")
@click.option("--method", default="ties", show_default=True, help="Of mergekit-legacy.")
@click.option("--base-model", default=None, help="Of mergekit-legacy.")
@click.option("--normalize/--no-normalize", default=True, help="Of mergekit-legacy.")
@click.option("--int8-mask/--no-int8-mask", default=False, help="Of mergekit-legacy; it has no effect.")
@click.option("--naive-count/--no-naive-count", default=False, help="Of mergekit-legacy; it has no effect.")
@click.option("--bf16/--no-bf16", default=False, help="Of mergekit-legacy.")
@click.option("--fp16/--no-fp16", default=False, help="Of bakllama.")
def command(
    config: Path | None,
    out: Path | None,
    models: tuple[str, ...],
    densities: tuple[float, ...],
    weights: tuple[float, ...],
    method: str,
    base_model: str | None,
    normalize: bool,
    int8_mask: bool,
    naive_count: bool,
    bf16: bool,
    fp16: bool,
) -> None:
    """Print the recipe that CONFIG, a bakllama file, or the options of mergekit-legacy stand for."""
    from meldkit.tools.surgery import as_text, from_bakllama, from_legacy

    if out is not None and out.exists():
        raise RecipeError(f"{out} exists", hint="name another file, or remove it first")
    if (config is None) == (not models):
        raise RecipeError(
            "there is nothing to convert" if config is None else "a file and --merge are both given",
            hint="name a bakllama file, or give the options of mergekit-legacy: --merge A --merge B",
        )
    if config is not None:
        recipe, notes = from_bakllama(config)
        recipe |= {"dtype": "float16"} if fp16 else {}
    else:
        notes = ["--naive-count has no effect: signs are elected by weight"] if naive_count else []
        notes += ["--int8-mask has no effect: masks take a bit each"] if int8_mask else []
        dtype = "bfloat16" if bf16 else None
        recipe = from_legacy(
            models,
            method=method,
            base=base_model,
            weights=weights,
            densities=densities,
            normalize=normalize,
            dtype=dtype,
        )
    for line in notes:
        warn(line)
    if out is None:
        click.echo(as_text(recipe), nl=False)
    else:
        out.write_text(as_text(recipe), encoding="utf-8")
