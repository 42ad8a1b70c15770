"""A model folder: which tensors it holds, where they lie, and its configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from meldkit.checkpoint.adapter import AdaptedTensor, Adapter, open_adapter
from meldkit.checkpoint.files import OpenFiles
from meldkit.checkpoint.json_file import read_json, shown
from meldkit.checkpoint.safetensors import Header, TensorInfo, read_header
from meldkit.checkpoint.tiles import StoredTensor, TileSource
from meldkit.errors import CheckpointError, NotSupportedError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint(Mapping[str, TensorInfo]):
    """Tensors by name, in the order in which they lie on disk; adapters are already taken into account.

    Attributes:
        label: the model as the recipe names it.
        folder: where its configuration and tokenizer lie.
        tensors: stored tensors.
        config: config.json, empty if there is none.
        adapters: LoRA adapters laid over the stored tensors, in order.
        fingerprint: hex hash of everything the headers say.
    """

    label: str
    folder: Path
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    adapters: tuple[Adapter, ...]
    fingerprint: str

    def __getitem__(self, name: str) -> TensorInfo:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def plain(self, name: str) -> bool:
        """Whether the tensor's stored bytes are its value: no adapter changes it."""
        return not any(name in adapter.updates for adapter in self.adapters)

    def stored(self, files: OpenFiles, name: str) -> StoredTensor:
        """The tensor as it lies in its file, adapters left out."""
        return StoredTensor(files, self.tensors[name])

    def files(self) -> list[Path]:
        """Every weight file, adapters' included."""
        paths = [info.file for info in self.tensors.values()]
        for adapter in self.adapters:
            paths += [info.file for update in adapter.updates.values() for info in (update.a, update.b)]
        return list(dict.fromkeys(paths))

    def source(self, files: OpenFiles, name: str) -> TileSource:
        """Tiles of the tensor's value, adapters added."""
        source: TileSource = self.stored(files, name)
        for adapter in self.adapters:
            if name in adapter.updates:
                source = AdaptedTensor(files, source, adapter.updates[name])
        return source


def open_checkpoint(label: str, folder: Path, adapter_folders: tuple[Path, ...] = ()) -> Checkpoint:
    """Read the headers and configuration of a model folder (or of one .safetensors file).

    Args:
        label: the model as the recipe names it, for messages.
        folder: folder or file.
        adapter_folders: LoRA adapters to lay over it.

    Raises:
        CheckpointError: anything missing, damaged or contradictory.
        MismatchError: an adapter of another base.
        NotSupportedError: a storage format that is not read yet.
    """
    try:
        headers = _headers(label, folder)
        root = folder if folder.is_dir() else folder.parent
        has_config = (root / "config.json").exists()
    except OSError as e:
        raise CheckpointError(f"model '{label}': cannot look into {folder}: {e.strerror}") from e
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for name, info in header.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"model '{label}': tensor {shown(name)} is in {tensors[name].file.name} "
                    f"and in {info.file.name}",
                    hint="shards of different downloads are mixed; download the model into an empty folder",
                )
            tensors[name] = info
    if not tensors:
        raise CheckpointError(f"model '{label}' has no tensors", hint=f"check how {folder} was written")
    adapters = tuple(open_adapter(path, tensors) for path in adapter_folders)
    digests = [h.digest for h in headers] + [a.digest for a in adapters]
    return Checkpoint(
        label=label,
        folder=root,
        tensors=tensors,
        config=read_json(root / "config.json") if has_config else {},
        adapters=adapters,
        fingerprint=hashlib.sha256("".join(digests).encode()).hexdigest(),
    )


def _headers(label: str, folder: Path) -> list[Header]:
    if not folder.exists():
        raise CheckpointError(
            f"model '{label}': {folder} does not exist", hint="check the path in the recipe"
        )
    if not folder.is_dir():
        if folder.suffix != ".safetensors":
            raise NotSupportedError(
                f"not supported yet: model '{label}' is a {folder.suffix or 'plain'} file",
                hint="name a folder, or a file that ends in .safetensors",
            )
        return [read_header(folder)]
    # The order in which transformers looks for them.
    if (folder / SINGLE).exists():
        return [read_header(folder / SINGLE)]
    if (folder / INDEX).exists():
        return _indexed(label, folder)
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"model '{label}': {folder} is a LoRA adapter, not a model",
            hint=f"write it as BASE_MODEL+{label}",
        )
    names = sorted(path.name for path in folder.iterdir())
    stray = [name for name in names if name.endswith(".safetensors")]
    if stray:
        raise CheckpointError(
            f"model '{label}': {folder} has neither {SINGLE} nor {INDEX}, but {', '.join(stray[:3])}",
            hint="download the index of a sharded model, or name the one file that is meant",
        )
    others = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".gguf"))]
    if others:
        raise NotSupportedError(
            f"not supported yet: model '{label}' has no safetensors files, only {', '.join(others[:3])}",
            hint="load it with transformers and save_pretrained() it once; that writes safetensors",
        )
    raise CheckpointError(
        f"model '{label}': {folder} has neither {SINGLE} nor {INDEX}",
        hint="check the path in the recipe, and whether the download is complete",
    )


def _indexed(label: str, folder: Path) -> list[Header]:
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map", hint="download the index again")
    files: dict[str, Header] = {}
    for name, file in cast("dict[str, object]", weight_map).items():
        if not isinstance(file, str) or not _stays_inside(file):
            raise CheckpointError(
                f"{index} places tensor {shown(name)} in {shown(file)}",
                hint="only files of the model's own folder are read",
            )
        if file not in files:
            if not (folder / file).exists():
                raise CheckpointError(
                    f"model '{label}': {INDEX} names {shown(file)}, which is not in {folder}",
                    hint="download the missing shard",
                )
            files[file] = read_header(folder / file)
        if name not in files[file].tensors:
            raise CheckpointError(
                f"model '{label}': {INDEX} places tensor {shown(name)} in {file}, which lacks it",
                hint="index and shards are of different downloads; download the model into an empty folder",
            )
    return [files[file] for file in sorted(files)]


def _stays_inside(file: str) -> bool:
    """Whether it is the path of a file below the folder, on every system: no root, `..`, drive or NUL."""
    path = PurePosixPath(file)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and not set(file) & set("\\\0:")
    )
