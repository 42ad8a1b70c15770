"""What the system says while an output is written, in our words."""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from meldkit.errors import OutputError, RunError

AGAIN = "run the same command again; it continues where it stopped"


@contextmanager
def failures(place: Path, *, usage: bool = False) -> Generator[None]:
    """Turn the system's errors into ours; with `usage`, those that waiting does not cure are the user's."""
    try:
        yield
    except OSError as e:
        message = f"cannot write to {place}: {e.strerror}"
        if e.errno == errno.EFBIG:
            hint = "the disk or 'ulimit -f' limits the size of a file; try a smaller --out-shard-size"
            raise RunError(message, hint=hint) from e
        if e.errno in (errno.EMFILE, errno.ENFILE):
            raise RunError(message, hint=f"raise the limit with 'ulimit -n', and {AGAIN}") from e
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(message, hint=f"free some space and {AGAIN}") from e
        if usage and e.errno != errno.EIO:
            raise OutputError(message) from e
        raise RunError(message, hint=AGAIN) from e
