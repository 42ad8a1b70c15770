"""Exact byte ranges of files, read by many threads at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, TypeVar

import numpy as np

from meldkit.checkpoint.ahead import CAN_TELL, PIECE, Ahead, main_memory
from meldkit.checkpoint.dtypes import DTYPES
from meldkit.errors import CheckpointError, MeldError, RunError
from meldkit.kernels import stored
from meldkit.shapes import Float32, Tensor

T = TypeVar("T")

#: Part of the main memory that inputs may take of the page cache; of larger ones it keeps nothing.
_SHARE = 0.5


class OpenFiles:
    """Open descriptors, one per file, shared by all threads (positional reads need no lock).

    `bytes_read` counts every byte asked for, so that plans can be shown to read none.
    """

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._aheads: dict[Path, Ahead] = {}
        self._forgets = False
        self._lock = Lock()
        self._begun = Event()
        self._advising: Thread | None = None
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

        Whoever calls this has something else to wait for before that, such as the import of torch, and will
        read these files and no others. If they are large beside the main memory, what was brought into the
        page cache for that does not stay there.
        """
        if not CAN_TELL:
            return
        # What cannot be read is said by whoever reads it.
        with suppress(OSError):
            sizes = {path: path.stat().st_size for path in paths}
            self._forgets = sum(sizes.values()) > _SHARE * main_memory()
            if self._advising is None and sizes:
                self._advising = Thread(target=self._advise, args=(sizes,), name="ahead", daemon=True)
                self._advising.start()

    def _advise(self, sizes: Mapping[Path, int]) -> None:
        with suppress(MeldError):
            for offset in range(0, max(sizes.values()), PIECE):
                for path, size in sizes.items():
                    if self._begun.is_set():
                        return
                    self.ahead(path).bring(offset, min(offset + PIECE, size), lambda _: self._begun.is_set())

    def ahead(self, path: Path) -> Ahead:
        """Of a file, for those who go through it together."""
        descriptor = self.descriptor(path)
        with self._lock:
            if path not in self._aheads:
                self._aheads[path] = Ahead(descriptor, forgets=self._forgets)
            return self._aheads[path]

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
            end = min(offset + done, os.fstat(self._descriptor(path)).st_size)
            raise CheckpointError(
                f"{path} ends at byte {end:,}; its data was wanted up to byte {offset + wanted:,}",
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
        if self._advising is not None:
            self._advising.join()
        with self._lock:
            for ahead in self._aheads.values():
                ahead.close()
            self._aheads.clear()
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
