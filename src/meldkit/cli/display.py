"""Live progress and sizes in words."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from meldkit.errors import one_line

if TYPE_CHECKING:
    from meldkit.api import Status

#: Seconds between lines when there is no terminal to draw on.
_LINE_INTERVAL = 5.0
#: Columns that terminals have at least, and of which a table's last column gets this many at least.
WIDTH = 80
_HALF = 48
#: Columns of a terminal that is too narrow for names and sizes beside a bar.
_NARROW = 70


def text_size(num_bytes: float) -> str:
    """A number of bytes for people, in decimal units."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} GB"


def text_time(seconds: float) -> str:
    """A duration for people, with as many digits as estimates are worth."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def count(number: int, noun: str) -> str:
    """A number of things, such as "1 layer" or "2 layers"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def warn(text: str) -> None:
    """A warning, on standard error."""
    click.secho("warning: ", fg="yellow", nl=False, err=True)
    click.echo(one_line(text), err=True)


def note(text: str) -> None:
    """A note, on standard error."""
    click.echo(f"note: {one_line(text)}", err=True)


def text_of(lines: Iterable[str]) -> str:
    """Lines without colours as one text; none of them can be more than one."""
    return "\n".join(map(one_line, lines))


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows with their columns under each other."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def wrapped(text: str, *, indent: int = 2, hanging: int = 4) -> list[str]:
    """A sentence in lines of at most `WIDTH` columns, where its words allow."""
    return textwrap.wrap(
        one_line(text),
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def wrapped_table(rows: Iterable[Sequence[str]], *, indent: int = 2) -> list[str]:
    """As `table`, with the last column in as many lines as it takes to stay within `WIDTH` columns.

    Where the others leave it too little room, it goes below them.
    """
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    lines: list[str] = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        head = " " * indent + "".join(f"{cell}  " for cell in cells)
        if len(head) + len(row[-1]) <= WIDTH:
            lines.append((head + row[-1]).rstrip())
        elif len(head) <= _HALF:
            first, *rest = wrapped(row[-1], indent=len(head), hanging=len(head))
            lines += [head + first.lstrip(), *rest]
        else:
            lines += [head.rstrip(), *wrapped(row[-1], indent=indent + 4, hanging=indent + 4)]
    return lines


@contextmanager
def show_progress(*, enabled: bool) -> Generator[Callable[[Status], None] | None]:
    """A callback for `merge` that draws a bar on a terminal and writes lines elsewhere; None if disabled."""
    if not enabled:
        yield None
    elif _draws():
        with _bar() as update:
            yield lambda status: update(status.done, status.total, status.tensor)
    else:
        yield _lines()


@contextmanager
def show_bytes(*, enabled: bool) -> Generator[Callable[[int, int, str], None] | None]:
    """The same, called with bytes done, bytes in all, and what is in hand."""
    with show_progress(enabled=enabled) as update:
        if update is None:
            yield None
        else:
            from meldkit.api import Status

            yield lambda done, total, what: update(Status(done, total, what))


@contextmanager
def show_steps(*, enabled: bool) -> Generator[Callable[[int, int, str], None] | None]:
    """The same for work in few steps that take about as long: called with how many are done, of how many, and
    what is next.
    """
    if not enabled:
        yield None
        return
    started = time.monotonic()

    def with_time(done: int, what: str, total: int) -> str:
        each = (time.monotonic() - started) / done if done else 0.0
        return what + f", about {text_time(each * (total - done))} left" * (0 < done < total)

    if _draws():
        with _bar(steps=True) as update:
            yield lambda done, total, what: update(done, total, with_time(done, what, total))
    else:
        yield lambda done, total, what: _step(done, total, with_time(done, what, total))


def _draws() -> bool:
    """Whether standard error is a terminal on which a line can be drawn over."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _step(done: int, total: int, what: str) -> None:
    if done < total:
        print(f"{done + 1} of {total}: {one_line(what)}", file=sys.stderr, flush=True)


@contextmanager
def _bar(*, steps: bool = False) -> Generator[Callable[[int, int, str], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column

    console = Console(stderr=True)
    columns: list[ProgressColumn] = [BarColumn(bar_width=None if console.width < _NARROW else 20)]
    if steps:
        columns += [MofNCompleteColumn(), TimeElapsedColumn()]
    elif console.width < _NARROW:
        columns += [TaskProgressColumn(), TimeRemainingColumn(compact=True)]
    else:
        columns += [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True)]
    if console.width >= _NARROW:
        cut = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        columns.append(TextColumn("{task.description}", markup=False, table_column=cut))
    with Progress(*columns, console=console, transient=True, expand=True) as display:
        task = display.add_task("", total=None)

        def update(done: int, total: int, what: str) -> None:
            display.update(task, completed=done, total=total, description=one_line(what))

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
            f"{text_size(speed)}/s  {left:.0f} s left  {one_line(status.tensor)}",
            file=sys.stderr,
            flush=True,
        )

    return update
