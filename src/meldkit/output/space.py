"""Whether disks have room."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from meldkit.errors import RunError
from meldkit.output.names import size_of
from meldkit.paths import PARTIAL
from meldkit.plan import Plan


def lacking(path: Path, plan: Plan) -> int:
    """Bytes that are still to be written into an output folder, which need not exist."""
    files = [path / PARTIAL / file.name for file in plan.files]
    return size_of(plan) - sum(file.stat().st_blocks * 512 for file in files if file.exists())


def check_space(needed: Mapping[Path, int]) -> None:
    """Check that disks have room for what is about to be written.

    Args:
        needed: bytes, by the folders that they go to, which need not exist.

    Raises:
        RunError: there is not enough.
    """
    disks: dict[int, dict[Path, int]] = {}
    for folder, nbytes in needed.items():
        disks.setdefault(_existing(folder).stat().st_dev, {})[folder] = nbytes
    for sizes in disks.values():
        folder, total = next(iter(sizes)), sum(sizes.values())
        disk = shutil.disk_usage(_existing(folder))
        # What has no size, such as /proc, is no disk; why nothing can be written there is said later.
        if total > disk.free and disk.total:
            what = "the output needs" if len(sizes) == 1 else f"the {len(sizes)} outputs need"
            raise RunError(
                f"{what} {total / 1e6:,.0f} MB, the disk of {folder} has {disk.free / 1e6:,.0f} MB free",
                hint="free some space, or name a folder on another disk",
            )


def _existing(folder: Path) -> Path:
    """A folder, or the nearest one above it that exists."""
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())
