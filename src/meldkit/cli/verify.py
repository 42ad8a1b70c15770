"""meldkit verify: whether an output is still what its merge has written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meldkit.cli import DIFFERENT
from meldkit.cli.arguments import Merged
from meldkit.cli.display import count, show_bytes, text_of, text_size, wrapped

if TYPE_CHECKING:
    from meldkit.report import OutputCheck


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=Merged())
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else there.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.pass_context
def command(context: click.Context, out: Path, as_json: bool, quiet: bool) -> None:
    """Compare the files of OUT, a merged model, with what its merge recorded.

    Exit status 3 says that something is missing, too much, or changed. Of a model without a record,
    only headers and configuration can be checked.
    """
    from meldkit.report import verify_output

    with show_bytes(enabled=not quiet) as progress:
        check = verify_output(out, progress=progress)
    if as_json:
        click.echo(json.dumps(check.data(), indent=2, ensure_ascii=False))
    else:
        click.echo(text_of(describe(check)))
    context.exit(DIFFERENT if check.damage else 0)


def describe(check: OutputCheck) -> Iterator[str]:
    """The result in words."""
    looked = f"{count(check.num_tensors, 'tensor')} in {count(check.num_files, 'file')}"
    size = text_size(check.num_bytes)
    if check.damage:
        yield f"{check.path} is not what was written:" if check.recorded else f"{check.path} is damaged:"
        for damage in check.damage:
            yield from wrapped(damage.text)
    elif check.recorded:
        yield f"{check.path} is what its merge has written: {looked}, {size}, every byte"
    else:
        yield f"{check.path} has sound headers: {looked}, {size}"
    if not check.recorded:
        who = "a single file" if check.path.is_file() else "it"
        yield from wrapped(
            f"{who} has no record of a merge (meldkit.json), so that values cannot be compared with anything",
            indent=0,
            hanging=2,
        )
    if check.extra:
        yield f"not of the merge: {', '.join(check.extra)}"
