"""meldkit inspect: what a model is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meldkit.cli.arguments import Model
from meldkit.cli.display import count, table, text_of, text_size

if TYPE_CHECKING:
    from meldkit.report import Inspection, PartSummary, TokenizerFacts

#: Longer lists of names are cut.
_FEW = 12
_WIDTH = 78


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=Model())
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON; with -v every tensor too.")
@click.option("--transformers-cache", default=None, help="Folder for downloaded models.")
@click.option("--verbose", "-v", is_flag=True, help="List every tensor: type, shape, module and role.")
def command(model: str, as_json: bool, transformers_cache: str | None, verbose: bool) -> None:
    """Show what MODEL is made of: modules, layers, types, sizes, tokenizer, origin.

    MODEL is anything that a recipe may name: a folder, a weight file, a hub id, with adapters; or an adapter
    alone. Only headers are read; of a model on the hub only these are fetched.
    """
    from meldkit.report import inspect

    found = inspect(model, cache=Path(transformers_cache) if transformers_cache else None)
    if as_json:
        click.echo(json.dumps(found.data(tensors=verbose), indent=2, ensure_ascii=False))
    else:
        click.echo(describe(found, verbose=verbose))


def describe(inspection: Inspection, *, verbose: bool = False) -> str:
    """The inspection in words and tables, 80 columns wide where names allow."""
    total = inspection.num_parameters
    lines = list(_summary(inspection))
    lines += ["", "modules, as a recipe's 'modules:' names them, and their layers for 'slices:'"]
    lines += table(map(_part, inspection.parts))
    shown = {summary.part.stack for summary in inspection.parts}
    others = [stack for stack in inspection.layout.stacks if stack not in shown]
    if others:
        lines += ["", "other stacks"]
        lines += table((f"{s.prefix}*", count(s.num_blocks, "layer")) for s in others)
    lines += ["", "roles", *table([(role, _share(n, total)) for role, n in inspection.roles.items()])]
    if inspection.tokenizer is not None:
        lines += ["", "tokenizer", *_tokenizer(inspection.tokenizer, inspection.rows)]
    if inspection.relatives:
        lines += ["", "relatives"]
        lines += table((r.relation, r.name, f"({r.source})") for r in inspection.relatives)
    if inspection.notes:
        lines += ["", "notes", *(f"  {note}" for note in inspection.notes)]
    if verbose:
        rows = [
            (
                name,
                info.dtype,
                str(list(info.shape)),
                inspection.part_of(name),
                inspection.layout.places[name].role,
            )
            for name, info in inspection.tensors.items()
        ]
        lines += ["", "tensors", *table(rows)]
    return text_of(lines)


def _summary(inspection: Inspection) -> Iterator[str]:
    checkpoint = inspection.checkpoint
    what = ", ".join(inspection.architectures) or "no config.json"
    adapter = inspection.adapter
    if adapter is not None:
        sizes = [f"{name} {n:g}" for name, n in (("rank", adapter.rank), ("alpha", adapter.alpha)) if n]
        what = ", ".join([f"{adapter.kind} adapter", *sizes])
    yield f"{checkpoint.label}: {what}"
    files = checkpoint.files()
    kinds = "/".join(dict.fromkeys(path.suffix.removeprefix(".") for path in files))
    tensors, changed = count(len(checkpoint), "tensor"), count(inspection.num_encoded, "tensor")
    yield f"  {inspection.num_parameters:,} parameters in {tensors}: {', '.join(inspection.dtypes)}"
    yield f"  {text_size(inspection.nbytes)} in {count(len(files), f'{kinds} file')}" + _to_download(
        inspection
    )
    if inspection.quantisation is not None:
        listed = ", ".join(
            f"{count(n, 'tensor')} as {kind}" for kind, n in inspection.quantisation.kinds.items()
        )
        yield f"  quantised{f' ({m})' if (m := inspection.quantisation.method) else ''}: {listed}"
    elif inspection.num_encoded and checkpoint.adapters:
        yield f"  {changed} changed by {count(len(checkpoint.adapters), 'adapter')}"
    if adapter is not None:
        yield from _wrapped("changes ", adapter.targets)
    yield from _wrapped("", _sizes(inspection))
    head = {
        "tied": "head tied to the embedding, not stored",
        "stored": "head of its own",
        "tied and stored": "head tied to the embedding, and stored all the same",
        "none": "no head",
    }[inspection.head]
    if adapter is None:
        yield f"  {head}"
    if inspection.license is not None:
        yield f"  license {inspection.license}"


def _to_download(inspection: Inspection) -> str:
    absent = inspection.checkpoint.absent
    if not absent:
        return ""
    return f"; to download: {text_size(sum(absent.values()))} in {count(len(absent), 'file')}"


def _sizes(inspection: Inspection) -> Iterator[str]:
    """What config.json says, in the words that people use."""
    settings = inspection.settings
    words = {
        "hidden_size": "hidden size {:,}",
        "intermediate_size": "intermediate {:,}",
        "num_heads": "heads {:,}",
        "num_kv_heads": "key/value heads {:,}",
        "head_dim": "head size {:,}",
        "num_experts": "experts {:,}",
        "num_experts_per_token": "experts per token {:,}",
        "context_length": "context {:,}",
        "sliding_window": "sliding window {:,}",
        "rope_theta": "rope theta {:,.10g}",
        "vocab_size": "vocabulary {:,}",
    }
    return (text.format(settings[name]) for name, text in words.items() if name in settings)


def _wrapped(title: str, items: Iterator[str] | tuple[str, ...]) -> Iterator[str]:
    """Items after each other, in as many lines as they take."""
    line = f"  {title}"
    first = True
    for item in items:
        if not first and len(line) + 2 + len(item) > _WIDTH:
            yield f"{line},"
            line, first = f"  {' ' * len(title)}", True
        line += ("" if first else ", ") + item
        first = False
    if not first:
        yield line


def _part(summary: PartSummary) -> tuple[str, ...]:
    stack = summary.part.stack
    layers = f"{count(stack.num_blocks, 'layer')} {stack.prefix}*" if stack else "no layers"
    return (
        summary.name,
        layers,
        count(summary.num_tensors, "tensor"),
        f"{summary.num_parameters:,} parameters",
    )


def _tokenizer(facts: TokenizerFacts, rows: int) -> Iterator[str]:
    if facts.num_tokens is None or facts.size is None:
        yield f"  {facts.kind}, which is not looked into; {rows:,} rows in the embedding"
    else:
        added = f"{facts.num_added:,} added, {facts.num_special:,} special"
        yield f"  {facts.kind}: {facts.num_tokens:,} tokens ({added})"
        if rows:
            spare = rows - facts.size
            verdict = (
                f"{spare:,} without a token"
                if spare > 0
                else f"{-spare:,} too few"
                if spare
                else "one for each"
            )
            yield f"  {rows:,} rows in the embedding: {verdict}"
    special = [
        f"{role} {token}" + (f" ({number})" if number is not None else "")
        for role, (token, number) in facts.special.items()
    ]
    yield from _wrapped("", tuple(special))
    names = ", ".join(facts.templates[:_FEW])
    yield f"  chat template: {names or 'none'}"


def _share(elements: int, total: int) -> str:
    return f"{elements:,} parameters, {elements / total:.1%}" if total else "no parameters"
