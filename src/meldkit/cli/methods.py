"""meldkit methods: what exists and what it does."""

from __future__ import annotations

import json

import click

from meldkit.cli.arguments import Method
from meldkit.cli.display import wrapped


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", required=False, type=Method())
@click.option("--plugin", multiple=True, help="Python file that declares a merge method; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print what the methods declare as JSON.")
def command(name: str | None, plugin: tuple[str, ...], as_json: bool) -> None:
    """List the merge methods; with NAME, explain one: formula, parameters, paper."""
    from meldkit.api import describe, get_method, load_plugins, methods

    load_plugins(plugin)
    if as_json:
        chosen = methods() if name is None else (get_method(name),)
        click.echo(json.dumps([describe.data(method) for method in chosen], indent=2, ensure_ascii=False))
        return
    if name is not None:
        click.echo(describe.explain(get_method(name)))
        return
    width = max(len(m.name) for m in methods())
    for method in methods():
        paper = f"  arXiv:{method.paper}" if method.paper else ""
        takes = f"{describe.models_text(method):<16}  {method.shape:<11}{paper}"
        click.echo(f"{method.name:<{width}}  {takes}".rstrip())
        click.echo("\n".join(wrapped(method.summary, indent=width + 2, hanging=width + 2)))
