"""meldkit merge: run a recipe."""

from __future__ import annotations

import os
import resource
import shlex
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meldkit.cli import INTERRUPTED
from meldkit.cli.display import count, show_progress, text_size
from meldkit.options import MergeOptions

if TYPE_CHECKING:
    from meldkit.api import MergeResult, Verification
    from meldkit.plan import Plan

#: Notes shown without -v; a model of many layers can earn hundreds of the same kind.
_NOTES = 3


def with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Every field of `MergeOptions` as an option of the same name."""
    for option in reversed(fields(MergeOptions)):
        name = option.name.replace("_", "-")
        doc, flags = option.metadata["doc"], option.metadata["flags"]
        if option.metadata["idle"]:
            doc += f" (Accepted; {option.metadata['idle']}.)"
        if option.name == "verbosity":
            spelled: tuple[str, ...] = (*flags, "--verbose", option.name)
            decorate = click.option(*spelled, count=True, help=doc)
        elif isinstance(option.default, tuple):
            decorate = click.option(f"--{name}", multiple=True, help=doc)
        elif isinstance(option.default, bool):
            spelled = (f"--{name}/--no-{name}", *flags)
            decorate = click.option(*spelled, default=option.default, help=doc)
        else:
            kind = int if "int" in str(option.type) and "str" not in str(option.type) else str
            decorate = click.option(
                f"--{name}",
                *flags,
                type=kind,
                default=option.default,
                help=doc,
                show_default=bool(option.default),
            )
        function = decorate(function)
    return function


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@with_options
def command(recipe: Path, out: Path, **given: Any) -> None:
    """Merge models as RECIPE (a YAML file, or - for standard input) says, into the new folder OUT.

    Interrupted, it leaves nothing that looks like a model; the same command continues.
    """
    from meldkit.api import check_free, merge, plan

    options = MergeOptions(**given)
    loud = not options.quiet
    if not loud:
        # The hub's library draws bars of its own while it downloads.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    check_free(out, overwrite=options.overwrite)
    chosen = plan(recipe, options)
    if loud:
        announce(chosen, options)
    with interruptible(), show_progress(enabled=loud) as progress:
        result = merge(chosen, out, options, progress=progress)
    if loud:
        summary(result, _first_steps(result))


@contextmanager
def interruptible() -> Generator[None]:
    """Turn Ctrl-C into a message and an exit status."""
    try:
        yield
    except KeyboardInterrupt:
        again = shlex.join(["meldkit", *sys.argv[1:]])
        # On a terminal the line begins with the ^C that the user typed.
        click.echo(
            "\n" * sys.stderr.isatty() + f"stopped; what is done is kept. To continue: {again}", err=True
        )
        sys.exit(INTERRUPTED)


def announce(chosen: Plan, options: MergeOptions) -> None:
    """Warnings and notes, before the work begins."""
    for line in chosen.warnings:
        click.secho("warning: ", fg="yellow", nl=False, err=True)
        click.echo(line, err=True)
    shown = chosen.notes if options.verbosity else chosen.notes[:_NOTES]
    notes = [*(options.idle() if options.verbosity else ()), *shown]
    if len(shown) < len(chosen.notes):
        notes.append(f"{len(chosen.notes) - len(shown)} more like these; -v lists them")
    for line in notes:
        click.echo(f"note: {line}", err=True)


def summary(result: MergeResult, code: str) -> None:
    """What was done, how fast, where it is, and what to do next: a line of Python."""
    plan = result.plan
    traffic = result.bytes_read + result.bytes_written
    peak = _peak_memory()
    if result.discarded:
        click.echo("unfinished work for another recipe or other inputs was in the folder and was thrown away")
    if result.num_resumed:
        click.echo(f"continued: {result.num_resumed} of {len(plan.jobs)} tensors were already done")
    click.echo(
        f"merged {len(plan.jobs)} tensors, {text_size(result.bytes_written)}, in {result.seconds:.1f} s "
        f"({text_size(traffic / result.seconds)}/s), peak memory {text_size(peak)}"
    )
    click.echo(checked(result.verification))
    click.echo(f"written to {result.path}")
    # Double quotes read better; they are not enough where the shell looks into them.
    quoted = shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'
    click.echo(f"try it: python -c {quoted}")


def checked(verification: Verification) -> str:
    """What was verified, as one line."""
    found = verification
    parts = [f"{count(found.num_tensors, 'tensor')} in {count(found.num_files, 'file')}", "shapes, types"]
    if not found.nonfinite:
        parts.append("all finite")
    fitting = [
        word
        for word, number in (("config", found.num_facts), ("tokenizer", found.num_tokens or found.num_ids))
        if number
    ]
    if fitting:
        parts.append(f"{' and '.join(fitting)} fit{'s' * (len(fitting) == 1)}")
    return f"checked: {', '.join(parts)}"


def _peak_memory() -> int:
    """Bytes; on Linux of this program alone, where the usual number begins with that of who started it."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        # In KiB, but in bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _first_steps(result: MergeResult) -> str:
    """A line of Python that uses the new model."""
    path = str(result.path)
    config = result.plan.config
    if config is None:
        name = str(result.path / result.plan.files[0].name)
        return f"from safetensors import safe_open; print(safe_open({name!r}, 'pt').keys())"
    architecture = " ".join(map(str, config.get("architectures") or ()))
    tokenizer = any((result.path / n).exists() for n in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    if tokenizer and architecture.endswith(("ForCausalLM", "LMHeadModel")):
        call = f"pipeline('text-generation', {path!r})('Hello')[0]['generated_text']"
        return f"from transformers import pipeline; print({call})"
    return f"from transformers import AutoModel; print(AutoModel.from_pretrained({path!r}))"
