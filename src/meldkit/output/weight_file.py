"""A weight file of known size that many threads fill in any order."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from meldkit.engine import PAGE
from meldkit.output.journal import sync_data
from meldkit.regular import open_regular

_DIRECT: int = getattr(os, "O_DIRECT", 0)
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW


class WeightFile:
    """Writes past the page cache where the system can: nothing is copied twice, and nothing is left to flush.

    Whole pages go straight to the disk if they lie in memory as in the file; what does not fill a page at
    either end of a write goes through the page cache.

    Args:
        path: created if absent; what it holds is kept.
        size: of the file in bytes. The space is taken at once where the system can.

    Raises:
        OSError: the file cannot be opened, or the disk is too small.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._direct: int | None = None
        self._buffered = open_regular(path, _FLAGS)
        try:
            self._direct = _open_direct(path)
            os.ftruncate(self._buffered, size)
            # Elsewhere glibc would write zeros instead.
            if self._direct is not None and size:
                os.posix_fallocate(self._buffered, 0, size)
        except OSError:
            self.close()
            raise

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes at an offset; called from many threads, for ranges that do not overlap.

        Raises:
            OSError: they could not all be written.
        """
        head = -offset % PAGE
        whole = (len(data) - head) // PAGE * PAGE
        if self._direct is None or whole <= 0 or data.readonly or (_address(data) - offset) % PAGE:
            _write_all(self._buffered, offset, data)
            return
        _write_all(self._buffered, offset, data[:head])
        try:
            _write_all(self._direct, offset + head, data[head : head + whole])
        except OSError as e:
            if e.errno != errno.EINVAL:
                raise
            # The file system takes the flag but not such writes.
            _write_all(self._buffered, offset + head, data[head : head + whole])
        _write_all(self._buffered, offset + head + whole, data[head + whole :])

    def sync(self) -> None:
        """Make durable what has been written."""
        sync_data(self._buffered)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._buffered)
        if self._direct is not None:
            os.close(self._direct)


def _open_direct(path: Path) -> int | None:
    """A descriptor for writing past the page cache; None where there is no such thing."""
    if not _DIRECT:
        return None
    try:
        return open_regular(path, _FLAGS | _DIRECT)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        return None


def _write_all(descriptor: int, offset: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def _address(data: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data))
