"""JSON that others wrote: read without trust, and values from it made fit for a message."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from reprlib import Repr
from typing import Any, cast

from meldkit.errors import CheckpointError
from meldkit.regular import open_regular

#: How a file begins that git leaves in place of a large one.
_POINTER = b"version https://git-lfs"
#: Of a file; the largest of real models are tokenizers of some 40 MB.
_MAX_BYTES = 200_000_000
#: Levels of lists and mappings; files of real models have a dozen.
_MAX_DEPTH = 100
_FIX_HINT = "repair the file or download it again"

_repr = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 100
_repr.maxlist = _repr.maxdict = 8


def shown(value: object) -> str:
    """A value from a file for a message: one line, not long, without control characters."""
    return _repr.repr(value)


def read_settings(path: Path, limit: int = _MAX_BYTES, what: str = "settings") -> bytes:
    """The bytes of a file beside the weights of a model.

    Args:
        path: the file.
        limit: it may have so many bytes.
        what: is in it, for messages.

    Raises:
        CheckpointError: unreadable, too large, or not a file but a pipe, which would be waited for.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            large = os.fstat(file.fileno()).st_size > limit
            raw = b"" if large else file.read(limit)
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
    if large:
        raise CheckpointError(
            f"{path} has more than {limit / 1e6:.0f} MB, too much for {what}", hint=_FIX_HINT
        )
    return raw


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping from a model folder.

    Raises:
        CheckpointError: unreadable, too large, not JSON, or not a mapping.
    """
    raw = read_settings(path)
    if error := something_else(path, raw):
        raise error
    data = parse_mapping(str(path), raw, _FIX_HINT)
    if _deep(data):
        raise CheckpointError(f"{path} is nested too deeply", hint=_FIX_HINT)
    return data


def _inside(value: Any) -> Iterable[Any]:
    """What a list or a mapping holds."""
    return cast("dict[str, Any]", value).values() if isinstance(value, dict) else value


def _deep(data: Any) -> bool:
    """Whether a value is nested so deeply that what walks through it may not come to its end."""
    level: list[Any] = [data]
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for each in level:
            values = _inside(each)
            inner += [value for value in values if type(value) is list or type(value) is dict]
        if not inner:
            return False
        level = inner
    return True


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a mapping as others find it in model folders.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    # Half of a surrogate pair is no character, but JSON can hold it in the form that is used here.
    path.write_bytes(text.encode("utf-8", "backslashreplace"))


def something_else(path: Path, start: bytes) -> CheckpointError | None:
    """The error about a file of a model that was not really downloaded; None if it does not look like that.

    Args:
        path: of the file.
        start: its first bytes, four or more.
    """
    if start[:4] == _POINTER[:4] and _POINTER.startswith(start[: len(_POINTER)]):
        message = f"{path} is a pointer of Git LFS, not the file itself"
        return CheckpointError(message, hint="run 'git lfs pull' in its folder")
    if start.lstrip()[:1] == b"<" and b"\0" not in start[:8]:
        hint = "the download failed or asked for a login; download the file again"
        return CheckpointError(f"{path} is a web page, not a file of a model", hint=hint)
    return None


def parse_mapping(what: str, raw: bytes, hint: str, *, unique: bool = False) -> dict[str, Any]:
    """The mapping that JSON text holds.

    Args:
        what: names the text in messages.
        raw: the text in UTF-8.
        hint: what to do if it is not that.
        unique: refuse a key that stands twice in the same mapping; else the last one counts.

    Raises:
        CheckpointError: not UTF-8, not JSON, or not a mapping.
    """

    def pairs_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise CheckpointError(f"{what} has {shown(twice)} twice", hint=hint)
        return result

    try:
        data = json.loads(raw.decode(), object_pairs_hook=pairs_once if unique else None)
    except UnicodeDecodeError as e:
        raise CheckpointError(f"{what} is not text in UTF-8 (byte {e.start:,})", hint=hint) from e
    except json.JSONDecodeError as e:
        raise CheckpointError(
            f"{what} is not valid JSON (line {e.lineno}, column {e.colno})", hint=hint
        ) from e
    except ValueError as e:  # a number of thousands of digits
        raise CheckpointError(f"{what} is not valid JSON ({e})", hint=hint) from e
    except RecursionError as e:
        raise CheckpointError(f"{what} is nested too deeply", hint=hint) from e
    if not isinstance(data, dict):
        raise CheckpointError(f"{what} is not a mapping", hint=hint)
    return cast("dict[str, Any]", data)
