"""The tab key: what shells are told, how fast, and bash for real."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

import command
from meldkit.cli import cli
from meldkit.methods import METHODS


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some recipes and folders, and a model in the hub's cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / ".hub"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    for name in ("a", "b", "my dir", ".hub/hub/models--org--name-7b"):
        Path(name).mkdir(parents=True)
    for name in ("recipe.yml", "other.yaml", "notes.txt", "model.gguf", "my dir/inner.yml"):
        Path(name).touch()
    return tmp_path


def told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, shell: str = "bash"
) -> list[str]:
    """What a shell is told for a command line whose last word is being typed."""
    monkeypatch.setenv("_MELDKIT_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(re.split(r"(?<!\\) ", line)) - 1))
    done = command.run(capsys)
    assert (done.status, done.err) == (0, "")
    return [line for line in done.out.splitlines() if line]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("meldkit me", ["plain,merge", "plain,methods"]),
        ("meldkit --ver", ["plain,--version"]),
        ("meldkit merge ", ["path,other.yaml", "path,recipe.yml", "path,a", "path,b", "path,my dir"]),
        ("meldkit merge rec", ["path,recipe.yml"]),
        ("meldkit merge nothing/", []),
        (r"meldkit plan my\ dir/", ["path,my dir/inner.yml"]),
        ("meldkit merge recipe.yml ", ["path,a", "path,b", "path,my dir"]),
        ("meldkit merge --random", ["plain,--random-seed"]),
        ("meldkit inspect ", ["path,model.gguf", "plain,org/name-7b", "path,a", "path,b", "path,my dir"]),
        ("meldkit diff a --base o", ["plain,org/name-7b"]),
        ("meldkit tokenizers org", ["plain,org/name-7b"]),
        ("meldkit methods dare", ["plain,dare_linear", "plain,dare_ties"]),
        ("meldkit new mod", ["plain,model_stock"]),
        ("meldkit new linear mod", ["path,model.gguf"]),
        ("meldkit new --suggest mod", ["path,model.gguf"]),
        ("meldkit completion z", ["plain,zsh"]),
    ],
)
def test_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, words: list[str]
) -> None:
    assert told(monkeypatch, capsys, line) == words


def test_home(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert told(monkeypatch, capsys, "meldkit merge ~/re") == ["path,~/recipe.yml"]


def test_other_shells_list_folders_themselves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(monkeypatch, capsys, "meldkit merge re", "zsh") == [
        "plain",
        "recipe.yml",
        "_",
        "dir",
        "re",
        "_",
    ]


def test_all_methods_are_known(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ours = [f"plain,{m.name}" for m in METHODS.values() if m.function.__module__.startswith("meldkit.")]
    assert told(monkeypatch, capsys, "meldkit methods ") == ours


def test_every_argument_can_be_completed() -> None:
    """Words that only the user knows are none of the arguments of commands."""
    with click.Context(cli) as ctx:
        for name in cli.list_commands(ctx):
            file = cli.get_command(ctx, name)
            assert file is not None
            for param in file.params:
                if isinstance(param, click.Argument):
                    items = param.shell_complete(ctx, "")
                    assert items, f"meldkit {name} {param.human_readable_name}"


@pytest.mark.parametrize("line", ["meldkit m", "meldkit merge rec", "meldkit new ti", "meldkit inspect o"])
def test_nothing_is_imported_that_takes_time(line: str) -> None:
    code = (
        "import sys\nfrom meldkit.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch._C', 'numpy', 'yaml', 'pydantic', 'rich', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    env = {**os.environ, "_MELDKIT_COMPLETE": "bash_complete", "COMP_WORDS": line}
    env["COMP_CWORD"] = str(len(line.split()) - 1)
    started = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, env=env, stdout=subprocess.DEVNULL)
    ended = os.times()
    # Of the processor, which does not count who else uses this machine.
    assert ended.children_user + ended.children_system - started.children_user - started.children_system < 0.5


@pytest.mark.parametrize(
    ("shell", "line"), [("bash", "complete "), ("zsh", "#compdef "), ("fish", "complete ")]
)
def test_scripts(capsys: pytest.CaptureFixture[str], shell: str, line: str) -> None:
    done = command.run(capsys, "completion", shell)
    assert (done.status, done.err) == (0, "")
    assert f"_MELDKIT_COMPLETE={shell}_complete" in done.out
    assert any(each.startswith(line) and "meldkit" in each for each in done.out.splitlines())


def test_bash_for_real(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Keys are typed into a shell on a terminal; what it makes of them is read back."""
    Path(".script").write_text(command.run(capsys, "completion", "bash").out)
    main, terminal = pty.openpty()
    env = {**os.environ, "PS1": "> ", "TERM": "dumb", "HOME": str(folder)}
    env["PATH"] = f"{command.SCRIPT.parent}:{env['PATH']}"
    shell = subprocess.Popen(
        ["bash", "--norc", "-i"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=env,
        start_new_session=True,
    )

    def until(text: str) -> str:
        seen, end = "", time.monotonic() + 30
        while text not in seen and time.monotonic() < end:
            if select.select([main], [], [], 0.1)[0]:
                seen += os.read(main, 4096).decode()
        assert text in seen, seen
        return seen

    try:
        os.write(main, b". ./.script; echo rea''dy\n")
        until("ready\r\n> ")
        for typed, expected in {
            "meldkit mer\t": "meldkit merge ",
            "rec\t": "recipe.yml ",
            "my\t": r"my\ dir/",
            " --rand\t": "--random-seed ",
        }.items():
            os.write(main, typed.encode())
            until(expected)
    finally:
        shell.kill()
        shell.wait()
        os.close(main)
        os.close(terminal)
