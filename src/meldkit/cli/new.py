"""meldkit new: a recipe to begin with."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from meldkit.cli import arguments
from meldkit.cli.display import show_progress, warn
from meldkit.errors import RecipeError, one_line

if TYPE_CHECKING:
    from meldkit.report.draft import Draft

#: What `meldkit schema --out` is told to write in the documentation; recipes beside it name it.
SCHEMA = "recipe.schema.json"


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For the tab key: the method comes first, unless it is to be suggested."""
    given = ctx.params.get(param.name or "") or ()
    if given or ctx.params.get("suggest"):
        return arguments.models(incomplete)
    return arguments.methods(incomplete)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="METHOD MODEL...", shell_complete=_names)
@click.option(
    "--base",
    type=arguments.Model(),
    help="Base model; without it the first model is, where METHOD needs one.",
)
@click.option(
    "--suggest", is_flag=True, help="Choose the method from how the models differ; name models only."
)
@click.option("--slices", is_flag=True, help="Write 'slices:', for gradients or a stack of layers.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write instead of printing.")
@click.option("--plugin", multiple=True, help="Python file that declares a merge method; may be repeated.")
@click.option("--transformers-cache", default=None, help="Folder for downloaded models.")
def command(
    names: tuple[str, ...],
    base: str | None,
    suggest: bool,
    slices: bool,
    out: Path | None,
    plugin: tuple[str, ...],
    transformers_cache: str | None,
) -> None:
    """Write a recipe for METHOD and MODELs, with every parameter explained.

    Models are opened where they can be, and only their headers are read: they tell types, layers
    and vocabularies. With --suggest the weights are read too, if they are here, and tell which
    method suits; models that should not be merged are an error (exit status 3).
    """
    if not names and not suggest:
        raise RecipeError(
            "no METHOD is given", hint="meldkit new METHOD MODEL MODEL; meldkit methods lists them"
        )
    if out is not None and out.exists():
        raise RecipeError(f"{out} exists", hint="name another file, or remove it first")
    name = str(out or "recipe.yml")
    schema = SCHEMA if Path(name).with_name(SCHEMA).is_file() else None
    cache = Path(transformers_cache) if transformers_cache else None
    if suggest:
        draft = _suggested(names, base=base, slices=slices, name=name, schema=schema, cache=cache)
    else:
        draft = _asked_for(names, plugin, base=base, slices=slices, name=name, schema=schema, cache=cache)
    for warning in draft.warnings:
        warn(warning)
    if out is None:
        click.echo(draft.text, nl=False)
    else:
        out.write_text(draft.text, "utf-8")


def _asked_for(names: Sequence[str], plugin: tuple[str, ...], **how: Any) -> Draft:
    from meldkit.api import load_plugins, methods
    from meldkit.report.draft import draft_recipe

    load_plugins(plugin)
    method, *models = names
    if Path(method).exists() and method not in [m.name for m in methods()]:
        raise RecipeError(
            f"'{method}' is a model",
            hint=f"the method comes first: meldkit new METHOD {' '.join(names)}; or meldkit new --suggest",
        )
    return draft_recipe(method, models, **how)


def _suggested(models: Sequence[str], **how: Any) -> Draft:
    from meldkit.api import methods
    from meldkit.report.suggest import suggest_recipe

    if models and models[0] in [m.name for m in methods()] and not Path(models[0]).exists():
        raise RecipeError(
            f"'{models[0]}' is a method, and --suggest chooses one",
            hint="name models only, or leave out --suggest",
        )
    with show_progress(enabled=True) as progress:
        suggestion = suggest_recipe(models, progress=progress, **how)
    for reason in suggestion.reasons:
        click.echo(textwrap.fill(f"note: {one_line(reason)}", 80, subsequent_indent="  "), err=True)
    return suggestion.draft
