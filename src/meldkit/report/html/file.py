"""Where a report is written, and what is never written over."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from meldkit.errors import OutputError
from meldkit.report.html.page import Page, plotly_js, render

#: How HTML begins, whoever wrote it.
_BEGINNINGS = (b"<!doctype html", b"<html")


def check_html(path: Path, *, created: Path | None = None) -> None:
    """See that a report can be written, before there is one.

    Args:
        path: of the report; an older one is replaced.
        created: folder that will exist by then.

    Raises:
        OutputError: it cannot be written, or what is there is something else than HTML.
        NotSupportedError: plotly is not installed.
    """
    plotly_js()
    if path.is_dir() or (created is not None and path.resolve() == created.resolve()):
        raise OutputError(f"'{path}' is a folder", hint="--html takes the name of the file to write")
    folder = path.parent
    if created is not None and folder.resolve() == created.resolve():
        if path.suffix.lower() not in (".html", ".htm"):
            raise OutputError(
                f"'{path}' may become a file of the model", hint="there the report's name must end in .html"
            )
        return
    if not folder.is_dir():
        raise OutputError(f"there is no folder '{folder}' for the HTML report", hint="make it first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"folder '{folder}' is not writable", hint="name another place for the HTML report")
    if path.exists() and (not path.is_file() or not _is_html(path)):
        raise OutputError(
            f"'{path}' exists and is no HTML file", hint="--html takes the name of the report to write"
        )


def write_html(path: Path, page: Page) -> None:
    """Write a report; it is there as a whole or not at all.

    Raises:
        OutputError: it cannot be written, or what is there is something else than HTML.
        NotSupportedError: plotly is not installed.
    """
    text = render(page)
    check_html(path)
    # A new file that takes the name: what a link or a second name leads to stays as it is.
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            try:
                file.write(text)
                file.flush()
                Path(file.name).chmod(0o666 & ~_umask())
                Path(file.name).replace(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(file.name).unlink()
                raise
    except OSError as e:
        raise OutputError(f"cannot write '{path}': {e.strerror or e}", hint="name another place") from e


def _is_html(path: Path) -> bool:
    """An empty file, which harms nobody to lose, counts as HTML."""
    with path.open("rb") as file:
        start = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return not start or start.startswith(_BEGINNINGS)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
