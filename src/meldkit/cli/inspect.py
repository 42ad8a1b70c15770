"""meldkit inspect: what a model is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from meldkit.cli.arguments import Model
from meldkit.cli.display import count, table, text_size

if TYPE_CHECKING:
    from meldkit.report import Inspection, PartSummary


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=Model())
@click.option("--transformers-cache", default=None, help="Folder for downloaded models.")
@click.option("--verbose", "-v", is_flag=True, help="List every tensor: type, shape, part and role.")
def command(model: str, transformers_cache: str | None, verbose: bool) -> None:
    """Show what MODEL is made of: parts, layers, types and sizes; reads headers only.

    MODEL is anything that a recipe may name: a folder, a weight file, a hub id, with adapters.
    """
    from meldkit.report import inspect

    cache = Path(transformers_cache) if transformers_cache else None
    click.echo(describe(inspect(model, cache=cache), verbose=verbose))


def describe(inspection: Inspection, *, verbose: bool = False) -> str:
    """The inspection in words and tables."""
    checkpoint, config = inspection.checkpoint, inspection.checkpoint.config
    architectures = config.get("architectures") or [config.get("model_type", "no config.json")]
    total = sum(inspection.dtypes.values())
    size = text_size(sum(info.nbytes for info in checkpoint.values()))
    kinds = dict.fromkeys(path.suffix.removeprefix(".") for path in checkpoint.files())
    files = f"{count(len(checkpoint.files()), 'file')} ({', '.join(kinds)})"
    lines = [
        f"{checkpoint.label}: {', '.join(map(str, architectures))}",
        f"  {total:,} parameters in {count(len(checkpoint), 'tensor')}, {size} in {files}",
        f"  {', '.join(inspection.dtypes)}"
        + (f"; {inspection.num_encoded} of them decoded when read" * bool(inspection.num_encoded)),
    ]
    tied = config.get("tie_word_embeddings")
    if isinstance(tied, bool):
        lines.append(f"  embedding and head {'tied' if tied else 'apart'}")
    lines += ["", "parts, as 'modules:' of a recipe names them", *table(map(_part, inspection.parts))]
    lines += ["", "roles", *table([(role, _share(n, total)) for role, n in inspection.roles.items()])]
    if verbose:
        rows = [
            (
                name,
                info.dtype,
                str(list(info.shape)),
                inspection.part_of(name),
                inspection.layout.places[name].role,
            )
            for name, info in checkpoint.items()
        ]
        lines += ["", "tensors", *table(rows)]
    return "\n".join(lines)


def _part(summary: PartSummary) -> tuple[str, ...]:
    stack = summary.part.stack
    layers = "no layers for layer_range"
    if stack is not None:
        layers = f"{count(stack.num_blocks, 'layer')} {stack.prefix}*"
    return (
        summary.name,
        layers,
        count(summary.num_tensors, "tensor"),
        f"{summary.num_parameters:,} parameters",
    )


def _share(elements: int, total: int) -> str:
    return f"{elements:,} parameters, {elements / total:.1%}" if total else "no parameters"
