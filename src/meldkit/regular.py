"""Opening files under whose names others may have put something else: a pipe, a device, a link."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

#: Bytes that are read at a time.
_PIECE = 1 << 20


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file; never waits, as opening a named pipe does until somebody writes to it.

    Args:
        path: the file.
        flags: as for `os.open`; with `os.O_NOFOLLOW`, its name must not be a link.

    Raises:
        OSError: it cannot be opened, or is something else than a file.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, limit: int = -1) -> bytes:
    """The bytes of a file, at most `limit` of them unless that is negative.

    Raises:
        OSError: it cannot be read, or is something else than a file.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read(limit)


def read_start(path: Path, limit: int) -> str:
    """The beginning of a text in UTF-8, of `limit` bytes, whatever its ends of lines are.

    Raises:
        OSError: it cannot be read, or is something else than a file.
    """
    return read_regular(path, limit).decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, which is never in memory as a whole.

    Raises:
        OSError: it cannot be read, or is something else than a file.
    """
    hasher = hashlib.sha256()
    with os.fdopen(open_regular(path), "rb") as file:
        while data := file.read(_PIECE):
            hasher.update(data)
    return hasher.hexdigest()
