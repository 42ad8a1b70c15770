"""meldkit methods: what exists and what it does."""

from __future__ import annotations

import json

import click

from meldkit.cli.arguments import Method
from meldkit.cli.display import wrapped

#: What is said of a method that only adapters have.
_OF_ADAPTERS = (
    "Every entry of 'models:' is the folder of a LoRA adapter, without the model that it was trained on; the "
    "output is an adapter."
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", required=False, type=Method())
@click.option("--plugin", multiple=True, help="Python file that declares a merge method; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print what the methods declare as JSON.")
def command(name: str | None, plugin: tuple[str, ...], as_json: bool) -> None:
    """List the merge methods; with NAME, explain one: formula, parameters, paper."""
    from meldkit.api import ADAPTER_METHODS, describe, get_method, load_plugins, methods

    load_plugins(plugin)
    if name is not None and name in ADAPTER_METHODS:
        summary = ADAPTER_METHODS[name]
        if as_json:
            click.echo(json.dumps([{"name": name, "summary": summary}], indent=2, ensure_ascii=False))
        else:
            lines = [*wrapped(f"{name}: {summary}", indent=0, hanging=2), "", *wrapped(_OF_ADAPTERS)]
            click.echo("\n".join(lines))
        return
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
    for adapters_only, summary in ADAPTER_METHODS.items():
        click.echo(f"{adapters_only:<{width}}  of adapters alone")
        click.echo("\n".join(wrapped(summary, indent=width + 2, hanging=width + 2)))
