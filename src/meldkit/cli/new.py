"""meldkit new: a recipe to begin with."""

from __future__ import annotations

from pathlib import Path

import click

from meldkit.errors import RecipeError

#: What `meldkit schema --out` is told to write in the documentation; recipes beside it name it.
SCHEMA = "recipe.schema.json"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="METHOD MODEL…")
@click.option("--base", help="Base model; without it the first model is, where METHOD needs one.")
@click.option("--slices", is_flag=True, help="Write 'slices:', for gradients or a stack of layers.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write instead of printing.")
@click.option("--plugin", multiple=True, help="Python file that declares a merge method; may be repeated.")
@click.option("--transformers-cache", default=None, help="Folder for downloaded models.")
def command(
    names: tuple[str, ...],
    base: str | None,
    slices: bool,
    out: Path | None,
    plugin: tuple[str, ...],
    transformers_cache: str | None,
) -> None:
    """Write a recipe for METHOD and MODELs, with every parameter explained.

    Models are opened where they can be, and only their headers are read: they tell types, layers
    and vocabularies.
    """
    from meldkit.api import load_plugins, methods
    from meldkit.report.draft import draft_recipe

    load_plugins(plugin)
    if not names:
        raise RecipeError(
            "no METHOD is given", hint="meldkit new METHOD MODEL MODEL; meldkit methods lists them"
        )
    if out is not None and out.exists():
        raise RecipeError(f"{out} exists", hint="name another file, or remove it first")
    method, *models = names
    if Path(method).exists() and method not in [m.name for m in methods()]:
        raise RecipeError(
            f"'{method}' is a model",
            hint=f"the method comes first: meldkit new METHOD {' '.join(names)}; meldkit methods lists them",
        )
    beside = (out or Path("recipe.yml")).parent / SCHEMA
    draft = draft_recipe(
        method,
        models,
        base=base,
        slices=slices,
        name=str(out or "recipe.yml"),
        schema=SCHEMA if beside.is_file() else None,
        cache=Path(transformers_cache) if transformers_cache else None,
    )
    for warning in draft.warnings:
        click.secho("warning: ", fg="yellow", nl=False, err=True)
        click.echo(warning, err=True)
    if out is None:
        click.echo(draft.text, nl=False)
    else:
        out.write_text(draft.text, "utf-8")
