"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

from meldkit.errors import OutputError

#: The folder below an output that holds what is not finished.
PARTIAL = ".meldkit-partial"


def output_path(out: str | os.PathLike[str]) -> Path:
    """The path of an output; `~` is the home folder, as it is for models in recipes.

    Raises:
        OutputError: it begins with `~` and the name of nobody.
    """
    try:
        return Path(out).expanduser()
    except RuntimeError as e:
        raise OutputError(f"{out} cannot be used as output: {e}", hint="write the whole path") from e
