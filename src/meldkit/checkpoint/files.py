"""Exact byte ranges of files, read by many threads at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread

import numpy as np

from meldkit import kernels
from meldkit.checkpoint.dtypes import DTYPES
from meldkit.errors import CheckpointError, RunError
from meldkit.shapes import Float32, Tensor

#: Bytes that the system is told of at a time, before they are asked for.
_AHEAD = 4 * 2**20


class OpenFiles:
    """Open descriptors, one per file, shared by all threads (positional reads need no lock).

    `bytes_read` counts every byte asked for, so that plans can be shown to read none.
    """

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._lock = Lock()
        self._begun = Event()
        self._ahead: Thread | None = None
        self.bytes_read = 0

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
            sizes = {self.descriptor(path): path.stat().st_size for path in paths}
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
            fd = self.descriptor(path)
            while done < len(buffer) and (got := os.preadv(fd, [buffer[done:]], offset + done)):
                done += got
        self._account(path, offset, done, len(buffer))

    def read_bfloat16(self, path: Path, offset: int, out: Float32[Tensor, " n"]) -> None:
        """Fill `out` with the bfloat16 numbers that lie in `path` from `offset` on.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        with self._failures(path, offset):
            done = kernels.read_bfloat16(self.descriptor(path), offset, out)
        self._account(path, offset, done, 2 * len(out))

    def read_floats(self, path: Path, offset: int, dtype: str, out: np.ndarray) -> None:
        """Fill `out`, float32, with the numbers of a type that lie in `path` from `offset` on.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        with self._failures(path, offset):
            done = kernels.read_floats(self.descriptor(path), offset, dtype, out)
        self._account(path, offset, done, DTYPES[dtype].itemsize * len(out))

    def read_runs(self, path: Path, offsets: np.ndarray, out: Tensor) -> None:
        """Fill the rows of `out`, uint8 `[n, bytes]`, with those that lie in `path` from `offsets` on, int64.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        first = int(offsets[0])
        with self._failures(path, first):
            done = kernels.read_runs(self.descriptor(path), offsets, out)
        self._account(path, first, done, out.numel())

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

    def _account(self, path: Path, offset: int, done: int, wanted: int) -> None:
        if done < wanted:
            raise CheckpointError(
                f"{path} ends at byte {offset + done:,}, {wanted - done:,} bytes too early",
                hint="the file changed after it was opened; make it whole and run the command again",
            )
        self.account(done)

    def account(self, nbytes: int) -> None:
        """Count bytes that were read through a descriptor."""
        self._begun.set()
        with self._lock:
            self.bytes_read += nbytes

    def descriptor(self, path: Path) -> int:
        """The open file; for reading only.

        Raises:
            OSError: it cannot be opened.
        """
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


@contextmanager
def open_files() -> Generator[OpenFiles]:
    """An `OpenFiles` that is closed at the end of the block."""
    files = OpenFiles()
    try:
        yield files
    finally:
        files.close()
