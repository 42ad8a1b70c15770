"""safetensors files: their headers, checked before anything in them is believed.

A file is `u64 little-endian header length | JSON header | data`. The header maps each name to
`{dtype, shape, data_offsets: [begin, end)}` relative to the start of the data.
Source: https://huggingface.co/docs/safetensors (format section).
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from meldkit.checkpoint.dtypes import DTYPES
from meldkit.checkpoint.json_file import parse_mapping, shown, something_else
from meldkit.checkpoint.tensor import Header, TensorInfo
from meldkit.errors import CheckpointError

#: The reference implementation refuses larger headers too.
MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
#: Sizes and offsets from here on do not fit where they are used.
_TOO_LARGE = 2**63
#: Half of a pair, which JSON can spell and no text has.
_HALF = re.compile("[\ud800-\udfff]")
_DOWNLOAD_HINT = "download the file again, or check how it was written"


def read_header(path: Path) -> Header:
    """Read and check the header of one safetensors file; no weight byte is read.

    Raises:
        CheckpointError: missing or truncated file, or a header that lies about lengths, offsets,
            types or names.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a named pipe would be waited for without end
            raise _bad(path, "is not a file", "a folder or a special file cannot hold tensors")
        size = status.st_size
        with path.open("rb") as f:
            prefix = f.read(_LENGTH_BYTES)
            if len(prefix) < _LENGTH_BYTES:
                raise _bad(path, f"has {size} bytes, too few for a safetensors file")
            length = int.from_bytes(prefix, "little")
            if length > size - _LENGTH_BYTES:
                raise something_else(path, prefix) or _bad(
                    path, f"says its header has {length:,} bytes, but the file has {size:,}"
                )
            if length > MAX_HEADER_BYTES:
                raise _bad(
                    path, f"has a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are allowed"
                )
            raw = f.read(length)
    except OSError as e:
        raise CheckpointError(
            f"cannot read {path}: {e.strerror}", hint="check the path, or download the file again"
        ) from e
    header = parse_header(path, raw, size)
    _check_coverage(path, list(header.tensors.values()), _LENGTH_BYTES + length, size)
    return header


def parse_header(path: Path, raw: bytes, size: int) -> Header:
    """Check what a header says, but not whether the file is as long as that.

    Args:
        path: of the file, for messages and tensors.
        raw: the header, without the length before it.
        size: of the file in bytes.

    Raises:
        CheckpointError: it lies about types, names or sizes.
    """
    entries = parse_mapping(f"the header of {path}", raw, _DOWNLOAD_HINT, unique=True)
    metadata = _metadata(path, entries.pop("__metadata__", None))
    _check_names(path, entries)
    start = _LENGTH_BYTES + len(raw)
    infos = sorted(
        (_tensor(path, name, entry, start) for name, entry in entries.items()),
        key=lambda info: (info.offset, info.offset + info.nbytes),
    )
    return Header(
        tensors={info.name: info for info in infos},
        metadata=metadata,
        digest=hashlib.sha256(raw + size.to_bytes(8, "little")).hexdigest(),
    )


def _bad(path: Path, what: str, hint: str = _DOWNLOAD_HINT) -> CheckpointError:
    return CheckpointError(f"{path} {what}", hint=hint)


def _check_names(path: Path, names: Iterable[str]) -> None:
    try:
        "".join(names).encode()
    except UnicodeEncodeError as e:
        name = next(name for name in names if _HALF.search(name))
        raise _bad(path, f"names a tensor {shown(name)}, which is not Unicode text") from e


def _metadata(path: Path, value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _bad(path, "has a __metadata__ entry that is not a mapping")
    metadata = cast("dict[str, object]", value)
    for key, text in metadata.items():
        if not isinstance(text, str):
            raise _bad(path, f"has a __metadata__ entry {shown(key)} that is not text: {shown(text)}")
    return cast("dict[str, str]", metadata)


def _sizes(value: object) -> list[int] | None:
    """A list of integers from 0 to below 2**63, or None if it is anything else."""
    if not isinstance(value, list):
        return None
    for n in cast("list[object]", value):
        if type(n) is not int or not 0 <= n < _TOO_LARGE:
            return None
    return cast("list[int]", value)


def _tensor(path: Path, name: str, entry: object, start: int) -> TensorInfo:
    if not isinstance(entry, dict):
        raise _bad(path, f"describes tensor {shown(name)} by something that is not a mapping")
    fields = cast("dict[str, Any]", entry)
    dtype = fields.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _bad(
            path, f"stores tensor {shown(name)} as dtype {shown(dtype)}", "known: " + ", ".join(DTYPES)
        )
    shape = _sizes(fields.get("shape"))
    if shape is None:
        raise _bad(path, f"gives tensor {shown(name)} the shape {shown(fields.get('shape'))}")
    offsets = _sizes(fields.get("data_offsets"))
    if offsets is None or len(offsets) != 2:
        raise _bad(path, f"gives tensor {shown(name)} the data_offsets {shown(fields.get('data_offsets'))}")
    expected = DTYPES[dtype].itemsize
    for size in shape:
        expected *= size
        if expected >= _TOO_LARGE:
            raise _bad(
                path, f"gives tensor {shown(name)} the shape {shown(shape)}, more than any file can hold"
            )
    begin, end = offsets
    if end - begin != expected:
        raise _bad(
            path,
            f"gives tensor {shown(name)} {end - begin:,} bytes, "
            f"but {dtype} {shown(shape)} needs {expected:,}",
        )
    return TensorInfo(name, dtype, tuple(shape), path, start + begin, expected)


def _check_coverage(path: Path, infos: list[TensorInfo], start: int, size: int) -> None:
    """Tensors must fill the data without overlaps or holes."""
    position = start
    previous = ""
    for info in infos:
        if info.offset < position:
            raise _bad(path, f"has overlapping tensors {shown(previous)} and {shown(info.name)}")
        if info.offset > position:
            raise _bad(path, f"has {info.offset - position:,} unnamed bytes before tensor {shown(info.name)}")
        position = info.offset + info.nbytes
        previous = info.name
        if position > size:
            raise _bad(
                path,
                f"is truncated: tensor {shown(info.name)} ends at byte {position:,}, the file has {size:,}",
            )
    if position != size:
        raise _bad(path, f"has {size - position:,} bytes after its last tensor")
