"""Links in the folder of a model, where they may lead; and names of files that would be taken for more.

A stranger's model may come with links, by git or in an archive, and what a link leads to is copied into the
output with the files beside the weights. So a link may lead to

    the model's own folder            from one name to another
    the hub's cache                   SNAPSHOT/name → ../../blobs/HASH, as huggingface_hub lays them
    a weight file                     by its own name; weights are often kept on another disk

and nowhere else. The folder itself may be a link: its name comes from the user.

Files are copied under their names, which must not move the cursor of who lists the output, or end lines.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.weights import WEIGHTS
from meldkit.errors import CheckpointError

#: Kinds of characters: control characters, ends of lines and of paragraphs.
_CONTROL = ("Cc", "Zl", "Zp")
#: Folders of the hub's cache, and of our own beside it, with files that links may lead to.
_SNAPSHOTS, _BLOBS, _STAND_INS = "snapshots", "blobs", "headers"


def check_links(label: str, folder: Path) -> None:
    """Refuse a model folder with a link that leads to what does not belong to the model, or with such names.

    Hidden files and folders, such as those of git, are never read and may be anything.

    Args:
        label: the model as the recipe names it, for messages.
        folder: of the model.

    Raises:
        CheckpointError: there is such a link or name.
    """
    own = folder.resolve()
    for path in _files(folder):
        if any(unicodedata.category(letter) in _CONTROL for letter in path.name):
            raise CheckpointError(
                f"model '{label}': {folder} has a file or folder with control characters in its name: "
                f"{shown(path.name)}",
                hint="rename it, or remove it",
            )
        if not path.is_symlink():
            continue
        try:
            target = path.resolve()
        except (OSError, RuntimeError):  # in a circle; whoever needs it says so
            continue
        inside = own in (target, *target.parents) or _in_hub_cache(own, target)
        if not inside and not target.name.endswith(WEIGHTS) and target.exists():
            raise CheckpointError(
                f"model '{label}': {path} is a link that leads out of the model's folder, "
                f"to {shown(str(target))}",
                hint="put the file itself there if it belongs to the model",
            )


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in (*folders, *sorted(files)):
            if not name.startswith("."):
                yield Path(root, name)


def _in_hub_cache(own: Path, target: Path) -> bool:
    """Whether a folder is a snapshot of a repository, or what stands in for one, and a file of the same."""
    snapshots = own.parent
    if snapshots.name == _SNAPSHOTS:
        return target.parent == snapshots.parent / _BLOBS
    # A stand-in is HEADERS/ORG--NAME/COMMIT and leads into models--ORG--NAME, wherever the cache is.
    return snapshots.parent.name == _STAND_INS and any(
        parent.name == f"models--{snapshots.name}" for parent in target.parents
    )
