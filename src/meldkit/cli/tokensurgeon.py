"""meldkit tokensurgeon: a model with the tokenizer of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meldkit.cli.arguments import Folder, Model
from meldkit.cli.display import show_progress, show_steps, wrapped_table
from meldkit.cli.merge import (
    announce,
    data,
    first_steps,
    interruptible,
    peak_memory,
    summary,
    warn_of_values,
    with_options,
)
from meldkit.options import MergeOptions
from meldkit.tools.transplant.names import METHODS, PLACES, SUBWORD_METHODS, WEIGHT_SCHEMES

if TYPE_CHECKING:
    from meldkit.tools.transplant.plan import PlannedTransplant


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=Model())
@click.argument("donor", type=Model())
@click.argument("out", type=Folder(), required=False)
@click.option(
    "--approximation-method",
    "-a",
    "method",
    type=click.Choice(METHODS),
    default=METHODS[0],
    show_default=True,
    help="How rows of tokens that MODEL lacks are made.",
)
@click.option("--k", "-k", type=int, default=64, show_default=True, help="Tokens that a row is made of.")
@click.option(
    "--weight-scheme",
    "-w",
    type=click.Choice(WEIGHT_SCHEMES),
    default=WEIGHT_SCHEMES[0],
    show_default=True,
    help="Of common_interpolation.",
)
@click.option(
    "--cosine-similarity/--no-cosine-similarity",
    "-c/-nc",
    "cosine",
    default=False,
    help="Of common_interpolation: nearest by angle, not by distance.",
)
@click.option(
    "--subword-method",
    "-s",
    "subword",
    type=click.Choice(SUBWORD_METHODS),
    default="mean",
    show_default=True,
    help="Of subword: how rows of pieces are added.",
)
@click.option(
    "--prefix-match",
    "-pm",
    type=click.Choice(PLACES),
    default="no",
    show_default=True,
    help="Where a token that begins with one of MODEL's gets the row of the longest such.",
)
@click.option(
    "--byte-match",
    "-bm",
    type=click.Choice(PLACES),
    default="no",
    show_default=True,
    help="Where letters match SentencePiece's bytes, such as <0x41>.",
)
@click.option(
    "--magikarp/--no-magikarp", default=False, help="Leave tokens aside that seem untrained in a model."
)
@click.option("--new-vocab-noise", "-nvn", "noise", type=float, help="Noise added to new rows.")
@click.option("--new-vocab-scale", "-nvs", "scale", type=float, help="What new rows are multiplied by.")
@click.option("--batch-size", type=int, help="Tokens at once; by default as many as there is room for.")
@click.option("--pad-to-multiple-of", type=int, default=1, help="Add rows until there are such a number.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be made, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else there.")
@with_options
def command(model: str, donor: str, out: Path | None, only_plan: bool, as_json: bool, **given: Any) -> None:
    """Write MODEL with the tokenizer of DONOR into the new folder OUT.

    Tokens that both have keep MODEL's rows. Of others, DONOR's embeddings tell of which shared ones they are
    made, and the same is made of MODEL's. Everything else is copied.
    """
    if out is None and not only_plan:
        raise click.MissingParameter(param_hint="'OUT'", param_type="argument")
    names = ("method", "k", "weight_scheme", "cosine", "subword", "prefix_match", "byte_match", "magikarp")
    own = {name: given.pop(name) for name in (*names, "batch_size", "pad_to_multiple_of")}
    own |= {"noise": given.pop("noise") or 0.0}
    # mergekit takes 0 for no scale at all.
    own |= {"scale": given.pop("scale") or 1.0}
    options = MergeOptions(**given)
    loud = not options.quiet
    with interruptible(out):
        from meldkit.api import merge
        from meldkit.tools.target import check_target
        from meldkit.tools.transplant.plan import as_data, plan_transplant
        from meldkit.tools.transplant.wanted import Transplant

        wanted = Transplant.of(model, donor, **own)
        if out is not None:
            check_target(out, [wanted.model, wanted.donor], options)
        with show_steps(enabled=loud) as step:
            planned = plan_transplant(wanted, options, progress=step)
        if loud:
            announce(planned.plan, options)
            if not as_json:
                _show(planned)
        if out is None or only_plan:
            if as_json:
                click.echo(json.dumps(as_data(planned), indent=2, ensure_ascii=False))
            return
        with show_progress(enabled=loud) as progress:
            result = merge(planned.plan, out, options, progress=progress)
    if loud:
        warn_of_values(result)
        if not as_json:
            summary(result, first_steps(result))
    if as_json:
        found = as_data(planned) | data(result, peak_memory(), None)
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))


def _show(planned: PlannedTransplant) -> None:
    assert planned.plan.tool is not None
    click.echo(planned.plan.tool.summary)
    rows: list[tuple[str, ...]] = [("table", "same", "by byte", "by prefix", "made", "untrained", "left out")]
    for table in planned.tables:
        counts = (table.exact, table.byte, table.prefix, table.made, table.untrained)
        error = "" if table.error is None else f"{100 * table.error:.0f} %"
        rows.append((table.name, *(f"{count:,}" for count in counts), error))
    click.echo("\n".join(wrapped_table(rows)))
    if any(table.error is not None for table in planned.tables):
        click.echo("left out: what of the donor's rows is not in the sums that stand for them, on average")
