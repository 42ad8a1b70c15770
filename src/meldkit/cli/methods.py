"""meldkit methods: what exists and what it does."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from meldkit.methods import Method


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the merge methods; with NAME, explain one: formula, parameters, paper."""
    from meldkit.api import get_method, methods

    if name is not None:
        click.echo(explain(get_method(name)))
        return
    width = max(len(m.name) for m in methods())
    for method in methods():
        click.echo(f"{method.name:<{width}}  {_models(method):<18}  {method.shape:<11}  {method.summary}")


def explain(method: Method) -> str:
    """Everything a method declares about itself."""
    lines = [method.name, "", inspect.getdoc(method.function) or "", ""]
    lines.append(f"Models: {_models(method)}.  base_model: {method.base.value}.  Shape: {method.shape}.")
    if method.parameters:
        lines += ["", "Parameters:"]
    for p in method.parameters:
        default = (
            "required" if p.required else "optional" if p.default is None else f"default {_plain(p.default)}"
        )
        scope = "per model" if p.per_model else "per tensor"
        lines.append(f"  {p.name}: {p.doc} {p.range_text.capitalize()}; {scope}; {default}.")
    return "\n".join(lines)


def _models(method: Method) -> str:
    low, high = method.num_models
    count = f"{low}" if low == high else f"{low}–{high}" if high else f"{low} or more"
    return f"{count} + base" if method.base.name == "DELTA" else count


def _plain(value: object) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
