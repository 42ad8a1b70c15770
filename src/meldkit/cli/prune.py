"""meldkit prune: a model without some of its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meldkit.cli.arguments import Folder, Model
from meldkit.cli.merge import with_options
from meldkit.cli.surgery import carry_out, recipe_options


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=Model())
@click.argument("out", type=Folder())
@click.option(
    "--drop",
    multiple=True,
    required=True,
    help="Layers, counted from 0: 7, 20:28 (the end left out) or 20-27 (the end included).",
)
@recipe_options
@with_options
def command(model: str, out: Path, drop: tuple[str, ...], **given: Any) -> None:
    """Make MODEL without some of its layers, in the new folder OUT."""
    recipe = {name: given.pop(name) for name in ("dry_run", "write_yaml", "print_yaml", "dtype")}

    def make() -> dict[str, Any]:
        from meldkit.tools.surgery import parse_layers, shortened

        return shortened(model, (n for first, last in parse_layers(drop) for n in range(first, last)))

    carry_out(make, out, given, **recipe)
