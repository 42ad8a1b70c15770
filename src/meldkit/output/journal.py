"""The journal of a merge: which plan it is for, which tensors are done, whether files are being moved.

One JSON object per line: `{"plan": hash}` first, `{"done": name, "sums": [sum, …]}` for each tensor whose
bytes are durably on disk, with the sums of what is stored of it, and `"finite": false` if NaN or Inf is among
them, `{"publish": [file, …]}` once everything is, before the first file is moved to its place, and with no
file once all are back. Before each stands the CRC-32 of it and of all before it, in 8 digits: a line that is
torn or garbled, lost, doubled or in another place counts for nothing, nor does what follows.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from meldkit.errors import OutputError, RunError
from meldkit.regular import open_regular

#: Synchronise a file's bytes, and of its metadata only what reading them needs; not every system can.
sync_data = getattr(os, "fdatasync", os.fsync)


@dataclass(frozen=True, slots=True)
class Entries:
    """What a journal says.

    Attributes:
        plan: identity of the plan, "" if there is no journal.
        done: finished tensors by name, and the sums of what is stored of each.
        nonfinite: those among them that hold NaN or Inf.
        publish: names of the files that were about to be moved; empty before that.
        length: bytes of the journal that make sense.
    """

    plan: str = ""
    done: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    nonfinite: frozenset[str] = frozenset()
    publish: tuple[str, ...] = ()
    length: int = 0


def read_journal(path: Path) -> Entries:
    """The entries of a journal; none if there is no such file."""
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            raw = file.read()
    except OSError:
        return Entries()
    plan, done, nonfinite, publish, length, before = "", dict[str, tuple[str, ...]](), set[str](), (), 0, 0
    for line in raw.split(b"\n")[:-1]:
        match _parse(line, before):
            # A name in a pattern is bound even when the condition then fails.
            case {"plan": str(first)} if length == 0:
                plan = first
            case {"done": str(name), **more} if plan:
                # Without sums, as an earlier version entered it, nothing confirms what is on the disk.
                done[name] = _texts(more.pop("sums", None))
                if more == {"finite": False}:
                    nonfinite.add(name)
            # Of files that lie in the folder itself; other names would lead elsewhere.
            case {"publish": [*names]} if plan and all(map(_is_own, names)):
                publish = tuple(map(str, names))
            case _:
                break
        length += len(line) + 1
        before = zlib.crc32(line + b"\n", before)
    return Entries(plan, done, frozenset(nonfinite), publish, length)


def _texts(values: object) -> tuple[str, ...]:
    return tuple(map(str, cast("list[object]", values))) if isinstance(values, list) else ()


def _is_own(name: object) -> bool:
    return isinstance(name, str) and name not in ("", "..") and Path(name).name == name


def _line(text: bytes, before: int) -> bytes:
    """An entry as it is stored.

    Args:
        text: JSON.
        before: CRC-32 of what the journal holds already.
    """
    return b"%08x %s\n" % (zlib.crc32(text, before), text)


def _parse(line: bytes, before: int) -> Any:
    text = line[9:]
    if line + b"\n" != _line(text, before):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


class Journal:
    """An open journal, locked so that two merges cannot write into one folder.

    Args:
        path: the file; it and its folder are created if absent.
        out: whose journal it is, for messages.

    Raises:
        OutputError: another process has it.
    """

    def __init__(self, path: Path, out: Path) -> None:
        self.path = path
        self._out = out
        #: CRC-32 of the file's content.
        self._sum = 0
        self._descriptor = self._open()
        # Who had it before may have removed it between opening and locking, and the folder with it.
        while not self.in_place():
            os.close(self._descriptor)
            self._descriptor = self._open()

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_regular(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            # Some network file systems know no locks; that is no reason to refuse work.
            if e.errno in (errno.EAGAIN, errno.EACCES):
                os.close(descriptor)
                raise OutputError(
                    f"another merge is writing to {self._out}",
                    hint="wait until it has finished, or name another folder",
                ) from None
        return descriptor

    def in_place(self) -> bool:
        """Whether the open file is still the one of its name."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except OSError:
            return False

    def check(self) -> None:
        """Check that nobody took the folder away.

        Raises:
            RunError: somebody did; what is written now is lost.
        """
        if not self.in_place():
            raise RunError(
                f"{self.path.parent} was moved or removed while the merge was writing to it",
                hint="run the same command again",
            )

    def move(self, path: Path) -> None:
        """Give the file another name; it stays locked."""
        self.path = self.path.rename(path)

    def restart(self, plan: str) -> None:
        """Forget everything and begin with this plan."""
        self.cut(0)
        self._append([{"plan": plan}])

    def cut(self, length: int) -> None:
        """Drop what stands beyond the first `length` bytes."""
        os.ftruncate(self._descriptor, length)
        self._sum = zlib.crc32(os.pread(self._descriptor, length, 0))

    def done(self, sums: Mapping[str, Sequence[str]], nonfinite: Collection[str] = ()) -> None:
        """Enter finished tensors by name, with their sums, and which hold NaN or Inf; durable on return."""
        self._append(
            {"done": name, "sums": list(of_it), **({"finite": False} if name in nonfinite else {})}
            for name, of_it in sums.items()
        )

    def publish(self, files: Iterable[str]) -> None:
        """Enter the files that will be moved, or that none is; durable on return."""
        self._append([{"publish": list(files)}])

    def _append(self, entries: Iterable[object]) -> None:
        lines: list[bytes] = []
        for entry in entries:
            lines.append(_line(json.dumps(entry).encode(), self._sum))
            self._sum = zlib.crc32(lines[-1], self._sum)
        data = b"".join(lines)
        while data:
            data = data[os.write(self._descriptor, data) :]
        sync_data(self._descriptor)

    def close(self) -> None:
        """Let go of the file and the lock, if that was not done before."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
