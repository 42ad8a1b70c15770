"""The inputs, as an output sees them: it keeps apart from them, and is of one state of their files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from meldkit.errors import CheckpointError, OutputError
from meldkit.plan import Plan, stored_inputs


def check_apart(path: Path, plan: Plan) -> None:
    """Refuse to write into an input's folder, below or above it: inputs are never changed."""
    for checkpoint in stored_inputs(plan):
        folders = [checkpoint.folder, *(adapter.folder for adapter in checkpoint.adapters)]
        for folder in (*folders, *(p.resolve().parent for p in checkpoint.files())):
            check_folder(path, folder, checkpoint.label)


def check_folder(path: Path, folder: Path, label: str) -> None:
    """The same of one folder of an input."""
    out, folder = path.resolve(), folder.resolve()
    # A lone weight file may lie in a folder that is not a model's, such as the current one.
    below = folder in out.parents and any((folder / f"{n}config.json").exists() for n in ("", "adapter_"))
    if out == folder or below or out in folder.parents:
        relation = "is" if out == folder else "is inside" if below else "contains"
        raise OutputError(
            f"{path} {relation} the folder of the input '{label}'",
            hint="inputs are never changed; name a folder apart from them",
        )


class Stamp(NamedTuple):
    """What tells that a file is not what it was.

    Attributes:
        size: bytes.
        written: when its bytes were written, in nanoseconds; programs that copy and unpack files set it.
        changed: when anything about it was, be it a link to it: nobody sets that.
    """

    size: int
    written: int
    changed: int

    def same_bytes(self, other: Stamp) -> bool:
        """Whether nobody has written the file, as far as he does not hide it.

        A new name or owner is no reason to give up a merge that runs.
        """
        return self[:2] == other[:2]


def stamps(plan: Plan) -> dict[Path, Stamp]:
    """The stamp of every file that a plan reads."""
    result: dict[Path, Stamp] = {}
    for path in dict.fromkeys(path for checkpoint in stored_inputs(plan) for path in checkpoint.files()):
        try:
            stat = path.stat()
        except OSError as e:
            raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
        result[path] = Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return result


def identity(plan: Plan, stamps: Mapping[Path, Stamp]) -> str:
    """Hash of the plan and of the very files it reads: a replaced file makes earlier work worthless.

    Also one that was given the time of the file before it: to start over costs less than a wrong model.
    """
    hasher = hashlib.sha256(plan.digest().encode())
    for checkpoint in stored_inputs(plan):
        for stamp in map(stamps.__getitem__, checkpoint.files()):
            hasher.update(f"{stamp.size} {stamp.written} {stamp.changed}\n".encode())
    return hasher.hexdigest()
