"""meldkit pytorch: merge the weights of any PyTorch program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from meldkit.cli.arguments import Folder, Recipe
from meldkit.cli.display import note, show_progress
from meldkit.cli.merge import (
    announce,
    data,
    interruptible,
    peak_memory,
    summary,
    warn_of_values,
    with_options,
)
from meldkit.options import MergeOptions


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("recipe", type=Recipe())
@click.argument("out", type=Folder())
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else there.")
@with_options
def command(recipe: Path, out: Path, as_json: bool, **given: Any) -> None:
    """Merge weight files of any PyTorch program as RECIPE says, into the file or folder OUT.

    RECIPE is a YAML file, or - for standard input. Its models are .pt, .pth, .bin, .ckpt or .safetensors
    files; no config.json is needed. OUT is a .safetensors file, a folder, or a .pt file: that one keeps what
    else the base (else the first) model's file holds, such as hyperparameters, without the state of its
    training. Only a folder gets a record of the merge, for 'meldkit verify' and 'meldkit reproduce'.
    """
    options = MergeOptions(**given)
    loud = not options.quiet
    with interruptible():
        from meldkit.raw import check_out, merge_raw, plan_raw

        check_out(out, overwrite=options.overwrite)
        chosen = plan_raw(recipe, out, options)
        if loud:
            announce(chosen, options)
        with show_progress(enabled=loud) as progress:
            result = merge_raw(chosen, out, options, progress=progress, note=note if loud else None)
    if loud:
        warn_of_values(result)
    if as_json:
        click.echo(json.dumps(data(result, peak_memory(), None), indent=2, ensure_ascii=False))
    elif loud:
        summary(result, _first_steps(result.path))


def _first_steps(path: Path) -> str:
    """A line of Python that looks into the result."""
    if path.is_dir():
        path = next(iter(sorted(path.glob("*.safetensors"))))
    if path.suffix == ".safetensors":
        return f"from safetensors import safe_open; print(safe_open({str(path)!r}, 'pt').keys())"
    return f"import torch; print(torch.load({str(path)!r}, weights_only=True).keys())"
