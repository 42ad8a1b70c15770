"""Where a tool writes to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from meldkit.checkpoint import folders_here
from meldkit.options import MergeOptions
from meldkit.output import check_folder, check_free
from meldkit.recipe import ModelRef


def check_target(out: Path, inputs: Sequence[ModelRef], options: MergeOptions) -> None:
    """Check what can be checked of an output before a tool does its work; `merge` does it again.

    Args:
        out: the folder to write.
        inputs: models that it must not be part of. Those of the hub are looked at when they are open.
        options: as for `merge`.

    Raises:
        OutputError: it cannot be used, is not empty, or is part of an input.
    """
    # An input's folder is not empty either, and should not be overwritten.
    check_free(out, overwrite=True)
    for folder, label in folders_here(inputs).items():
        check_folder(out, folder, label)
    check_free(out, overwrite=options.overwrite)
