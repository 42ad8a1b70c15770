"""Replacing a model by another in one step: under its name there is always a complete one.

    OUT/                          the old model, and
    OUT/.meldkit-partial/journal  which says that files are being moved
    .OUT.meldkit-new/             beside it, the new model

The two folders trade places, so that the old one, with the journal, is under the new one's name. What in it
is not the model's then moves back, and the rest is removed. A run that finds the second folder goes on from
there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from meldkit.output.names import FOLDERS, describes_model
from meldkit.paths import PARTIAL

JOURNAL = "journal"
#: The system's function, what it takes for the current folder, and its flag; from the systems' headers.
_EXCHANGE = {"linux": ("renameat2", -100, 2), "darwin": ("renameatx_np", -2, 2)}


def aside(path: Path) -> Path:
    """Where the new model waits for the place of the old one; on the same disk, hence beside it."""
    real = path.resolve()
    return real.with_name(f".{real.name}.meldkit-new")


def replaced(folder: Path, new: Collection[str]) -> list[Path]:
    """What of an earlier model readers would take for the new one's, config.json first.

    Args:
        folder: where the earlier model is.
        new: names in the new model's folder.
    """
    found = [
        p
        for p in folder.iterdir()
        if p.name == "config.json"
        or (p.name not in new and (p.name in FOLDERS or (p.is_file() and describes_model(p.name))))
    ]
    return sorted(found, key=lambda p: (p.name != "config.json", p.name))


def replace_model(path: Path, new: Collection[str]) -> bool:
    """Put the model that lies in `path / PARTIAL` in the place of the one in `path`.

    Args:
        path: the folder; its journal says which files are moved.
        new: names of the new model's files and folders.

    Returns:
        False if the system, the disk or the place does not allow it; then nothing has changed.

    Raises:
        OSError: the new model is in its place, but the old one could not be removed.
    """
    real, beside = path.resolve(), aside(path)
    if real in (here := Path.cwd(), *here.parents):  # who stands in the old folder would stay in it
        return False
    try:
        beside.mkdir()
    except OSError:
        return False
    try:
        shutil.copystat(real, beside)
        status = real.stat()
        os.chown(beside, status.st_uid, status.st_gid)
        for name in new:
            (path / PARTIAL / name).rename(beside / name)
        sync_path(beside)
        exchange(real, beside)
    except OSError:
        take_back(path)
        return False
    with suppress(PermissionError):
        sync_path(real.parent)
    finish(path, new)
    return True


def exchanged(path: Path) -> bool:
    """Whether an earlier run was stopped after the new model had taken its place."""
    return (aside(path) / PARTIAL / JOURNAL).exists()


def finish(path: Path, new: Collection[str]) -> None:
    """After the exchange: what is not the model's moves to the new folder, and the old model goes."""
    beside = aside(path)
    old = {p.name for p in replaced(beside, new)} | set(new)
    for source in sorted(beside.iterdir()):
        if source.name in old:
            remove(source)
        elif source.name != PARTIAL:
            source.rename(path / source.name)


def take_back(path: Path) -> None:
    """Before the exchange, or after all is over: move the new model's files back and leave nothing beside."""
    beside = aside(path)
    if not beside.is_dir():
        return
    for source in sorted(beside.iterdir()):
        if source.name == PARTIAL:
            source.rmdir()
        else:
            source.rename(path / PARTIAL / source.name)
    beside.rmdir()


def exchange(first: Path, second: Path) -> None:
    """Let two folders trade places, at once.

    Raises:
        OSError: the system, or this disk, cannot do that.
    """
    name, here, flag = _EXCHANGE.get(sys.platform, ("", 0, 0))
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(here, os.fsencode(first), here, os.fsencode(second), ctypes.c_uint(flag)):
        raise OSError(number := ctypes.get_errno(), os.strerror(number), str(first))


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_path(path: Path) -> None:
    """Make a file's content, or a folder's list of names, durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
