"""Folders of our own that an earlier run may have left, and what may lie there instead.

Whatever is in them is written over or thrown away. So what stands under their names and was not put there by
a merge is refused before anything is touched: a link, another user's folder, files of some other program.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from meldkit.errors import OutputError
from meldkit.output.journal import read_journal
from meldkit.output.replace import JOURNAL, aside
from meldkit.paths import PARTIAL

_HINT = "look at it and remove it by hand, or name another output"


def check_own(out: Path) -> None:
    """Check that what lies under the names of our folders, in and beside an output, is ours.

    Raises:
        OutputError: it is not.
        OSError: it cannot be looked at.
    """
    _check_partial(out / PARTIAL, out)
    beside = aside(out)
    if beside.is_file() and not beside.is_symlink():
        return  # then nothing is put beside the output, and files are replaced one by one
    names = own_names(beside, out)
    if PARTIAL in names:
        # It holds the earlier model, with all that was in its folder; or nothing else any more.
        if not _check_partial(beside / PARTIAL, out):
            _check_known(beside, names, {PARTIAL})
    else:
        _check_known(beside, names, read_journal(out / PARTIAL / JOURNAL).publish)


def check_links(out: Path) -> None:
    """Check that an output can be made under its name.

    Raises:
        OutputError: it, or a folder above it, is a link that leads nowhere, or round in a circle.
    """
    for path in (out, *out.parents):
        if path.is_symlink() and not path.exists():
            raise OutputError(
                f"{path} is a link that leads nowhere, to {path.readlink()}",
                hint="remove it, or name another output",
            )


def own_names(folder: Path, out: Path) -> list[str]:
    """The names in a folder of ours; none if it is not there.

    Raises:
        OutputError: it is a link or a file, or belongs to another user.
        OSError: it cannot be looked at.
    """
    try:
        status = folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return []
    if not stat.S_ISDIR(status.st_mode):
        kind = "a link" if stat.S_ISLNK(status.st_mode) else "not a folder"
        raise OutputError(f"{folder} is {kind}, and meldkit needs a folder of its own there", hint=_HINT)
    owners = {os.geteuid(), *([out.stat().st_uid] if out.exists() else [])}
    if status.st_uid not in owners:
        raise OutputError(
            f"{folder} belongs to another user (number {status.st_uid})",
            hint="name an output in a folder that others cannot write to",
        )
    return sorted(path.name for path in folder.iterdir())


def check_names(folder: Path, out: Path, known: Collection[str]) -> None:
    """Check that a folder of ours holds nothing but these.

    Raises:
        OutputError: it holds more, is a link or a file, or belongs to another user.
        OSError: it cannot be looked at.
    """
    _check_known(folder, own_names(folder, out), known)


def _check_known(folder: Path, names: Collection[str], known: Collection[str]) -> None:
    others = [name for name in names if name not in known]
    if others:
        raise OutputError(
            f"{folder} has {', '.join(others[:3])}{' …' * (len(others) > 3)}, which no merge has left there",
            hint=_HINT,
        )


def _check_partial(partial: Path, out: Path) -> bool:
    """Check a folder of unfinished work; whether there is a journal in it.

    Wherever a link or the second name of a file leads, it would be written there.
    """
    names = own_names(partial, out)
    if JOURNAL not in names:
        _check_known(partial, names, ())
        return False
    for root, folders, files in os.walk(partial):
        for path in (Path(root, name) for name in sorted((*folders, *files))):
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            if kind not in (stat.S_IFDIR, stat.S_IFREG):
                what = "a link" if kind == stat.S_IFLNK else "a pipe or a device"
                raise OutputError(f"{path} is {what}, which no merge has left there", hint=_HINT)
            # A complete model whose weights are used again shares them.
            shared = out / path.relative_to(partial)
            if kind == stat.S_IFREG and status.st_nlink > 1 and not _same(shared, status):
                raise OutputError(f"{path} has a second name elsewhere (a hard link)", hint=_HINT)
    return True


def _same(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.lstat(), status)
    except OSError:
        return False
