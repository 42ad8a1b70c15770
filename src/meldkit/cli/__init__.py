"""The command line: one file per command, each imported when it is called."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import NoReturn

import click

from meldkit import __version__
from meldkit.cli.lazy import import_when_used
from meldkit.errors import MeldError, did_you_mean

#: Exit status when the user stops a merge: like any failure while running, it can be continued.
INTERRUPTED = 4

#: Command name → what `meldkit --help` says about it. The file has the same name.
_COMMANDS = {
    "merge": "Merge models as a recipe says.",
    "smoke": "Run a model, and see whether it still works.",
    "pytorch": "Merge weight files of any PyTorch program.",
    "plan": "Show what a recipe would do, without reading a weight.",
    "explain": "Show where the values of a recipe's parameters come from.",
    "inspect": "Show what a model is made of: parts, layers, types.",
    "diff": "Compare the weights of models, and say what that means.",
    "tokenizers": "Compare the tokenizers of models.",
    "methods": "List the merge methods, or explain one.",
}


class _Commands(click.Group):
    """Knows the commands by name and imports a command's file only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        return import_module(f"meldkit.cli.{cmd_name}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command '{args[0]}'; {did_you_mean(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="meldkit")
def cli() -> None:
    """Merge LLM checkpoints at the speed of copying them, in bounded memory.

    Start with:  meldkit plan recipe.yml  and then  meldkit merge recipe.yml OUT
    """


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line; the process's exit status is 0, 2, 3 or 4 (see `meldkit.errors`)."""
    # What is imported stays to the end. Looking through all of torch for garbage, again and again while it
    # is imported and twice on leaving, takes half a second.
    gc.disable()
    import_when_used("torch")
    try:
        status = cli.main(args, prog_name="meldkit", standalone_mode=False, color=_color())
    except MeldError as e:
        _print_error(str(e))
        status = e.exit_status
    except click.ClickException as e:
        e.show()
        status = e.exit_code
    except OSError as e:
        # What reads and writes models has messages of its own; this is the terminal, or what stands for it.
        place = f" to {e.filename}" if e.filename else ""
        _print_error(f"cannot write{place}: {e.strerror or e}\n  look where the output of this command goes")
        status = MeldError.exit_status
    except click.Abort:
        click.echo("stopped", err=True)
        status = INTERRUPTED
    gc.freeze()
    gc.enable()
    sys.exit(status)


def _color() -> bool | None:
    """False if nobody wants colours (https://no-color.org), else None: terminals get them, files do not."""
    return False if os.environ.get("NO_COLOR") else None


def _print_error(text: str) -> None:
    click.secho("error: ", fg="red", bold=True, nl=False, err=True, color=_color())
    click.echo(text, err=True)
