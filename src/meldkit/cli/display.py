"""Live progress and sizes in words."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meldkit.api import Status

#: Seconds between lines when there is no terminal to draw on.
_LINE_INTERVAL = 5.0


def text_size(num_bytes: float) -> str:
    """A number of bytes for people, in decimal units."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} GB"


def count(number: int, noun: str) -> str:
    """A number of things, such as "1 layer" or "2 layers"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows with their columns under each other."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


@contextmanager
def show_progress(*, enabled: bool) -> Generator[Callable[[Status], None] | None]:
    """A callback for `merge` that draws a bar on a terminal and writes lines elsewhere; None if disabled."""
    if not enabled:
        yield None
    elif sys.stderr.isatty():
        with _bar() as update:
            yield update
    else:
        yield _lines()


@contextmanager
def _bar() -> Generator[Callable[[Status], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task("", total=None)

        def update(status: Status) -> None:
            display.update(task, completed=status.done, total=status.total, description=status.tensor)

        yield update


def _lines() -> Callable[[Status], None]:
    started = last = time.monotonic()

    def update(status: Status) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _LINE_INTERVAL or not status.done:
            return
        last = now
        speed = status.done / (now - started)
        left = (status.total - status.done) / speed
        print(
            f"{status.done / status.total:4.0%}  {text_size(status.done)} of {text_size(status.total)}  "
            f"{text_size(speed)}/s  {left:.0f} s left  {status.tensor}",
            file=sys.stderr,
            flush=True,
        )

    return update
