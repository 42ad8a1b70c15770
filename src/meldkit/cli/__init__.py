"""The command line: one file per command, each imported when it is called."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from importlib import import_module
from typing import NoReturn, cast

import click
from click.shell_completion import CompletionItem

from meldkit import __version__
from meldkit.cli.lazy import import_when_used
from meldkit.errors import MeldError, RecipeError, did_you_mean, one_line, out_of_memory

#: Exit status when the user stops a merge: like any failure while running, it can be continued.
INTERRUPTED = 4
#: Exit status when files are not what they should be, as for inputs that are damaged.
DIFFERENT = 3

#: Exit status when nobody reads the output any more: what shells give programs that such a pipe ends.
BROKEN_PIPE = 128 + signal.SIGPIPE

#: With this environment variable the shell asks how a command line may go on.
COMPLETE = "_MELDKIT_COMPLETE"

#: Command name → what `meldkit --help` says about it. The file has the same name.
_COMMANDS = {
    "new": "Write a recipe to begin with.",
    "merge": "Merge models as a recipe says.",
    "multi": "Carry out several recipes of one file.",
    "moe": "Make a mixture of experts from several models.",
    "extract-lora": "Make an adapter from a fine-tuned model and its base.",
    "tokensurgeon": "Give a model the tokenizer of another.",
    "layershuffle": "Make a model of layers drawn at random.",
    "prune": "Make a model without some of its layers.",
    "expand": "Make a deeper model by repeating layers.",
    "convert-config": "Write the recipe that an old program's file or options stand for.",
    "verify": "Check that a merged model is what its merge has written.",
    "reproduce": "Run the merge of a model again, and compare.",
    "smoke": "Run a model, and see whether it still works.",
    "pytorch": "Merge weight files of any PyTorch program.",
    "plan": "Show what a recipe would do, without reading a weight.",
    "explain": "Show where the values of a recipe's parameters come from.",
    "inspect": "Show what a model is made of: parts, layers, types.",
    "diff": "Compare the weights of models, and say what that means.",
    "tokenizers": "Compare the tokenizers of models.",
    "methods": "List the merge methods, or explain one.",
    "schema": "Print the JSON Schema of recipes, for editors.",
    "completion": "Print what makes the tab key complete command lines.",
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
        return import_module(f"meldkit.cli.{cmd_name.replace('-', '_')}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise RecipeError(f"unknown command '{args[0]}'", hint=_command_hint(args[0]))
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # click's own would import the file of every command.
        names = [CompletionItem(n, help=text) for n, text in _COMMANDS.items() if n.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

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
    # OpenBLAS, which comes with numpy, starts threads that spin for a while before they sleep. Most commands
    # have no work for them, and would share the processor with them while they start.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    # Names of files and tensors may hold what no encoding can write; JSON reads it back from the escape.
    if isinstance(out := cast("object", sys.stdout), io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")
    if COMPLETE in os.environ:
        import_module("meldkit.cli.completion").register()
    try:
        status = cli.main(args, prog_name="meldkit", standalone_mode=False, color=_color())
        sys.stdout.flush()
    except MeldError as e:
        _print_error(str(e))
        status = e.exit_status
    except click.exceptions.NoArgsIsHelpError as e:
        e.show()
        status = RecipeError.exit_status
    except click.ClickException as e:
        message, hint = _usage_error(e)
        _print_error(str(RecipeError(message, hint=hint)))
        status = RecipeError.exit_status
    except (BrokenPipeError, SystemExit) as e:
        # Completion leaves by itself, and so does click when nobody reads the output any more.
        if isinstance(e, SystemExit) and COMPLETE in os.environ:
            raise
        # Whoever read it has seen enough, as `head` does. What is still to be written would be complained of.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        status = BROKEN_PIPE
    except OSError as e:
        # What reads and writes models has messages of its own; this is the terminal, or what stands for it.
        place = f" to {one_line(str(e.filename))}" if e.filename else ""
        _print_error(f"cannot write{place}: {e.strerror or e}\n  look where the output of this command goes")
        status = MeldError.exit_status
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        status = INTERRUPTED
    except (MemoryError, RuntimeError, ImportError) as e:
        if (full := out_of_memory(e)) is None:
            raise
        _print_error(str(full))
        status = full.exit_status
    gc.freeze()
    gc.enable()
    sys.exit(status)


def _color() -> bool | None:
    """False if nobody wants colours (https://no-color.org), else None: terminals get them, files do not."""
    return False if os.environ.get("NO_COLOR") else None


def _command_hint(name: str) -> str:
    """What to do about a command that there is not."""
    if name.endswith((".yml", ".yaml")):
        return f"meldkit merge {name} OUT, or meldkit plan {name} to see what it would do"
    near = did_you_mean(name, _COMMANDS)
    return near if near.startswith("did") else "meldkit --help lists the commands"


def _usage_error(error: click.ClickException) -> tuple[str, str]:
    """A message and what to do, for a command line that cannot be understood."""
    if isinstance(error, click.BadOptionUsage):
        return f"{error.option_name} needs a value", f"write it after the option: {error.option_name} VALUE"
    context = getattr(error, "ctx", None)
    if context is None:
        return error.format_message(), ""
    command, path = context.command, context.command_path
    usage = " ".join(
        [path, *(p.make_metavar(context) for p in command.params if isinstance(p, click.Argument))]
    )
    match error:
        case click.NoSuchOption(option_name=name):
            return f"{path} has no option '{name}'", _option_hint(name, context)
        case click.MissingParameter(param=click.Argument() as missing):
            return f"{missing.make_metavar(context).strip('[].')} is missing", usage
        case click.MissingParameter(param=click.Option() as missing):
            return f"{missing.opts[0]} is missing", f"{path} --help explains it"
        case click.BadParameter(param=click.Parameter() as bad):
            names = ", ".join(bad.opts) if isinstance(bad, click.Option) else bad.make_metavar(context)
            return f"{names}: {error.message.rstrip('.')}", f"{path} --help explains it"
        case _:
            return error.format_message().rstrip(".").replace("Got unexpected", "unexpected"), usage


def _option_hint(name: str, context: click.Context) -> str:
    """What to do about an option that there is not."""
    from meldkit.cli.arguments import parameters

    params = context.command.get_params(context)
    known = [option for p in params for option in (*p.opts, *p.secondary_opts) if option.startswith("--")]
    near = did_you_mean(name, known)
    if near.startswith("did"):
        return near
    if name.removeprefix("--") in parameters():
        return f"{name.removeprefix('--')} is a parameter; write it under 'parameters:' in the recipe"
    return f"{context.command_path} --help lists the options"


def _print_error(text: str) -> None:
    click.secho("error: ", fg="red", bold=True, nl=False, err=True, color=_color())
    click.echo(text, err=True)
