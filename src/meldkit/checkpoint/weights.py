"""Which files hold a model's weights, in whatever format, and what their headers say."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import cast

from meldkit.checkpoint.json_file import read_json, read_settings, shown
from meldkit.checkpoint.safetensors import read_header
from meldkit.checkpoint.tensor import Header
from meldkit.errors import CheckpointError

#: The names that transformers gives to whole models, in the order in which it looks for them.
_SINGLES = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
#: Lists the parts of a sentence-transformers model, with their folders.
_PARTS = "modules.json"
#: Kinds of such parts that have weights, and the only ones of which a folder must be there.
_WEIGHTED_PARTS = (".Dense", ".LSTM", ".CNN", ".WeightedLayerPooling")
#: Endings of files of `torch.save`.
PICKLED = (".bin", ".pt", ".pth", ".tar", ".ckpt")
#: Endings of weight files, all formats.
SUFFIXES = (".safetensors", ".gguf", *PICKLED)
#: Endings of weight files, whether they are read or not.
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".pickle")


def read_weights(label: str, folder: Path) -> list[Header]:
    """What the weight files of a model folder hold, or one such file; headers only.

    Names of tensors of `parts` begin with the part's folder, such as "2_Dense/linear.weight".

    Args:
        label: the model as the recipe names it, for messages.
        folder: folder or file.

    Raises:
        CheckpointError: anything missing, damaged or contradictory.
        FormatError: a storage format that is not read.
    """
    if not folder.exists():
        raise CheckpointError(
            f"model '{label}': {folder} does not exist", hint="check the path in the recipe"
        )
    if not folder.is_dir():
        return [read_file(folder)]
    headers = _in_folder(label, folder)
    _check_parts(label, folder)
    for part in parts(folder):
        headers += [_named(header, f"{part}/") for header in _in_folder(label, folder / part)]
    return headers


def _named(header: Header, prefix: str) -> Header:
    tensors = {prefix + name: replace(info, name=prefix + name) for name, info in header.tensors.items()}
    return replace(
        header, tensors=tensors, digest=hashlib.sha256((prefix + header.digest).encode()).hexdigest()
    )


def _in_folder(label: str, folder: Path) -> list[Header]:
    """What the weight files that lie directly in a folder hold."""
    for name in (*_SINGLES, *(single + _INDEX for single in _SINGLES)):
        if (folder / name).is_symlink() and not (folder / name).exists():
            raise CheckpointError(
                f"model '{label}': {folder / name} is a link that leads nowhere",
                hint="the file it led to was deleted, perhaps from the hub's cache; download the model again",
            )
    for name in _SINGLES:
        if (folder / name).exists():
            return [read_file(folder / name)]
        if (folder / (name + _INDEX)).exists():
            return _indexed(label, folder, name + _INDEX)
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"model '{label}': {folder} is a LoRA adapter, not a model",
            hint=f"write it as BASE_MODEL+{label}",
        )
    stray = sorted(path.name for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    wanted = f"neither {_SINGLES[0]} nor {_SINGLES[0]}{_INDEX}"
    ggufs = [name for name in stray if name.endswith(".gguf")]
    if stray and ggufs == stray:
        from meldkit.checkpoint.gguf import one_model, without_projectors

        ggufs = without_projectors(ggufs)
        whole = one_model(ggufs)
        if whole is not None:
            return [read_file(folder / whole)]
        raise CheckpointError(
            f"model '{label}': {folder} has {len(ggufs)} GGUF files: {', '.join(ggufs[:3])}",
            hint=f"each of them is a model; name one, such as {label}/{ggufs[0]}",
        )
    if any(name.startswith("adapter_model.") for name in stray):
        raise CheckpointError(
            f"model '{label}': {folder} has the weights of an adapter, but no adapter_config.json",
            hint="download that file, too; it says what they are added to, and how",
        )
    if stray:
        raise CheckpointError(
            f"model '{label}': {folder} has {wanted}, but {', '.join(stray[:3])}",
            hint="download the index of a sharded model, or name the one file that is meant",
        )
    raise CheckpointError(
        f"model '{label}': {folder} has {wanted}",
        hint="check the path in the recipe, and whether the download is complete",
    )


def read_file(path: Path) -> Header:
    """What one weight file holds, by the format that its ending names.

    Raises:
        CheckpointError: missing, damaged or contradictory.
        FormatError: a storage format that is not read.
    """
    if path.suffix == ".safetensors":
        return read_header(path)
    if path.suffix == ".gguf":
        from meldkit.checkpoint.gguf import read_gguf

        return read_gguf(path)
    if path.suffix in PICKLED:
        from meldkit.checkpoint.pickled import read_pickled

        return read_pickled(path)
    raise CheckpointError(
        f"{path} is no weight file that is known by its ending '{path.suffix}'",
        hint="name a model folder, or a file that ends in " + ", ".join(SUFFIXES),
    )


def parts(folder: Path) -> tuple[str, ...]:
    """The folders below a model's that hold weights of parts of it, as in sentence-transformers."""
    return tuple(path for path, _ in _listed_parts(folder) if _has_weights(folder / path))


def _listed_parts(folder: Path) -> list[tuple[str, str]]:
    """Folder and kind of each part that is listed."""
    try:
        listed: object = json.loads(read_settings(folder / _PARTS))
    except (CheckpointError, ValueError, RecursionError):
        return []
    entries = cast("list[object]", listed) if isinstance(listed, list) else []
    found = [cast("dict[str, object]", entry) for entry in entries if isinstance(entry, dict)]
    pairs = [(entry.get("path"), str(entry.get("type"))) for entry in found]
    return [(path.rstrip("/"), kind) for path, kind in pairs if isinstance(path, str) and stays_inside(path)]


def _has_weights(folder: Path) -> bool:
    return any((folder / (name + end)).is_file() for name in _SINGLES for end in ("", _INDEX))


def _check_parts(label: str, folder: Path) -> None:
    for path, kind in _listed_parts(folder):
        if kind.endswith(_WEIGHTED_PARTS) and not _has_weights(folder / path):
            raise CheckpointError(
                f"model '{label}': {_PARTS} names the part {shown(path)}, whose weights are not in {folder}",
                hint=f"download the folder {shown(path)} of the model as well",
            )


def _indexed(label: str, folder: Path, name_of_index: str) -> list[Header]:
    index = folder / name_of_index
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map", hint="download the index again")
    files: dict[str, Header] = {}
    for name, file in cast("dict[str, object]", weight_map).items():
        if not isinstance(file, str) or (file not in files and not stays_inside(file)):
            raise CheckpointError(
                f"{index} places tensor {shown(name)} in {shown(file)}",
                hint="only files of the model's own folder are read",
            )
        if file not in files:
            if not (folder / file).exists():
                raise CheckpointError(
                    f"model '{label}': {name_of_index} names {shown(file)}, which is not in {folder}",
                    hint="download the missing shard",
                )
            files[file] = read_file(folder / file)
        if name not in files[file].tensors:
            raise CheckpointError(
                f"model '{label}': {name_of_index} places tensor {shown(name)} in {file}, which lacks it",
                hint="index and shards are of different downloads; download the model into an empty folder",
            )
    return [files[file] for file in sorted(files)]


def stays_inside(file: str) -> bool:
    """Whether it is the path of a file below the folder, on every system: no root, `..`, drive or NUL."""
    path = PurePosixPath(file)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and not set(file) & set("\\\0:")
    )
