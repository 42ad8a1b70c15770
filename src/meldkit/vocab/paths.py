"""Names of files in the settings of a tokenizer, which transformers would open wherever they lead.

Every entry of tokenizer_config.json and special_tokens_map.json becomes an argument of the tokenizer's class,
and what some of these name is read and becomes tokens: `"vocab": "/home/you/.ssh/id_rsa"`. transformers
itself finds the files that lie in the folder, so nothing is lost without them.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Arguments of the classes of transformers 5 that name files or folders, or are passed on to what opens some.
_PATHS = re.compile(r"vocab|merges|rewriting_rules|name_or_path|.*_(files?|path|dir|spm|kwargs)")


@contextmanager
def without_paths(folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> Generator[Path]:
    """The folder of a tokenizer in which no settings name files: itself, or one that is gone after the block.

    Args:
        folder: of the tokenizer.
        settings: content of the files that hold settings, by name.
    """
    changed = {name: kept for name, entries in settings.items() if len(kept := _kept(entries)) < len(entries)}
    if not changed:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="meldkit-") as place:
        beside = Path(place, folder.resolve().name or "tokenizer")
        beside.mkdir()
        _link(folder, beside, except_for=changed)
        for name, entries in changed.items():
            (beside / name).write_bytes(json.dumps(entries).encode())
        yield beside


def _kept(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are no names of files. A vocabulary may also be given as it is."""
    return {
        key: value
        for key, value in entries.items()
        if not _PATHS.fullmatch(key) or (key in ("vocab", "merges") and not isinstance(value, str))
    }


def _link(folder: Path, beside: Path, *, except_for: Collection[str]) -> None:
    for path in sorted(folder.absolute().iterdir()):
        if path.name not in except_for:
            (beside / path.name).symlink_to(path)
