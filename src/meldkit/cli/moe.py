"""meldkit moe: a mixture of experts from several models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meldkit.cli.arguments import Folder, Recipe
from meldkit.cli.display import show_progress, show_steps, text_of, warn, wrapped_table
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
from meldkit.cli.plan import in_numbers
from meldkit.errors import RecipeError
from meldkit.options import MergeOptions

if TYPE_CHECKING:
    from meldkit.tools.moe.make import PlannedMixture

#: Characters of a prompt that are shown.
_PROMPT = 36


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=Recipe())
@click.argument("out", type=Folder(), required=False)
@click.option(
    "--upcycle", "num_copies", type=int, help="CONFIG is a dense model: make so many experts of it."
)
@click.option("--experts-per-token", type=int, help="With --upcycle; 2 if not given.")
@click.option("--noise-scale", type=float, help="With --upcycle: noise that parts the experts.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be made and where prompts go.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with plots to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else there.")
@click.option("--load-in-4bit", is_flag=True, help="(Accepted; the base is loaded as it is stored.)")
@click.option("--load-in-8bit", is_flag=True, help="(Accepted; the base is loaded as it is stored.)")
@click.option(
    "--i-understand-this-is-not-useful-without-training",
    is_flag=True,
    help="(Accepted; experts that are all the same are warned of.)",
)
@with_options
def command(
    config: Path,
    out: Path | None,
    num_copies: int | None,
    experts_per_token: int | None,
    noise_scale: float | None,
    only_plan: bool,
    html: Path | None,
    as_json: bool,
    load_in_4bit: bool,
    load_in_8bit: bool,
    i_understand_this_is_not_useful_without_training: bool,
    **given: Any,
) -> None:
    """Make a mixture of experts as CONFIG (a YAML file) says, in the new folder OUT.

    Feed-forward layers of several models become experts, everything else is that of the base model. Gates are
    made from what the base makes of prompts that are typical of each expert.
    """
    del load_in_4bit, load_in_8bit, i_understand_this_is_not_useful_without_training
    if out is None and not only_plan:
        raise click.MissingParameter(param_hint="'OUT'", param_type="argument")
    options = MergeOptions(**given)
    loud = not options.quiet
    with interruptible(out):
        from meldkit.api import merge
        from meldkit.tools.moe.config import load_mixture
        from meldkit.tools.moe.make import plan_mixture, upcycle
        from meldkit.tools.target import check_target

        if html is not None:
            from meldkit.report.html import check_html

            check_html(html, created=None if only_plan else out)
        if num_copies is None:
            if config.is_dir():
                raise RecipeError(
                    f"{config} is a folder, not a file that describes a mixture",
                    hint="to make experts of one dense model, add --upcycle with their number",
                )
            for option, value in (("experts-per-token", experts_per_token), ("noise-scale", noise_scale)):
                if value is not None:
                    warn(f"--{option} has no effect without --upcycle: the file says it")
            mixture, text = load_mixture(config)
        else:
            per_token = 2 if experts_per_token is None else experts_per_token
            mixture, text = upcycle(str(config), num_copies, per_token, noise_scale or 0.0, options)
        if out is not None:
            check_target(out, mixture.models(), options)
        with show_steps(enabled=loud) as step:

            def read(done: int, total: int) -> None:
                if step is not None:
                    step(done, total, "reading prompts")

            work = None if out is None else out.absolute().parent
            planned = plan_mixture(mixture, text, options, work=work, progress=read)
        if loud:
            announce(planned.plan, options)
            if not as_json:
                _show(planned)
                if only_plan:
                    _show_cost(planned, options)
        if html is not None and only_plan:
            _write_page(html, planned)
        if out is None or only_plan:
            if as_json:
                click.echo(json.dumps(_data(planned), indent=2, ensure_ascii=False))
            return
        with show_progress(enabled=loud) as progress:
            result = merge(planned.plan, out, options, progress=progress)
    if html is not None:
        _write_page(html, planned)
    if loud:
        warn_of_values(result)
        if not as_json:
            summary(result, first_steps(result))
    if as_json:
        click.echo(
            json.dumps(_data(planned) | data(result, peak_memory(), None), indent=2, ensure_ascii=False)
        )


def _write_page(html: Path, planned: PlannedMixture) -> None:
    from meldkit.report.html import write_html
    from meldkit.tools.moe.page import mixture_page

    write_html(html, mixture_page(planned))


def _show(planned: PlannedMixture) -> None:
    assert planned.plan.tool is not None
    click.echo(planned.plan.tool.summary)
    rows = [("expert", "made of")]
    click.echo("\n".join(wrapped_table([*rows, *((str(i), name) for i, name in enumerate(planned.experts))])))
    if planned.routings:
        # Where a token takes all experts, only the order of them says anything.
        all_taken = all(share == 1 for r in planned.routings for share in r.shares)
        which = "the first" if all_taken else "among those"
        click.echo(f"where prompts go: in what share of the layers each expert is {which} that they take")
        lines = [
            (
                _short(r.prompt),
                str(r.expert),
                *(f"{100 * share:.0f} %" for share in (r.first_shares if all_taken else r.shares)),
            )
            for r in planned.routings
        ]
        head = ("prompt", "of", *map(str, range(len(planned.experts))))
        click.echo("\n".join(wrapped_table([head, *lines])))


def _show_cost(planned: PlannedMixture, options: MergeOptions) -> None:
    from meldkit.api import devices_of
    from meldkit.report import summarise_plan

    found = summarise_plan(planned.plan, threads=options.num_threads, devices=devices_of(options))
    click.echo(text_of(["", *in_numbers(found)]))


def _short(prompt: str) -> str:
    text = " ".join(prompt.split())
    return text if len(text) <= _PROMPT else text[: _PROMPT - 1] + "…"


def _data(planned: PlannedMixture) -> dict[str, Any]:
    return {
        "experts": list(planned.experts),
        "routing": [
            {"prompt": r.prompt, "expert": r.expert, "shares": list(r.shares), "first": list(r.first)}
            for r in planned.routings
        ],
        "warnings": list(planned.plan.warnings),
    }
