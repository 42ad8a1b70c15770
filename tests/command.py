"""The command line, called as the console script calls it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from meldkit.cli import main

SCRIPT = Path(sys.executable).with_name("meldkit")


@dataclass(frozen=True)
class Done:
    """How a command ended: exit status and everything that it printed."""

    status: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *args: str | Path) -> Done:
    """A command inside this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in args])
    code = stopped.value.code
    printed = capsys.readouterr()
    return Done(code if isinstance(code, int) else 0 if code is None else 1, printed.out, printed.err)


def start(folder: Path, *args: str | Path, **options: object) -> subprocess.Popen[str]:
    """A command in a process of its own, in a folder."""
    return subprocess.Popen(  # type: ignore[call-overload]
        [SCRIPT, *map(str, args)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
