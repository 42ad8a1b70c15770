"""meldkit completion: lets the tab key complete commands, options, methods, recipes and models."""

from __future__ import annotations

import os

import click
from click.shell_completion import (
    CompletionItem,
    ShellComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from meldkit.cli import COMPLETE, cli
from meldkit.cli.arguments import listed

SHELLS = ("bash", "zsh", "fish")


class _Bash(ShellComplete):
    """As click's own, but with files and folders among other words."""

    name = "bash"
    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' line words
    words="${COMP_WORDS[*]}"
    COMPREPLY=()
    for line in $(COMP_WORDS=$words COMP_CWORD=$COMP_CWORD %(complete_var)s=bash_complete "$1"); do
        case ${line%%%%,*} in
            path) compopt -o filenames ;;
            file) compopt -o default; continue ;;
        esac
        COMPREPLY+=("${line#*,}")
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        words = split_arg_string(os.environ["COMP_WORDS"])
        place = int(os.environ["COMP_CWORD"])
        return words[1:place], words[place] if place < len(words) else ""

    def format_completion(self, item: CompletionItem) -> str:
        if item.type == "dir":
            return "\n".join(f"path,{text}" for text, path in listed(item.value) if path.is_dir())
        return f"{'path' if item.path else item.type},{item.value}"


def register() -> None:
    """Use our class for bash."""
    add_completion_class(_Bash)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("shell", type=click.Choice(SHELLS), metavar="SHELL")
def command(shell: str) -> None:
    """Print what makes the tab key complete meldkit's command lines in SHELL: bash, zsh or fish.

    \b
    bash:  meldkit completion bash > ~/.local/share/bash-completion/completions/meldkit
    zsh:   meldkit completion zsh > ~/.zfunc/_meldkit
           with "fpath+=~/.zfunc; autoload -Uz compinit; compinit" in ~/.zshrc
    fish:  meldkit completion fish > ~/.config/fish/completions/meldkit.fish

    It works in new shells. For this one alone:  eval "$(meldkit completion bash)"
    """
    register()
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "meldkit", COMPLETE).source(), nl=False)
