"""meldkit merge: run a recipe."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meldkit.cli import INTERRUPTED
from meldkit.cli import smoke as smoke_command
from meldkit.cli.arguments import Folder, Recipe
from meldkit.cli.display import count, note, show_progress, text_size, warn
from meldkit.options import MergeOptions
from meldkit.paths import PARTIAL

if TYPE_CHECKING:
    from meldkit.api import MergeResult, Verification
    from meldkit.plan import Plan
    from meldkit.report import SmokeTest

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
@click.argument("recipe", type=Recipe())
@click.argument("out", type=Folder())
@click.option("--smoke", is_flag=True, help="Run the result and its inputs, and warn if it is much worse.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else there.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with plots to this file.")
@with_options
def command(recipe: Path, out: Path, smoke: bool, as_json: bool, html: Path | None, **given: Any) -> None:
    """Merge models as RECIPE (a YAML file, or - for standard input) says, into the new folder OUT.

    Interrupted, it leaves nothing that looks like a model; the same command continues.
    """
    options = MergeOptions(**given)
    loud = not options.quiet
    if not loud:
        # The hub's library draws bars of its own while it downloads.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with interruptible(out):
        from meldkit.api import check_free, devices_of, merge, plan

        check_free(out, overwrite=options.overwrite)
        devices_of(options)
        if html is not None:
            from meldkit.report.html import check_html

            check_html(html, created=out)
        # What would fail, fails before anything is downloaded.
        chosen = plan(recipe, options, headers_only=True)
        if loud:
            announce(chosen, options)
        with show_progress(enabled=loud) as progress:
            result = merge(chosen, out, options, progress=progress)
    # The models of a smoke test take more.
    peak = peak_memory()
    if loud:
        warn_of_values(result)
        if not as_json:
            summary(result, first_steps(result))
    test = test_merge(result, options) if smoke else None
    if test is not None and loud:
        smoke_command.report(test, table_to_stderr=as_json)
    if as_json:
        click.echo(json.dumps(data(result, peak, test), indent=2, ensure_ascii=False))
    if html is not None:
        from meldkit.report.html import merge_page, write_html

        write_html(html, merge_page(result, peak, test))


def test_merge(result: MergeResult, options: MergeOptions) -> SmokeTest:
    """Run the result and the models it was made of."""
    recipe = result.plan.recipe
    # The base comes first, as everything else is compared with it.
    inputs = sorted(recipe.stored_models(), key=lambda ref: ref != recipe.base_model)
    return smoke_command.run(result.path, inputs, options, result.path.absolute().parent)


@contextmanager
def interruptible(out: Path | None = None) -> Generator[None]:
    """Answer Ctrl-C and SIGTERM at once: say how to continue, and leave.

    There is nothing to tidy: what the journal says is on the disk whatever happens, and the rest is done
    again. Waiting for what is in hand, for other threads and for the disk, would take seconds.

    Args:
        out: the folder that is written, which tells whether it has been begun.
    """
    again = shlex.join(["meldkit", *sys.argv[1:]])
    terminal = sys.stderr.isatty()
    # On a terminal: clear the bar and the ^C that the user typed, and show the cursor that bars hide.
    start = "\r\x1b[K\x1b[?25h" if terminal and os.environ.get("TERM") != "dumb" else "\n" * terminal
    # Names of files may have bytes in them that are no text.
    kept = os.fsencode(f"{start}stopped; what is done is kept. To continue: {again}\n")
    nothing = os.fsencode(f"{start}stopped before anything was written. To begin again: {again}\n")
    begun = None if out is None else out.absolute() / PARTIAL

    def stop(*_: object) -> None:
        # Not through objects that the interrupted code may hold the locks of.
        os.write(2, kept if begun is None or begun.exists() else nothing)
        os._exit(INTERRUPTED)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def announce(chosen: Plan, options: MergeOptions) -> None:
    """Warnings and notes, before the work begins."""
    for line in chosen.warnings:
        warn(line)
    shown = chosen.notes if options.verbosity else chosen.notes[:_NOTES]
    notes = [*(options.idle() if options.verbosity else ()), *shown]
    if len(shown) < len(chosen.notes):
        notes.append(f"{len(chosen.notes) - len(shown)} more like these; -v lists them")
    for line in notes:
        note(line)


def warn_of_values(result: MergeResult) -> None:
    """A warning about NaN and Inf in the output."""
    names = result.verification.nonfinite
    if names:
        listed = ", ".join(names[:_NOTES]) + ", …" * (len(names) > _NOTES)
        total = count(result.verification.num_tensors, "tensor")
        warn(f"NaN or Inf in {len(names)} of {total}: {listed}")


def summary(result: MergeResult, code: str) -> None:
    """What was done, how fast, where it is, and what to do next: a line of Python."""
    plan = result.plan
    traffic = result.bytes_read + result.bytes_written
    peak = peak_memory()
    if result.discarded:
        click.echo("unfinished work for another recipe or other inputs was in the folder and was thrown away")
    if result.num_resumed:
        click.echo(f"continued: {result.num_resumed} of {len(plan.jobs)} tensors were already done")
    if result.num_damaged:
        tensors = count(result.num_damaged, "finished tensor")
        click.echo(f"made again: {tensors}, whose bytes on the disk were not what had been written")
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
    files = f" in {count(found.num_files, 'file')}" * (found.num_files > 1)
    finite = "" if found.nonfinite else ", all finite"
    parts = [f"{count(found.num_tensors, 'tensor')}{files} (shapes, types{finite})"]
    parts += ["config"] * bool(found.num_facts) + ["tokenizer"] * bool(found.num_tokens or found.num_ids)
    return f"checked: {', '.join(parts)}"


def data(result: MergeResult, peak: int, test: SmokeTest | None) -> dict[str, Any]:
    """The result as JSON has it."""
    plan = result.plan
    return {
        "path": str(result.path),
        "seconds": result.seconds,
        "bytes_read": result.bytes_read,
        "bytes_written": result.bytes_written,
        "peak_memory": peak,
        "tensors": len(plan.jobs),
        "tensors_resumed": result.num_resumed,
        "tensors_damaged": result.num_damaged,
        "work_discarded": result.discarded,
        "plan": plan.digest(),
        "verification": asdict(result.verification),
        "smoke": None if test is None else test.data(),
        "warnings": list(plan.warnings),
        "notes": list(plan.notes),
    }


def peak_memory() -> int:
    """Bytes; on Linux of this program alone, where the usual number begins with that of who started it."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        # In KiB, but in bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def first_steps(result: MergeResult) -> str:
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
