"""meldkit reproduce: the merge of a model, run again and compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meldkit.cli import DIFFERENT
from meldkit.cli.arguments import Merged
from meldkit.cli.display import count, show_progress, show_steps, text_of, wrapped
from meldkit.errors import RecipeError

if TYPE_CHECKING:
    from meldkit.tools.reproduce import Reproduction


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=Merged())
@click.option(
    "--models",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder to look for models in that are not where the recipe says; may be repeated.",
)
@click.option(
    "--model", "moved", multiple=True, metavar="OLD=NEW", help="Where a model is now; may be repeated."
)
@click.option("--plugin", multiple=True, help="Python file that declares a merge method; may be repeated.")
@click.option(
    "--trust-remote-code", is_flag=True, help="Let models' own code read tokenizers, as the merge did."
)
@click.option(
    "--num-threads", "-j", type=int, default=None, help="Worker threads; one per processor if not given."
)
@click.option("--device", default=None, help="Where to compute, such as cuda; on the CPU if not given.")
@click.option("--transformers-cache", default=None, help="Folder for downloaded models.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else there.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.pass_context
def command(
    context: click.Context,
    out: Path,
    models: tuple[Path, ...],
    moved: tuple[str, ...],
    plugin: tuple[str, ...],
    trust_remote_code: bool,
    num_threads: int | None,
    device: str | None,
    transformers_cache: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run the merge that made OUT again, and compare every byte with what was recorded.

    Nothing of it is kept. Exit status 3 says that inputs are others, or something else came out.
    Paths in the recipe are seen from the current folder, as they were when OUT was made.
    """
    from meldkit.tools.reproduce import carry_out, plan_rerun

    pairs: dict[str, str] = {}
    for text in moved:
        old, equals, new = text.partition("=")
        if not (old and equals and new):
            raise RecipeError(f"--model {text} names no two places", hint="write it like --model OLD=NEW")
        pairs[old] = new
    with show_steps(enabled=not quiet) as steps:
        rerun = plan_rerun(
            out,
            models=models,
            moved=pairs,
            plugin=plugin,
            trust_remote_code=trust_remote_code,
            threads=num_threads,
            device=device,
            cache=transformers_cache,
            steps=steps,
        )
    with show_progress(enabled=not quiet) as progress:
        result = carry_out(rerun, progress=progress)
    if as_json:
        click.echo(json.dumps(result.data(), indent=2, ensure_ascii=False))
    else:
        click.echo(text_of(describe(result)))
    context.exit(0 if result.same else DIFFERENT)


def describe(result: Reproduction) -> Iterator[str]:
    """The result in words."""
    if result.inputs:
        yield f"{result.path} was made from other inputs; nothing was run:"
        for line in result.inputs:
            yield from wrapped(line)
    elif result.differences:
        yield f"{result.path} does not come out the same:"
        for difference in result.differences:
            yield from wrapped(difference.text)
        told = "headers and samples of all weights are as they were; values between the samples may not be"
        yield from wrapped(told, indent=0)
    else:
        yield f"{result.path} comes out the same: {count(result.num_tensors, 'tensor')}, every byte"
    if result.surroundings:
        yield "not as it was then:"
        for line in result.surroundings:
            yield from wrapped(line)
