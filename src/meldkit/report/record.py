"""Reading the record of a merge, which a stranger may have written: what it says is checked first."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, cast

from meldkit.checkpoint import check_links, read_json, shown
from meldkit.errors import CheckpointError
from meldkit.output import FORMAT, RECORD

_COMMIT = re.compile("[0-9a-f]{40}")
_TOOL = re.compile("[a-z-]{1,40}")
#: No file is so long.
_TOO_LARGE = 2**63
_KINDS = {
    "meldkit": str,
    "numeric_version": int,
    "made_with": dict,
    "plan": str,
    "seed": int,
    "options": dict,
    "models": list,
    "weights": dict,
    "files": dict,
}
#: Options that change what is written.
_OPTIONS: Mapping[str, type] = {
    **dict.fromkeys(("allow_crimes", "trust_remote_code", "copy_tokenizer", "allow_nonfinite"), bool),
    **dict.fromkeys(("write_model_card", "allow_crop"), bool),
    "out_shard_size": int,
    "plugin": list,
}
#: Kinds of the entries of `weights`, `files`, `models` and their `files`, and of the plugins of `options`.
_WEIGHTS = {"size": int, "header_sha256": str, "sums": dict}
_FILE = {"size": int, "sha256": str}
_MODEL = {"model": str, "fingerprint": str, "files": list}
_INPUT = {"name": str, "size": int}
_PLUGIN = {"name": str, "sha256": str}


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the merge that has written a folder; None if there is none.

    Raises:
        CheckpointError: there is no folder, or its record cannot be read, is not whole, tells of files
            elsewhere, or is of a version of meldkit that this one does not know; or the folder has a link
            that leads elsewhere.
    """
    try:
        folder.stat()
    except (OSError, ValueError) as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or e
        hint = "name a folder that 'meldkit merge' has written"
        raise CheckpointError(f"cannot look into {folder}: {reason}", hint=hint) from e
    path = folder / RECORD
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        raise CheckpointError(f"{path} {no_file(path)}", hint="get it again from where the model came from")
    check_links(str(folder), folder)
    found = read_json(path)
    if found.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has the format {shown(found.get('format'))}, this version of meldkit reads {FORMAT}",
            hint="use the version of meldkit that made the model",
        )
    if problem := next(_problems(found), None):
        raise not_whole(folder, problem)
    return found


def no_file(path: Path) -> str:
    """What a path is that is no file, in words."""
    if path.is_dir():
        return "is a folder, not a file"
    if path.is_symlink() and not path.exists():
        return "is a link that leads nowhere"
    return "is not a file" if os.path.lexists(path) else "is missing"


def not_whole(folder: Path, problem: str) -> CheckpointError:
    """The error about a record that was damaged or edited."""
    return CheckpointError(
        f"{folder / RECORD} is not a whole record: {problem}",
        hint="it was damaged or edited; get it again from where the model came from",
    )


def _problems(record: Mapping[str, Any]) -> Iterator[str]:
    """What is not in a record, or is not as it should be."""
    yield from _missing("", record, _KINDS)
    if (tool := record.get("tool")) is not None and not _TOOL.fullmatch(str(tool)):
        yield f"it was made by {shown(tool)}"
    for name in (*record["weights"], *record["files"]):
        if not _leads_inside(name):
            yield f"it tells of a file {shown(name)}"
    for name, file in record["weights"].items():
        yield from _missing(name, file, _WEIGHTS)
        yield from _no_texts(name, file["sums"])
    for name, file in record["files"].items():
        yield from _missing(name, file, _FILE)
    yield from _no_texts("made_with", record["made_with"])
    for model in record["models"]:
        yield from _missing("models", model, _MODEL)
        for file in model["files"]:
            yield from _missing(model["model"], file, _INPUT)
        commits: object = model.get("commits", {})
        if not isinstance(commits, dict):
            yield f"{shown(model['model'])} has the commits {shown(commits)}"
        for commit in cast("dict[str, object]", commits).values() if isinstance(commits, dict) else ():
            if type(commit) is not str or not _COMMIT.fullmatch(commit):
                yield f"{shown(model['model'])} has the commit {shown(commit)}"
        yield from _not_settings(model["model"], model.get("settings", []))
    options: Mapping[str, Any] = record["options"]
    for name, value in options.items():
        if name not in _OPTIONS:
            yield f"it has an option {shown(name)}, which is not known"
        elif type(value) is not _OPTIONS[name] or (name == "out_shard_size" and not 0 < value < _TOO_LARGE):
            yield f"{name} is {shown(value)}"
    for plugin in options.get("plugin", ()):
        yield from _missing("plugin", plugin, _PLUGIN)


def _not_settings(name: str, settings: object) -> Iterator[str]:
    """What is wrong with the hashes of the settings of an input, which earlier versions did not keep."""
    for files in cast("list[object]", settings) if isinstance(settings, list) else [settings]:
        if isinstance(files, dict):
            yield from _no_texts(f"settings of {name}", cast("dict[str, object]", files))
        else:
            yield f"settings of {shown(name)} is {shown(files)}"


def _missing(name: str, entry: object, kinds: Mapping[str, type]) -> Iterator[str]:
    """Which entries of a mapping are not there or of another kind, numbers also if they are no sizes."""
    values = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
    for key, kind in kinds.items():
        value = values.get(key)
        if type(value) is not kind or (key == "size" and not 0 <= cast("int", value) < _TOO_LARGE):
            place = f" of {shown(name)}" * bool(name)
            yield f"{key}{place} is {shown(value)}" if key in values else f"{key}{place} is missing"


def _no_texts(name: str, mapping: Mapping[str, object]) -> Iterator[str]:
    for key, value in mapping.items():
        if type(value) is not str:
            yield f"{shown(key)} of {shown(name)} is {shown(value)}"


def _leads_inside(name: str) -> bool:
    """Whether a name is that of a file in a folder, or in a folder below it."""
    path = PurePath(name)
    whole = path.as_posix() == name != "." and "\0" not in name
    return whole and not path.is_absolute() and ".." not in path.parts
