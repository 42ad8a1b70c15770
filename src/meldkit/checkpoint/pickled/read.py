"""Files of `torch.save`: read tensor by tensor at their offsets, without running anything that is in them.

    zip     `data.pkl`, and one uncompressed member `data/KEY` per storage     torch ≥ 1.6
    legacy  five pickles, the last of which lists the keys of the storages,
            then for each key its number of elements as int64 and its bytes    before

Source: `torch.serialization`.
"""

from __future__ import annotations

import hashlib
import stat
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from meldkit.checkpoint.dtypes import DTYPES
from meldkit.checkpoint.files import OpenFiles
from meldkit.checkpoint.json_file import shown, something_else
from meldkit.checkpoint.pickled.state_dict import find_weights
from meldkit.checkpoint.pickled.unpickler import (
    MalformedError,
    RefusedError,
    Unpickler,
    UnreadableError,
    View,
)
from meldkit.checkpoint.tensor import Header, HeldBytes, TensorInfo, TileSource
from meldkit.errors import CheckpointError, FormatError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_ZIP = b"PK\x03\x04"
#: Before a member's bytes in a zip archive, then follow its name and an `extra` field.
LOCAL_HEADER_BYTES = 30
_UTF8 = 1 << 11
_HINT = "download the file again, or check how it was written"
_SAVE_HINT = "save the model's state_dict with torch.save"

#: For each storage: first byte in the file, and length in bytes.
_Places = Mapping[str, tuple[int, int]]


def read_pickled(path: Path) -> Header:
    """The tensors of a file of `torch.save`; no weight byte is read.

    Raises:
        CheckpointError: missing, damaged, without weights, or a program that does more than describe tensors.
        FormatError: a format that is not read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would be waited for without end
            raise _bad(path, "is not a file", "a folder or a special file cannot hold tensors")
        with path.open("rb") as f:
            start = f.read(4)
            f.seek(0)
            if start == _ZIP:
                content, places, digest = _read_zip(path, f)
            elif start[:1] == b"\x80":
                content, places, digest = _read_legacy(path, f)
            else:
                raise _unknown_format(path, start, f)
    except OSError as e:
        raise CheckpointError(
            f"cannot read {path}: {e.strerror}", hint="check the path, or download the file again"
        ) from e
    try:
        views: dict[str, View] = find_weights(content, View).of(content)
    except ValueError as e:
        raise _bad(path, str(e), _SAVE_HINT) from e
    tensors = {name: _info(path, name, view, places) for name, view in views.items()}
    return Header(
        tensors=dict(sorted(tensors.items(), key=lambda item: item[1].offset)), metadata={}, digest=digest
    )


def _bad(path: Path, what: str, hint: str = _HINT) -> CheckpointError:
    return CheckpointError(f"{path} {what}", hint=hint)


def _unknown_format(path: Path, start: bytes, f: BinaryIO) -> CheckpointError:
    f.seek(257)
    if f.read(5) == b"ustar":
        return FormatError(
            f"not supported: {path} is a tar archive, as torch wrote before version 0.1.10",
            hint="load it with an old torch and save it again",
        )
    if not start:
        return _bad(path, "is empty")
    return something_else(path, start) or _bad(
        path, "is not a file of torch.save: neither a zip archive nor a pickle"
    )


def _load(path: Path, unpickler: Unpickler) -> Any:
    try:
        return unpickler.load()
    except RefusedError as e:
        raise _bad(
            path,
            f"wants to load {shown(str(e))}, which is no tensor: refused, nothing of it was run",
            "use it only if you trust its origin: load it with its own program and save the state_dict",
        ) from None
    except UnreadableError as e:
        raise FormatError(
            f"not supported: {path} has tensors of a kind that is not read: {shown(str(e))}",
            hint="make ordinary tensors of them and save them again",
        ) from None
    except OSError:
        raise
    except MalformedError as e:
        raise _bad(path, f"is damaged, or not written by torch: it describes {e}") from e
    except EOFError as e:
        raise _bad(path, "is damaged: the pickle in it ends too early") from e
    except Exception as e:  # whatever its bytes, taken for instructions, lead to
        raise _bad(path, "is damaged: the pickle in it makes no sense") from e


def _read_zip(path: Path, f: BufferedReader) -> tuple[Any, _Places, str]:
    try:
        infos = zipfile.ZipFile(f).infolist()
    except (zipfile.BadZipFile, struct.error, ValueError, OverflowError, NotImplementedError) as e:
        raise _bad(path, "is a damaged zip archive: its table of contents cannot be read") from e
    members = {info.filename: info for info in infos}
    if len(members) < len(infos):
        raise _bad(path, "is a damaged zip archive: it has two members of the same name")
    name = next((n for n in members if n.endswith("/data.pkl") and n.count("/") == 1), None)
    root = "" if name is None else name.removesuffix("data.pkl")
    if any(n.startswith(f"{root}code/") or n.endswith("/constants.pkl") for n in members):
        raise _bad(path, "is a TorchScript program, not weights", _SAVE_HINT)
    if name is None:
        raise _bad(path, "is a zip archive without data.pkl", _SAVE_HINT)
    raw = _member(path, f, members[name])
    order = members.get(f"{root}byteorder")
    if order is not None and _member(path, f, order).strip() != b"little":
        raise _big_endian(path)
    digest = hashlib.sha256(raw)
    places: dict[str, tuple[int, int]] = {}
    for info in infos:
        if info.filename.startswith(f"{root}data/"):
            key = info.filename.removeprefix(f"{root}data/")
            places[key] = _data_offset(path, f, info), info.file_size
            digest.update(f"{key!r} {info.file_size} {info.CRC}\n".encode())
    return _load(path, Unpickler(BytesIO(raw))), places, digest.hexdigest()


def _big_endian(path: Path) -> FormatError:
    return FormatError(
        f"not supported: {path} holds big-endian numbers", hint="load it with torch and save it again"
    )


def _member(path: Path, f: BinaryIO, info: zipfile.ZipInfo) -> bytes:
    # Not with `zipfile`: torch can leave out the checksums that it insists on.
    f.seek(_data_offset(path, f, info))
    return f.read(info.file_size)


def _data_offset(path: Path, f: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: its local header, whose length only it knows, stands before them."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise _bad(path, f"has {shown(info.filename)} compressed or encrypted, which torch.save never does")
    header = b""
    if 0 <= info.header_offset < 1 << 63:  # an archive can tell of offsets that no file has
        f.seek(info.header_offset)
        header = f.read(LOCAL_HEADER_BYTES)
    if len(header) < LOCAL_HEADER_BYTES or not header.startswith(_ZIP):
        raise _bad(path, f"is a damaged zip archive: no member at byte {info.header_offset:,}")
    (method,) = struct.unpack("<H", header[8:10])
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    name = f.read(name_length).decode("utf-8" if info.flag_bits & _UTF8 else "cp437", "replace")
    if method != zipfile.ZIP_STORED or name != info.orig_filename:
        raise _bad(
            path, f"is a damaged zip archive: its table and its contents differ about {shown(info.filename)}"
        )
    offset = info.header_offset + LOCAL_HEADER_BYTES + name_length + extra_length
    if offset + info.file_size > path.stat().st_size:
        raise _bad(path, f"is a damaged zip archive: {shown(info.filename)} reaches beyond its end")
    return offset


def local_header(info: zipfile.ZipInfo) -> bytes:
    """What stands before the bytes of a member, with its name and without an `extra` field."""
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
    fields = (20, info.flag_bits, info.compress_type, 0, 0, info.CRC, 0, 0, len(name), 0)
    return _ZIP + struct.pack("<HHHHHIIIHH", *fields) + name


def _read_legacy(path: Path, f: BufferedReader) -> tuple[Any, _Places, str]:
    unpickler = Unpickler(f)
    if _load(path, unpickler) != _MAGIC or _load(path, unpickler) != _PROTOCOL:
        raise _bad(path, "is a pickle, but not one of torch.save", _SAVE_HINT)
    system = _load(path, unpickler)
    if isinstance(system, dict) and cast("dict[str, object]", system).get("little_endian") is False:
        raise _big_endian(path)
    content = _load(path, unpickler)
    keys = _load(path, unpickler)
    end = f.tell()
    f.seek(0)
    digest = hashlib.sha256(f.read(end))
    size = path.stat().st_size
    places: dict[str, tuple[int, int]] = {}
    for key in cast("list[object]", keys) if isinstance(keys, list) else []:
        storage = unpickler.storages.get(key) if isinstance(key, str) else None
        f.seek(end)
        prefix = f.read(8)
        nbytes = int.from_bytes(prefix, "little") * DTYPES[storage.dtype].itemsize if storage else 0
        if storage is None or len(prefix) < 8 or end + 8 + nbytes > size:
            raise _bad(path, f"ends early or lies about the tensors it holds, at byte {end:,}")
        places[storage.key] = end + 8, nbytes
        end += 8 + nbytes
    digest.update(str(size).encode())
    return content, places, digest.hexdigest()


def _info(path: Path, name: str, view: View, places: _Places) -> TensorInfo:
    try:
        name.encode()
    except UnicodeEncodeError as e:
        raise _bad(path, f"names a tensor {shown(name)}, which is not Unicode text") from e
    if name == "__metadata__":
        raise _bad(path, f"names a tensor {shown(name)}, which no safetensors file can hold")
    offset, length = places.get(view.storage.key, (0, -1))
    if length < view.storage.nbytes:
        held = f"{length:,} of" if length >= 0 else "none of"
        raise _bad(path, f"holds {held} the {view.storage.nbytes:,} bytes that {shown(name)} is part of")
    itemsize = DTYPES[view.dtype].itemsize
    return TensorInfo(
        name,
        view.dtype,
        view.shape,
        path,
        offset + view.offset * itemsize,
        view.extent * itemsize,
        None if _contiguous(view) else Strided(view.stride),
    )


def _contiguous(view: View) -> bool:
    expected = 1
    for size, stride in zip(reversed(view.shape), reversed(view.stride), strict=True):
        if size != 1 and stride != expected:
            return 0 in view.shape
        expected *= size
    return True


@dataclass(frozen=True, slots=True)
class Strided:
    """Elements that do not lie one after the other, as those of a transposed matrix; strides in elements.

    The tensor is held in memory while it is worked on.
    """

    stride: tuple[int, ...]
    files: Sequence[Path] = ()

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The tensor's values."""
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        files.read_into(info.file, info.offset, raw.numpy().data)
        typed = raw.view(getattr(torch, DTYPES[info.dtype].torch))
        return HeldBytes(typed.as_strided(info.shape, self.stride), info.dtype)
