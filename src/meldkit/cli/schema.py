"""meldkit schema: the JSON Schema of recipes."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=click.Path(path_type=Path), help="File to write instead of printing.")
@click.option("--plugin", multiple=True, help="Python file that declares a merge method; may be repeated.")
def command(out: Path | None, plugin: tuple[str, ...]) -> None:
    """Print the JSON Schema of recipes, with which editors complete and check them.

    For one recipe, write it beside it and begin the recipe with the line

      # yaml-language-server: $schema=recipe.schema.json
    """
    from meldkit.api import load_plugins
    from meldkit.report.schema import recipe_schema, to_text

    load_plugins(plugin)
    text = to_text(recipe_schema())
    if out is None:
        click.echo(text, nl=False)
    else:
        out.write_text(text, "utf-8")
