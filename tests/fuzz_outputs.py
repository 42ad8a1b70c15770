"""Outputs of merges as targets: finished ones that are verified and reproduced, and unfinished ones."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import tiny
from killed import hashes
from meldkit.api import merge
from meldkit.cli import reproduce as reproduce_command
from meldkit.cli import verify as verify_command
from meldkit.errors import MeldError
from meldkit.options import MergeOptions
from meldkit.report import verify_output
from meldkit.tools.reproduce import reproduce

RECIPE: dict[str, Any] = {
    "merge_method": "linear",
    "parameters": {"weight": 0.5},
    "models": [{"model": "a"}, {"model": "b"}],
}
#: Three weight files, and one tensor after the other.
OPTIONS = MergeOptions(num_threads=1, out_shard_size="400")
_EXPECTED, _OUT = Path("expected.json"), Path("out")


def finished() -> None:
    """A merge, with its inputs beside it."""
    for seed, name in enumerate("ab"):
        tiny.decoder(Path(name), seed)
    merge(RECIPE, _OUT, OPTIONS)


def checked(rng: random.Random) -> object:
    """Verify or reproduce an output, in words and as JSON."""
    if rng.random() < 0.6:
        seal()
    check, command = rng.choice(((verify_output, verify_command), (reproduce, reproduce_command)))
    result: Any = check(_OUT)
    "\n".join(command.describe(result)).encode("utf-8", "backslashreplace")
    json.dumps(result.data())
    return result


def seal() -> None:
    """Make the hashes of a record fit what is there, as whoever wants to deceive would."""
    with suppress(OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError):
        path = _OUT / "meldkit.json"
        record = json.loads(path.read_bytes())
        for name, file in record["files"].items():
            raw = (_OUT / name).read_bytes()
            file |= {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        for name, file in record["weights"].items():
            raw = (_OUT / name).read_bytes()
            header = raw[: 8 + int.from_bytes(raw[:8], "little")]
            file |= {"size": len(raw), "header_sha256": hashlib.sha256(header).hexdigest()}
        path.write_text(json.dumps(record))


def stopped() -> None:
    """A merge that was stopped by a full disk, and what it should end in."""
    finished()
    _EXPECTED.write_text(json.dumps(hashes(_OUT)))
    for path in sorted(_OUT.iterdir()):
        path.unlink()
    real, calls = os.pwrite, iter(range(10**6))

    def write(*args: Any) -> int:
        if next(calls) >= 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with mock.patch.object(os, "pwrite", write), suppress(MeldError):
        merge(RECIPE, _OUT, OPTIONS)


def stopped_while_moving() -> None:
    """The same, stopped when some files were in their places."""
    finished()
    _EXPECTED.write_text(json.dumps(hashes(_OUT)))
    for path in sorted(_OUT.iterdir()):
        path.unlink()
    real, calls = Path.rename, iter(range(10**6))

    def rename(path: Path, target: Path) -> Path:
        if next(calls) >= 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, target)

    with mock.patch.object(Path, "rename", rename), suppress(MeldError):
        merge(RECIPE, _OUT, OPTIONS)


def continued(rng: random.Random) -> object:
    """Go on, and compare every byte with an undisturbed merge; whether finished tensors were reused."""
    over = MergeOptions(num_threads=1, out_shard_size="400", overwrite=rng.random() < 0.5)
    result = merge(RECIPE, _OUT, over)
    assert hashes(_OUT) == json.loads(_EXPECTED.read_text())
    return "continued" if result.num_resumed else "started over"
