"""The output folder as a transaction: nothing in it looks like a model until all of it is there.

    OUT/.meldkit-partial/             weight files being filled, and
    OUT/.meldkit-partial/journal      the plan's hash, then the name of each tensor that is durably written

The journal gets a name only after the tensor's bytes have been synced, so that it can be believed
whatever happened. The same plan continues where the journal ends; another plan starts over.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Lock, Thread

from meldkit.checkpoint import read_header
from meldkit.errors import OutputError, RunError
from meldkit.plan import OutputFile, Plan, TensorJob

PARTIAL = ".meldkit-partial"
_JOURNAL = "journal"
#: Seconds between syncs. Writing back while computing leaves little to wait for at the end.
_SYNC_INTERVAL = 0.5
_CONTINUE = "free some space and run the same command again; it continues where it stopped"


class OutputFolder:
    """Takes merged tensors into weight files; a `Sink` of the engine.

    Args:
        path: the folder to fill; created if absent.
        plan: what will be written.
        overwrite: replace a model that is already there.

    Raises:
        OutputError: the folder holds something else.
        RunError: not enough space on the disk.
    """

    def __init__(self, path: Path, plan: Plan, *, overwrite: bool = False) -> None:
        self.path = path
        self.partial = path / PARTIAL
        self._plan = plan
        self._check_free(overwrite)
        digest = _identity(plan)
        self.finished = self._read_journal(digest)
        #: Whether earlier work for another plan was thrown away.
        self.discarded = False
        if not self.finished and self.partial.exists():
            self.discarded = True
            shutil.rmtree(self.partial)
        self._check_space()
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            self._descriptors = [self._open_file(file) for file in plan.files]
            self._journal = os.open(self.partial / _JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            if not self.finished:
                os.write(self._journal, f"{digest}\n".encode())
        except OSError as e:
            raise OutputError(f"cannot write to {self.partial}: {e.strerror}") from e
        self._unsynced: list[str] = []
        self._lock = Lock()
        self._closing = Event()
        self._sync_error: OSError | None = None
        self._syncer = Thread(target=self._sync_regularly, name="sync", daemon=True)
        self._syncer.start()

    def _check_free(self, overwrite: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} is a file", hint="name a folder")
        if not overwrite and self.path.is_dir():
            others = sorted(p.name for p in self.path.iterdir() if p.name != PARTIAL)
            if others:
                raise OutputError(
                    f"{self.path} is not empty: it has {', '.join(others[:3])}{' …' * (len(others) > 3)}",
                    hint="name a new folder, or add --overwrite to replace what is there",
                )

    def _read_journal(self, digest: str) -> frozenset[str]:
        try:
            lines = (
                (self.partial / _JOURNAL).read_text("utf-8").split("\n")[:-1]
            )  # a torn last line is dropped
        except (OSError, UnicodeDecodeError):
            return frozenset()
        paths = [(self._file(f), f.size) for f in self._plan.files]
        intact = all(path.is_file() and path.stat().st_size == size for path, size in paths)
        if not lines or lines[0] != digest or not intact:
            return frozenset()
        return frozenset(json.loads(line) for line in lines[1:])

    def _check_space(self) -> None:
        existing = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        free = shutil.disk_usage(existing).free
        present = sum(
            self._file(f).stat().st_blocks * 512 for f in self._plan.files if self._file(f).exists()
        )
        needed = self._plan.bytes_to_write - present
        if needed > free:
            raise RunError(
                f"the output needs {needed / 1e9:,.2f} GB, "
                f"the disk of {self.path} has {free / 1e9:,.2f} GB free",
                hint=_CONTINUE,
            )

    def _file(self, file: OutputFile) -> Path:
        return self.partial / file.name

    def _open_file(self, file: OutputFile) -> int:
        fd = os.open(self._file(file), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(fd, file.size)
        self._write_at(fd, 0, memoryview(file.header))
        return fd

    def write(self, job: TensorJob, start: int, data: memoryview) -> None:
        """Take the bytes of a run of elements that begins at element `start`."""
        itemsize = job.nbytes // job.numel
        try:
            self._write_at(self._descriptors[job.file], job.offset + start * itemsize, data)
        except OSError as e:
            full = e.errno in (errno.ENOSPC, errno.EDQUOT)
            raise RunError(
                f"cannot write to {self.partial}: {e.strerror}",
                hint=_CONTINUE if full else "run the same command again; it continues where it stopped",
            ) from e

    @staticmethod
    def _write_at(fd: int, offset: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], offset + done)

    def finish(self, job: TensorJob) -> None:
        """All bytes of the tensor have been written; it enters the journal with the next sync."""
        with self._lock:
            self._unsynced.append(job.name)

    def _sync_regularly(self) -> None:
        while not self._closing.wait(_SYNC_INTERVAL):
            try:
                self._sync()
            except OSError as e:  # noqa: PERF203 - one every half second
                self._sync_error = e
                return

    def _sync(self) -> None:
        with self._lock:
            names, self._unsynced = self._unsynced, []
        if names:
            for fd in self._descriptors:
                os.fdatasync(fd)
            os.write(self._journal, "".join(json.dumps(name) + "\n" for name in names).encode())
            os.fdatasync(self._journal)

    def close(self) -> None:
        """Make what is finished durable and let go of the files; the partial work stays.

        Raises:
            RunError: the disk did not take it.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        self._syncer.join()
        try:
            if self._sync_error is not None:
                raise self._sync_error
            self._sync()
        except OSError as e:
            raise RunError(f"cannot write to {self.partial}: {e.strerror}", hint=_CONTINUE) from e
        finally:
            for fd in (*self._descriptors, self._journal):
                os.close(fd)

    def publish(self) -> None:
        """Check the weight files and move everything to its place, config.json last.

        Raises:
            RunError: a file is not what the plan says it should be.
        """
        self.close()
        self._verify()
        (self.partial / _JOURNAL).unlink()
        new = sorted(p.name for p in self.partial.iterdir())
        for old in self._replaced(new):
            old.unlink()
        # A folder without config.json is not a model to any reader.
        for name in sorted(new, key=lambda n: n == "config.json"):
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            (self.partial / name).rename(target)
        self.partial.rmdir()
        _sync_directory(self.path)

    def _replaced(self, new: Sequence[str]) -> list[Path]:
        """Files of an earlier model that readers would take for the new one's."""
        weights = {".safetensors", ".bin", ".gguf"}
        return sorted(
            p
            for p in self.path.iterdir()
            if p.name == "config.json"
            or (p.name not in new and (p.suffix in weights or p.name.endswith(".index.json")))
        )

    def _verify(self) -> None:
        for index, file in enumerate(self._plan.files):
            header = read_header(self._file(file))
            expected = {j.name: (j.dtype, j.shape, j.offset) for j in self._plan.jobs if j.file == index}
            found = {t.name: (t.dtype, t.shape, t.offset) for t in header.tensors.values()}
            if found != expected:
                raise RunError(
                    f"{self._file(file)} does not hold what it should", hint="run the command again"
                )


def _identity(plan: Plan) -> str:
    """Hash of the plan and of the very files it reads: a replaced file makes earlier work worthless."""
    hasher = hashlib.sha256(plan.digest().encode())
    for checkpoint in plan.checkpoints:
        for path in checkpoint.files():
            stat = path.stat()
            hasher.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return hasher.hexdigest()


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
