"""Exact byte ranges of files, read by many threads at once."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread, local
from typing import Any, TypeVar

import numpy as np

from meldkit.checkpoint.dtypes import DTYPES
from meldkit.errors import CheckpointError, RunError
from meldkit.kernels import stored
from meldkit.shapes import Float32, Tensor

T = TypeVar("T")

#: Bytes that the system is told of at a time, before they are asked for.
_AHEAD = 4 * 2**20
_DIRECT: int = getattr(os, "O_DIRECT", 0)


class OpenFiles:
    """Open descriptors, one per file, shared by all threads (positional reads need no lock).

    `bytes_read` counts every byte asked for, so that plans can be shown to read none.
    """

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._direct: dict[Path, int | None] = {}
        self._lock = Lock()
        self._begun = Event()
        self._ahead: Thread | None = None
        self._kept: dict[Hashable, Any] = {}
        self.bytes_read = 0

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What readers share for as long as the files are open: made by the first who asks for it."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            return self._kept[key]

    def read_ahead(self, paths: Iterable[Path]) -> None:
        """Have the system read files, a piece of each in turn, until somebody asks for bytes of them.

        Whoever calls this has something else to wait for before that, such as the import of torch.
        """
        if self._ahead is None and hasattr(os, "posix_fadvise"):
            self._ahead = Thread(target=self._advise, args=(list(paths),), name="ahead", daemon=True)
            self._ahead.start()

    def _advise(self, paths: Sequence[Path]) -> None:
        # What cannot be read is said by whoever reads it.
        with suppress(OSError):
            sizes = {self._descriptor(path): path.stat().st_size for path in paths}
            for offset in range(0, max(sizes.values(), default=0), _AHEAD):
                for fd, size in sizes.items():
                    if self._begun.is_set():
                        return
                    if offset < size:
                        os.posix_fadvise(fd, offset, _AHEAD, os.POSIX_FADV_WILLNEED)

    def read_into(self, path: Path, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `path` from `offset` on.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        done = 0
        with self._failures(path, offset):
            fd = self._descriptor(path)
            while done < len(buffer) and (got := os.preadv(fd, [buffer[done:]], offset + done)):
                done += got
        self.account(path, offset, done, len(buffer))

    def read_once(self, path: Path, offset: int, buffer: memoryview) -> None:
        """As `read_into`, for bytes that nobody will read again.

        What is not in the system's page cache is read past it where that can be done, so that what others
        will want is not pushed out.
        """
        with self._failures(path, offset):
            cached = stored.cached(self._descriptor(path), offset, len(buffer))
        if cached or not self._read_past_cache(path, offset, buffer):
            self.read_into(path, offset, buffer)
        else:
            self.account(path, offset, len(buffer), len(buffer))

    def _read_past_cache(self, path: Path, offset: int, buffer: memoryview) -> bool:
        """Whole pages to page-aligned memory, as such reads must be; whether that could be done."""
        descriptor = self._direct_descriptor(path)
        if descriptor is None:
            return False
        skip = offset % mmap.PAGESIZE
        wanted = skip + len(buffer)
        room = _aligned.take(-(-wanted // mmap.PAGESIZE) * mmap.PAGESIZE)
        with suppress(OSError):  # the file system will not; or shows again in what follows
            if os.preadv(descriptor, [room], offset - skip) >= wanted:
                buffer[:] = room[skip:wanted]
                return True
        return False

    def _direct_descriptor(self, path: Path) -> int | None:
        """The file opened for reading past the page cache; None where that is not known to be good.

        Disks gain by it. What network file systems make of it is another matter.
        """
        with self._lock:
            if path not in self._direct:
                self._direct[path] = _open_direct(path)
            return self._direct[path]

    def read_bfloat16(self, path: Path, offset: int, out: Float32[Tensor, " n"]) -> None:
        """Fill `out` with the bfloat16 numbers that lie in `path` from `offset` on.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        with self._failures(path, offset):
            done = stored.read_bfloat16(self._descriptor(path), offset, out)
        self.account(path, offset, done, 2 * len(out))

    def read_floats(self, path: Path, offset: int, dtype: str, out: np.ndarray) -> None:
        """Fill `out`, float32, with the numbers of a type that lie in `path` from `offset` on.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        with self._failures(path, offset):
            done = stored.read_floats(self._descriptor(path), offset, dtype, out)
        self.account(path, offset, done, DTYPES[dtype].itemsize * len(out))

    def read_runs(self, path: Path, offsets: np.ndarray, out: Tensor) -> None:
        """Fill the rows of `out`, uint8 `[n, bytes]`, with those that lie in `path` from `offsets` on, int64.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        first = int(offsets[0])
        with self._failures(path, first):
            done = stored.read_runs(self._descriptor(path), offsets, out)
        self.account(path, first, done, out.numel())

    @contextmanager
    def _failures(self, path: Path, offset: int) -> Generator[None]:
        try:
            yield
        except OSError as e:
            message = f"cannot read {path} at byte {offset:,}: {e.strerror}"
            again = "run the same command again to continue"
            if e.errno in (errno.EMFILE, errno.ENFILE):
                raise RunError(message, hint=f"raise the limit with 'ulimit -n', and {again}") from e
            raise CheckpointError(message, hint=f"what is done is kept; {again}") from e

    def account(self, path: Path, offset: int, done: int, wanted: int) -> None:
        """Of `wanted` bytes from `offset` on, `done` were read.

        Raises:
            CheckpointError: these are fewer.
        """
        if done < wanted:
            raise CheckpointError(
                f"{path} ends at byte {offset + done:,}, {wanted - done:,} bytes too early",
                hint="the file changed after it was opened; make it whole and run the command again",
            )
        self._begun.set()
        with self._lock:
            self.bytes_read += done

    def descriptor(self, path: Path) -> int:
        """An open descriptor of the file, which stays open.

        Raises:
            CheckpointError: the file cannot be opened.
        """
        with self._failures(path, 0):
            return self._descriptor(path)

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            fd = self._descriptors.get(path)
            if fd is None:
                fd = self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return fd

    def close(self) -> None:
        """Close every descriptor."""
        self._begun.set()
        if self._ahead is not None:
            self._ahead.join()
        with self._lock:
            for fd in self._descriptors.values():
                os.close(fd)
            self._descriptors.clear()
            for fd in self._direct.values():
                if fd is not None:
                    os.close(fd)
            self._direct.clear()


def _open_direct(path: Path) -> int | None:
    try:
        device = path.stat().st_dev
        if not _DIRECT or not Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").exists():
            return None
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | _DIRECT)
    except OSError:
        return None  # what is wrong with the file shows when it is read the usual way


class _Aligned(local):
    """A thread's memory for such reads."""

    def __init__(self) -> None:
        self._room = mmap.mmap(-1, mmap.PAGESIZE)

    def take(self, nbytes: int) -> memoryview:
        """Some that begins at a page."""
        if len(self._room) < nbytes:
            self._room = mmap.mmap(-1, nbytes)
        return memoryview(self._room)[:nbytes]


_aligned = _Aligned()


@contextmanager
def open_files() -> Generator[OpenFiles]:
    """An `OpenFiles` that is closed at the end of the block."""
    files = OpenFiles()
    try:
        yield files
    finally:
        files.close()
