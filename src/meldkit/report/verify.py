"""Whether the files of an output are what its merge has written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from meldkit.checkpoint import (
    DTYPES,
    MAX_HEADER_BYTES,
    TensorInfo,
    open_model,
    parse_header,
    shown,
)
from meldkit.engine import default_threads
from meldkit.errors import CheckpointError
from meldkit.output import CARD, PARTIAL, RECIPE, RECORD, facts, may_be_read, tensor_sum
from meldkit.paths import output_path
from meldkit.recipe import ModelRef
from meldkit.regular import open_regular, sha256_of
from meldkit.report.record import no_file, not_whole, read_record

#: Bytes of a safetensors file before its header, which say how long that is.
_LENGTH = 8

#: Told of bytes looked at, bytes in all, and the file in hand.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not as it was written.

    Attributes:
        kind: "missing", "extra", "size", "header", "bytes" of a tensor, "content" of another file, or
            "contradiction" between configuration and weights.
        file: name within the folder.
        tensor: name of the tensor; "" if it is about the whole file.
        text: the whole of it in words.
    """

    kind: str
    file: str
    tensor: str
    text: str


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """What was looked at in an output, and what was found.

    Attributes:
        path: the folder.
        recorded: whether it has a record of its merge; else only headers and configuration were checked.
        num_files, num_tensors, num_bytes: looked at.
        damage: what is not as it was written.
        extra: files that came later and that no reader takes for the model's.
    """

    path: Path
    recorded: bool
    num_files: int
    num_tensors: int
    num_bytes: int
    damage: tuple[Damage, ...]
    extra: tuple[str, ...]

    def data(self) -> dict[str, Any]:
        """The result as JSON has it."""
        return {
            "path": str(self.path),
            "ok": not self.damage,
            "recorded": self.recorded,
            "files": self.num_files,
            "tensors": self.num_tensors,
            "bytes": self.num_bytes,
            "damage": [asdict(damage) for damage in self.damage],
            "extra": list(self.extra),
        }


def verify_output(folder: str | os.PathLike[str], *, progress: Progress | None = None) -> OutputCheck:
    """Compare the files of an output with what its merge recorded, byte by byte.

    Of a model that meldkit has not made, headers are checked, and whether the configuration belongs to them.

    Args:
        folder: the output.
        progress: called now and then.

    Raises:
        CheckpointError: there is no model, its headers are damaged and there is no record, or the record
            is not of these files.
    """
    path = output_path(folder)
    record = read_record(path)
    if record is None:
        return _headers(path)
    weights: Mapping[str, Any] = record["weights"]
    others: Mapping[str, Any] = record["files"]
    damage: list[Damage] = []
    found = _files(path)
    known = {*weights, *others, RECORD, CARD}
    extra = [name for name in found if name not in known]
    foreign = [name for name in extra if may_be_read(PurePath(name))]
    damage += [
        Damage("extra", name, "", f"{name} is not of this merge, and readers may take it") for name in foreign
    ]
    for name, file in others.items():
        damage += _other(path, name, file)
    total = sum(int(file["size"]) for file in weights.values())
    done = 0
    num_tensors = sum(len(file["sums"]) for file in weights.values())
    with ThreadPoolExecutor(default_threads(), "verify") as pool:
        running: dict[Future[list[Damage]], TensorInfo] = {}
        for name, file in weights.items():
            bad, tensors = _weights(path, name, file)
            damage += bad
            running |= {pool.submit(_tensor, name, info, file["sums"]): info for info in tensors}
        try:
            for future in as_completed(running):
                damage += future.result()
                info = running[future]
                done += info.nbytes
                if progress is not None:
                    progress(done, total, info.name)
        finally:
            pool.shutdown(cancel_futures=True)
    order = {name: index for index, name in enumerate([*others, *weights])}
    damage.sort(key=lambda d: (order.get(d.file, -1), d.file, d.tensor))
    return OutputCheck(
        path=path,
        recorded=True,
        num_files=len(weights) + len(others),
        num_tensors=num_tensors,
        num_bytes=total + sum(int(file["size"]) for file in others.values()),
        damage=tuple(damage),
        extra=tuple(name for name in extra if name not in foreign),
    )


def _files(folder: Path) -> list[str]:
    """Names of all that a folder holds, at whatever depth, but for folders and what is hidden."""
    names = (p.relative_to(folder) for p in folder.rglob("*") if not p.is_dir())
    return sorted(n.as_posix() for n in names if not any(part.startswith(".") for part in n.parts))


def _size(folder: Path, name: str, wanted: int) -> Iterator[Damage]:
    """What is wrong with a file from the outside."""
    path = folder / name
    if not path.is_file():
        yield Damage("missing", name, "", f"{name} {no_file(path)}")
    elif (size := path.stat().st_size) != wanted:
        what = "was cut off" if size < wanted else "is too long"
        yield Damage("size", name, "", f"{name} {what}: it has {size:,} bytes, {wanted:,} were written")


def _other(folder: Path, name: str, file: Mapping[str, Any]) -> Iterator[Damage]:
    path = folder / name
    if not path.is_file():
        yield Damage("missing", name, "", f"{name} {no_file(path)}")
        return
    try:
        found = sha256_of(path)
    except OSError as e:
        raise _unreadable(path, e) from e
    if found != file["sha256"]:
        yield Damage("content", name, "", f"{name} was changed after the merge")


def _weights(folder: Path, name: str, file: Mapping[str, Any]) -> tuple[list[Damage], list[TensorInfo]]:
    """What is wrong with a weight file apart from values, and the tensors whose values can be looked at."""
    damage = list(_size(folder, name, int(file["size"])))
    path = folder / name
    if any(d.kind == "missing" for d in damage):
        return damage, []
    try:
        size = path.stat().st_size
        with os.fdopen(open_regular(path), "rb") as stream:
            prefix = stream.read(_LENGTH)
            length = int.from_bytes(prefix, "little")
            raw = prefix + stream.read(min(length, MAX_HEADER_BYTES))
    except OSError as e:
        raise _unreadable(path, e) from e
    if hashlib.sha256(raw).hexdigest() != file["header_sha256"]:
        return [*damage, Damage("header", name, "", f"{name} has another header than was written")], []
    tensors: list[TensorInfo] = []
    found = parse_header(path, raw[_LENGTH:], size).tensors
    # The header is the one that was written: a record of its merge has a sum of each tensor in it.
    if left_out := next((tensor for tensor in found if tensor not in file["sums"]), None):
        raise not_whole(folder, f"it has no sum of tensor {shown(left_out)} of {name}")
    for tensor in file["sums"]:
        info = found.get(tensor)
        if info is None:
            damage.append(Damage("missing", name, tensor, f"{name} has no tensor '{tensor}'"))
        elif info.offset + info.nbytes > size:
            damage.append(Damage("bytes", name, tensor, f"{name}: tensor '{tensor}' is cut off"))
        else:
            tensors.append(info)
    return damage, tensors


def _tensor(file: str, info: TensorInfo, sums: Mapping[str, str]) -> list[Damage]:
    try:
        found = str(tensor_sum(info))
    except (OSError, EOFError) as e:
        raise _unreadable(info.file, e) from e
    if found == sums[info.name]:
        return []
    what = f"{DTYPES[info.dtype].name} {list(info.shape)}"
    text = f"{file}: tensor '{info.name}' ({what}) has other bytes than were written"
    return [Damage("bytes", file, info.name, text)]


def _unreadable(path: Path, error: OSError | EOFError) -> CheckpointError:
    reason = (error.strerror if isinstance(error, OSError) else None) or "it ends too early"
    return CheckpointError(f"cannot read {path}: {reason}", hint="look at the disk, or copy the model again")


def _headers(path: Path) -> OutputCheck:
    """What can be said of a model without a record."""
    if (path / PARTIAL).is_dir():
        raise CheckpointError(
            f"{path} holds an unfinished merge",
            hint="run the same merge again; it continues where it stopped",
        )
    damage: list[Damage] = []
    if (path / RECIPE).is_file():
        text = f"{RECORD} is missing, which the merge has written beside {RECIPE}: the copy is incomplete"
        damage.append(Damage("missing", RECORD, "", text))
    checkpoint = open_model(ModelRef.from_value(path))
    shapes = {name: info.shape for name, info in checkpoint.items()}
    damage += [
        Damage("contradiction", "config.json", "", f"config.json and weights disagree: {fact.text}")
        for fact in facts(checkpoint.config, shapes).values()
        if not fact.agrees
    ]
    files = checkpoint.files()
    return OutputCheck(
        path=path,
        recorded=False,
        num_files=len(files),
        num_tensors=len(checkpoint),
        num_bytes=sum(file.stat().st_size for file in files),
        damage=tuple(damage),
        extra=(),
    )
