"""Models that are split into several GGUF files, `name-00001-of-00003.gguf` and so on.

The first part has all settings, each part its own tensors. Each says how many parts there are and which one
it is, the first one number 0.
Source: https://github.com/ggml-org/llama.cpp (tools/gguf-split).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from meldkit.checkpoint.gguf.contents import Contents, Entry, bad, read_contents
from meldkit.checkpoint.json_file import shown
from meldkit.errors import CheckpointError

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.S)
#: Part of the names that llama.cpp's conversion gives to the halves of models that see or hear.
_PROJECTOR = "mmproj"
_HINT = "download the parts again, or check how they were written"


def read_model(path: Path, *, texts: bool = False) -> Contents:
    """Read and check everything before the data, of all parts if the model is split.

    Args:
        path: the file, or any part.
        texts: keep arrays of texts too: vocabulary and merges.

    Raises:
        CheckpointError: a damaged file, or a part that is missing.
        FormatError: an old or big-endian file.
    """
    contents = read_contents(path, texts=texts)
    count = contents.settings.get("split.count", 1)
    if count in (0, 1):
        return contents
    names = part_names(path.name)
    if len(names) != count:
        number = f"{count:05}" if type(count) is int and 0 < count < 10**5 else "NNNNN"
        raise bad(
            path,
            f"says that it is one of {shown(count)} parts of a model, but is not named as a part",
            f"give the parts back their names, NAME-00001-of-{number}.gguf and so on",
        )
    missing = [name for name in names if not path.with_name(name).exists()]
    if missing:
        raise CheckpointError(
            f"{path} is one of {count} parts of a model, of which {len(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not in {path.parent}: {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""),
            hint="download the missing parts into the same folder",
        )
    return _joined([read_contents(path.with_name(name), texts=texts) for name in names])


def part_names(name: str) -> list[str]:
    """The names of all parts of a model, the first one first, by the name of any; itself if it is no part."""
    match = _NAME.fullmatch(name)
    if match is None or not 0 < int(match["number"]) <= int(match["count"]):
        return [name]
    stem, count = match["stem"], match["count"]
    return [f"{stem}-{number:05}-of-{count}.gguf" for number in range(1, int(count) + 1)]


def without_projectors(names: Sequence[str]) -> list[str]:
    """Names of files, less those of what makes a model's input of images and sounds, as llama.cpp calls it.

    All of them if nothing else is left.
    """
    return [name for name in names if _PROJECTOR not in name.lower()] or list(names)


def one_model(names: Sequence[str]) -> str | None:
    """The first file of a model, if files of these names are just that model; else None."""
    models = {tuple(part_names(name)) for name in names}
    return min(names) if len(models) == 1 else None


def _joined(parts: list[Contents]) -> Contents:
    tensors: dict[str, Entry] = {}
    for number, part in enumerate(parts):
        found = (part.settings.get("split.no"), part.settings.get("split.count"))
        if found != (number, len(parts)):
            raise bad(
                part.path,
                f"says that it is part {shown(found[0])} of {shown(found[1])}, counted from 0, "
                f"not part {number} of {len(parts)}",
                _HINT,
            )
        for name, entry in part.tensors.items():
            if name in tensors:
                raise bad(part.path, f"has the tensor {shown(name)}, as {tensors[name].path.name} has", _HINT)
            tensors[name] = entry
    total = parts[0].settings.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise bad(
            parts[0].path,
            f"says that all parts have {shown(total)} tensors, but they have {len(tensors)}",
            _HINT,
        )
    digest = hashlib.sha256("".join(part.digest for part in parts).encode())
    return replace(parts[0], tensors=tensors, digest=digest.hexdigest())
