"""meldkit extract-lora: an adapter from a fine-tuned model and its base."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meldkit.cli.arguments import Folder, Model
from meldkit.cli.display import count, show_progress, show_steps, wrapped_table
from meldkit.cli.merge import announce, data, interruptible, peak_memory, with_options
from meldkit.errors import RecipeError
from meldkit.options import MergeOptions

if TYPE_CHECKING:
    from meldkit.tools.lora.errors import ModuleError
    from meldkit.tools.lora.extract import PlannedAdapter

#: Modules that are shown without -v.
_SHOWN = 12


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", type=Model(), required=True, help="The fine-tuned model.")
@click.option("--base-model", type=Model(), required=True, help="The model that it was trained from.")
@click.option("--out-path", type=Folder(), help="Folder to write; the same as OUT.")
@click.argument("out", type=Folder(), required=False)
@click.option("--max-rank", type=int, default=128, show_default=True, help="Largest rank of a matrix.")
@click.option("--sv-epsilon", type=float, default=0.0, help="Leave out singular values up to this.")
@click.option("--keep", type=float, help="Keep this share of the energy of each change, such as 0.95.")
@click.option("--distribute-scale/--no-distribute-scale", default=True, help="Both factors carry the scale.")
@click.option("--embed-lora/--no-embed-lora", default=False, help="Factor embeddings too.")
@click.option("--save-module", "save", multiple=True, help="Store modules of this name as they are.")
@click.option("--exclude-regex", "-e", "exclude", multiple=True, help="Leave out modules of such names.")
@click.option("--include-regex", "-i", "include", multiple=True, help="Look only at modules of such names.")
@click.option("--skip-undecomposable", "skip_others", is_flag=True, help="Leave out norms and the like.")
@click.option("--exact", is_flag=True, default=None, help="Find all singular values, whatever that takes.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", help="Of factors."
)
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with plots to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else there.")
@with_options
def command(
    model: str,
    base_model: str,
    out_path: Path | None,
    out: Path | None,
    html: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Write an adapter in PEFT's format that turns the base model into the fine-tuned one, as far as it can.

    Each matrix that the fine-tune has changed becomes a product of two thin ones, by the largest singular
    values of the change. What was not changed is left out; embeddings and norms that were are stored as they
    are.
    """
    if out is not None and out_path is not None and out != out_path:
        raise RecipeError("OUT and --out-path name different folders", hint="keep one of them")
    target = out or out_path
    if target is None:
        raise RecipeError("OUT is missing", hint="name the folder to write, last or by --out-path")
    names = ("max_rank", "keep", "distribute_scale", "embed_lora", "skip_others", "exact", "dtype")
    own = {name: given.pop(name) for name in names}
    own |= {name: tuple(given.pop(name)) for name in ("save", "exclude", "include")}
    own["epsilon"] = given.pop("sv_epsilon")
    options = MergeOptions(**given)
    loud = not options.quiet
    with interruptible(target):
        from meldkit.api import merge
        from meldkit.tools.lora.errors import measure_errors
        from meldkit.tools.lora.extract import plan_extraction
        from meldkit.tools.lora.wanted import Extraction
        from meldkit.tools.target import check_target

        wanted = Extraction.of(model, base_model, **own)
        check_target(target, [wanted.model, wanted.base], options)
        if html is not None:
            from meldkit.report.html import check_html

            check_html(html, created=target)
        with show_steps(enabled=loud) as step:
            planned = plan_extraction(wanted, options, progress=step)
        if loud:
            announce(planned.plan, options)
        with show_progress(enabled=loud) as progress:
            result = merge(planned.plan, target, options, progress=progress)
        with show_steps(enabled=loud) as step:
            errors = measure_errors(planned, target, progress=step)
    if html is not None:
        from meldkit.report.html import write_html
        from meldkit.tools.lora.page import adapter_page

        write_html(html, adapter_page(planned, errors))
    if as_json:
        found = data(result, peak_memory(), None) | {
            "modules": [asdict(error) for error in errors],
            "saved": list(planned.saved),
            "unchanged": planned.unchanged,
            "skipped": planned.skipped,
            "not_looked_at": planned.unread,
        }
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif loud:
        _show(planned, errors, target, verbose=bool(options.verbosity))


def _show(planned: PlannedAdapter, errors: list[ModuleError], out: Path, *, verbose: bool) -> None:
    assert planned.plan.tool is not None
    click.echo(planned.plan.tool.summary)
    if planned.saved:
        click.echo(f"stored as they are: {', '.join(planned.saved[:6])}" + ", …" * (len(planned.saved) > 6))
    if planned.unchanged:
        click.echo(f"not changed by the fine-tune: {planned.unchanged} modules")
    if planned.skipped:
        click.echo(f"changed, and left out by --skip-undecomposable: {count(planned.skipped, 'module')}")
    if planned.unread:
        click.echo(
            f"not looked at, as --include-regex and --exclude-regex say: {count(planned.unread, 'module')}"
        )
    worst = sorted(errors, key=lambda error: -error.error)
    shown = worst if verbose else worst[:_SHOWN]
    rows = [("module", "rank", "change", "left out")]
    rows += [(e.name, str(e.rank), f"{e.norm:.3g}", f"{100 * e.error:.2f} %") for e in shown]
    click.echo("\n".join(wrapped_table(rows)))
    if len(shown) < len(worst):
        click.echo(f"and {len(worst) - len(shown)} modules with less left out; -v lists all")
    click.echo(f"written to {out}")
    click.echo("the base with the adapter is a model that meldkit reads as BASE+ADAPTER")
