"""GGUF files: settings and tensor table, checked before anything in them is believed.

A file is `"GGUF" | version u32 | tensors u64 | settings u64 | settings | tensor table | padding | data`,
little-endian. A text is its length as u64 and UTF-8. A setting is `key text | type u32 | value`, an array
`type u32 | length u64 | values`. An entry of the table is
`name text | dimensions u32 | sizes u64, innermost first | kind u32 | offset u64`, offsets from the data on.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import math
import stat
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from meldkit.checkpoint.gguf.blocks import KINDS, Kind
from meldkit.checkpoint.json_file import shown, something_else
from meldkit.checkpoint.ranges import RemoteFile
from meldkit.errors import CheckpointError, FormatError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
#: The largest vocabularies, with their merges, take some 20 MB.
_MAX_HEADER = 1 << 30
#: Bytes read ahead.
_CHUNK = 1 << 22
_MAX_TEXT = 1 << 26
_MAX_NAME = 1 << 10
_MAX_DIMS = 4
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
_TOO_LARGE = 2**63
#: Types of settings: struct's letter.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT32, _TEXT, _ARRAY = 6, 8, 9
_DOWNLOAD_HINT = "download the file again, or check how it was written"


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file.

    Attributes:
        name: llama.cpp's.
        kind: of its numbers.
        shape: sizes, outermost first.
        path: the file.
        offset: first byte, from the start of the file.
        nbytes: length.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a GGUF file says.

    Attributes:
        path: the file; the first one of several parts.
        settings: by key; arrays of numbers as tuples; of texts as lists, None where they were not asked for.
        tensors: by name, in the order of their bytes.
        digest: hex hash of all this and of the file's size.
    """

    path: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, Entry]
    digest: str

    def numbers(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A small tensor of the kind F32 that is a setting in disguise."""
        entry = self.tensors[name]
        if entry.kind.name != "F32" or entry.nbytes > _CHUNK:
            raise bad(entry.path, f"has a tensor {shown(name)} that is not a short list of F32 numbers")
        with entry.path.open("rb") as f:
            f.seek(entry.offset)
            raw = f.read(entry.nbytes)
        if len(raw) < entry.nbytes:
            raise bad(entry.path, f"ends inside tensor {shown(name)}")
        return np.frombuffer(raw, "<f4")


def bad(path: Path, what: str, hint: str = _DOWNLOAD_HINT) -> CheckpointError:
    """An error about a file."""
    return CheckpointError(f"{path} {what}", hint=hint)


def read_contents(path: Path, *, texts: bool = False) -> Contents:
    """Read and check everything before the data.

    Args:
        path: the file.
        texts: keep arrays of texts too: vocabulary and merges.

    Raises:
        CheckpointError: missing, truncated, or lying about lengths, offsets, kinds or names.
        FormatError: an old or big-endian file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a named pipe would be waited for without end
            raise bad(path, "is not a file", "a folder or a special file cannot hold tensors")
        with path.open("rb") as f:
            return _Reader(path, f, status.st_size, texts).contents()
    except OSError as e:
        raise CheckpointError(
            f"cannot read {path}: {e.strerror}", hint="check the path, or download the file again"
        ) from e


def fetch_contents(remote: RemoteFile, path: Path) -> None:
    """Read all of a remote file that `read_contents` and `Contents.numbers` will; faults are theirs to tell.

    Args:
        remote: the file.
        path: where it is laid.
    """
    with suppress(CheckpointError):
        contents = _Reader(path, cast("BinaryIO", remote), remote.size, True).contents()
        for entry in contents.tensors.values():
            if entry.kind.name == "F32" and entry.name.startswith("rope_"):
                remote.fetch(entry.offset, entry.offset + entry.nbytes)


class _Reader:
    """Takes a file apart from its start on; nothing is taken that the file does not have."""

    def __init__(self, path: Path, f: BinaryIO, size: int, texts: bool) -> None:
        self._path = path
        self._file = f
        self._size = size
        self._texts = texts
        self._data = bytearray()
        self._at = 0

    def contents(self) -> Contents:
        start = bytes(self._take(4)) if self._size >= 4 else b""
        if start != _MAGIC:
            raise something_else(self._path, start) or bad(
                self._path, "is not a GGUF file: it does not begin with GGUF"
            )
        version = self._number("I", "its version")
        if version not in _VERSIONS:
            what = "is big-endian" if version & 0xFFFF == 0 else f"has version {version} of the format"
            raise FormatError(
                f"not supported: {self._path} {what}; versions 2 and 3 in little-endian order are read",
                hint="convert the original model again with a current llama.cpp",
            )
        num_tensors = self._count("tensors", 24)
        num_settings = self._count("settings", 13)
        settings: dict[str, Any] = {}
        for _ in range(num_settings):
            key = self._text("the key of a setting", _MAX_NAME)
            if key in settings:
                raise bad(self._path, f"has the setting {shown(key)} twice")
            settings[key] = self._value(key, self._number("I", f"the type of setting {shown(key)}"))
        entries = [self._entry() for _ in range(num_tensors)]
        end = self._at
        alignment = settings.get("general.alignment", _DEFAULT_ALIGNMENT)
        valid = (
            type(alignment) is int and 0 < alignment <= _MAX_ALIGNMENT and alignment & (alignment - 1) == 0
        )
        if not valid:
            raise bad(self._path, f"has a general.alignment of {shown(alignment)}, not a power of two")
        tensors = self._placed(entries, -(-end // alignment) * alignment, alignment)
        digest = hashlib.sha256(memoryview(self._data)[:end])
        digest.update(self._size.to_bytes(8, "little"))
        return Contents(self._path, settings, tensors, digest.hexdigest())

    def _need(self, nbytes: int, what: str) -> None:
        """Have that many bytes from here on in memory."""
        until = self._at + nbytes
        if until <= len(self._data):
            return
        if until > self._size:
            raise bad(
                self._path, f"is truncated or lies: {what} ends at byte {until:,}, the file at {self._size:,}"
            )
        if until > _MAX_HEADER:
            raise bad(self._path, f"has a header of more than {_MAX_HEADER:,} bytes")
        self._data += self._file.read(max(until - len(self._data), _CHUNK))
        if until > len(self._data):
            raise bad(self._path, f"became shorter while it was read, at byte {len(self._data):,}")

    def _take(self, nbytes: int, what: str = "its start") -> bytearray:
        self._need(nbytes, what)
        self._at += nbytes
        return self._data[self._at - nbytes : self._at]

    def _number(self, letter: str, what: str) -> Any:
        size = struct.calcsize(f"<{letter}")
        self._need(size, what)
        (value,) = struct.unpack_from(f"<{letter}", self._data, self._at)
        self._at += size
        return value

    def _count(self, what: str, least: int) -> int:
        """A number of things, each of which takes some bytes of what is left of the file."""
        count: int = self._number("Q", f"the number of {what}")
        if count * least > self._size - self._at:
            raise bad(self._path, f"says that it has {count:,} {what}, but has {self._size:,} bytes in all")
        return count

    def _text(self, what: str, longest: int = _MAX_TEXT) -> str:
        length: int = self._number("Q", what)
        if length > longest:
            raise bad(self._path, f"says that {what} has {length:,} bytes")
        try:
            return self._take(length, what).decode()
        except UnicodeDecodeError as e:
            raise bad(self._path, f"has {what} that is not text in UTF-8") from e

    def _value(self, key: str, kind: int) -> Any:
        what = f"setting {shown(key)}"
        if kind == _TEXT:
            return self._text(what)
        if kind == _ARRAY:
            return self._array(what)
        if kind not in _SCALARS:
            raise bad(self._path, f"has a {what} of the unknown type {kind}")
        value = self._number(_SCALARS[kind], what)
        # The shortest decimal number that gives the same float32 is the one that was meant.
        return float(str(np.float32(value))) if kind == _FLOAT32 else value

    def _array(self, what: str) -> Any:
        kind: int = self._number("I", what)
        if kind in _SCALARS:
            size = struct.calcsize(f"<{_SCALARS[kind]}")
            count = self._count(f"values of {what}", size)
            return struct.unpack(f"<{count}{_SCALARS[kind]}", self._take(count * size, what))
        if kind != _TEXT:
            raise bad(self._path, f"has a {what} that is an array of the type {kind}")
        count = self._count(f"values of {what}", 8)
        if self._texts:
            return [self._text(what) for _ in range(count)]
        for _ in range(count):
            length: int = self._number("Q", what)
            self._need(length, what)
            self._at += length
        return None

    def _entry(self) -> Entry:
        """A row of the tensor table; its offset is still relative to the data."""
        name = self._text("the name of a tensor", _MAX_NAME)
        what = f"tensor {shown(name)}"
        num_dims: int = self._number("I", what)
        if num_dims > _MAX_DIMS:
            raise bad(self._path, f"gives {what} {num_dims} dimensions; at most {_MAX_DIMS} are possible")
        shape = tuple(reversed([cast("int", self._number("Q", what)) for _ in range(num_dims)]))
        number: int = self._number("I", what)
        offset: int = self._number("Q", what)
        kind = KINDS.get(number)
        if kind is None:
            raise bad(
                self._path,
                f"stores {what} as numbers of the unknown type {number}",
                "known: " + ", ".join(k.name for k in KINDS.values()),
            )
        if not shape or math.prod(shape) >= _TOO_LARGE or 0 in shape:
            raise bad(self._path, f"gives {what} the shape {shown(list(shape))}")
        if shape[-1] % kind.block:
            raise bad(
                self._path,
                f"gives {what} rows of {shape[-1]} elements, "
                f"which are no whole blocks of {kind.name} ({kind.block})",
            )
        nbytes = math.prod(shape) // kind.block * kind.nbytes
        return Entry(name, kind, shape, self._path, offset, nbytes)

    def _placed(self, entries: list[Entry], start: int, alignment: int) -> dict[str, Entry]:
        """Tensors by name; they must lie one after the other in the file, only padding between them."""
        tensors: dict[str, Entry] = {}
        position, previous = 0, ""
        for entry in sorted(entries, key=lambda e: e.offset):
            what = f"tensor {shown(entry.name)}"
            if entry.name in tensors:
                raise bad(self._path, f"has {what} twice")
            if entry.offset % alignment:
                raise bad(
                    self._path, f"places {what} at byte {entry.offset:,}, which is no multiple of {alignment}"
                )
            if entry.offset < position:
                raise bad(self._path, f"has overlapping tensors {shown(previous)} and {shown(entry.name)}")
            if entry.offset - position >= alignment:
                raise bad(self._path, f"has {entry.offset - position:,} unnamed bytes before {what}")
            position, previous = entry.offset + entry.nbytes, entry.name
            if start + position > self._size:
                raise bad(
                    self._path,
                    f"is truncated: {what} ends at byte {start + position:,}, the file has {self._size:,}",
                )
            tensors[entry.name] = replace(entry, offset=start + entry.offset)
        return tensors
