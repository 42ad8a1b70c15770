"""A model folder: which tensors it holds, where they lie, and its configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from meldkit.checkpoint.config import read_config
from meldkit.checkpoint.files import OpenFiles
from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.links import check_links
from meldkit.checkpoint.quantised import digest_of_settings, may_be_quantised
from meldkit.checkpoint.tensor import StoredTensor, TensorInfo, TileSource
from meldkit.checkpoint.weights import parts, read_weights
from meldkit.errors import CheckpointError, RunError

if TYPE_CHECKING:
    from meldkit.checkpoint.adapter import Adapter


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint(Mapping[str, TensorInfo]):
    """Tensors by name, in the order in which they lie on disk; adapters are already taken into account.

    Attributes:
        label: the model as the recipe names it.
        folder: where its configuration and tokenizer lie.
        tensors: stored tensors, those that adapters change encoded over what is stored.
        config: config.json, empty if there is none, with what adapters change in it.
        tokenizer: folder of an adapter that brings a tokenizer for tokens of its own; None for the model's.
        adapters: LoRA adapters laid over the stored tensors, in order.
        fingerprint: hex hash of everything the headers say.
        parts: folders below, such as "2_Dense", with which the names of tensors in their weight files begin.
        notes: what adapters do besides changing values, in words.
        warnings: what may not be as it was meant, in words.
        absent: weight files of which only the heads are here, with their sizes in bytes; planning is all that
            this checkpoint is good for if there are any.
        gguf: the GGUF file that holds its configuration and tokenizer too; None if files in a folder do.
    """

    label: str
    folder: Path
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    tokenizer: Path | None
    adapters: tuple[Adapter, ...]
    fingerprint: str
    parts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    absent: Mapping[Path, int] = field(default_factory=dict[Path, int])
    gguf: Path | None = None

    def __getitem__(self, name: str) -> TensorInfo:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def plain(self, name: str) -> bool:
        """Whether the tensor's stored bytes are its value: no encoding, no adapter."""
        return self.tensors[name].encoding is None

    def stored(self, files: OpenFiles, name: str) -> StoredTensor:
        """A plain tensor as it lies in its file."""
        self._check_present(name)
        return StoredTensor(files, self.tensors[name])

    def files(self) -> list[Path]:
        """Every weight file, adapters' included."""
        return list(dict.fromkeys(path for info in self.tensors.values() for path in info.files))

    def source(self, files: OpenFiles, name: str) -> TileSource:
        """Tiles of the tensor's value, adapters added."""
        self._check_present(name)
        return self.tensors[name].open(files)

    def _check_present(self, name: str) -> None:
        if self.absent and not self.absent.keys().isdisjoint(self.tensors[name].files):
            raise RunError(
                f"model '{self.label}' has not been downloaded: of {shown(name)} only the header is here",
                hint="open the model without headers_only",
            )


def open_checkpoint(
    label: str, folder: Path, adapter_folders: tuple[Path, ...] = (), *, alone: bool = False
) -> Checkpoint:
    """Read the headers and configuration of a model folder (or of one weight file).

    Args:
        label: the model as the recipe names it, for messages.
        folder: folder or file.
        adapter_folders: LoRA adapters to lay over it.
        alone: leave aside what lies beside a weight file.

    Raises:
        CheckpointError: anything missing, damaged or contradictory, or a link that leads out of the folder.
        MismatchError: an adapter of another base.
        FormatError: a storage format that is not read.
    """
    try:
        whole = folder.is_dir()
        root = folder if whole else folder.parent
        has_config = (whole or not alone) and (root / "config.json").exists()
        for each in (*([root] if whole or has_config else []), *adapter_folders):
            check_links(label, each)
        headers = read_weights(label, folder)
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
    # A file that tells its own configuration may lie beside that of another model.
    stored_config = headers[0].config or (read_config(root / "config.json") if has_config else {})
    config: Mapping[str, Any] = stored_config
    if may_be_quantised(tensors, stored_config):
        from meldkit.checkpoint.quantised.dequantise import dequantised

        tensors, config = dequantised(label, tensors, stored_config)
    digests = [h.digest for h in headers] + [digest_of_settings(stored_config)]
    first = next(iter(tensors.values())).file
    checkpoint = Checkpoint(
        label=label,
        folder=root,
        tensors=tensors,
        config=config,
        tokenizer=None,
        adapters=(),
        fingerprint=hashlib.sha256("".join(digests).encode()).hexdigest(),
        parts=parts(folder) if whole else (),
        notes=tuple(_left_beside(label, folder)),
        gguf=first if first.suffix == ".gguf" else None,
    )
    if not adapter_folders:
        return checkpoint
    return lay_over(checkpoint, adapter_folders, folder, stored_config, digests)


def lay_over(
    checkpoint: Checkpoint,
    adapter_folders: Sequence[Path],
    folder: Path,
    stored_config: Mapping[str, Any],
    digests: Sequence[str],
) -> Checkpoint:
    """A checkpoint with LoRA adapters over its tensors.

    Args:
        checkpoint: without them.
        adapter_folders: of the adapters, in order.
        folder: of the checkpoint, or its file.
        stored_config: as adapters may have recorded it.
        digests: of what the checkpoint is, which its fingerprint is a hash of.

    Raises:
        CheckpointError: an adapter is damaged.
        MismatchError: an adapter of another base.
    """
    from meldkit.checkpoint.adapter import open_adapter, other_base

    tensors, config = dict(checkpoint.tensors), checkpoint.config
    warnings: list[str] = []
    adapters: list[Adapter] = []
    tokenizer = checkpoint.tokenizer
    for path in adapter_folders:
        adapter = open_adapter(path, tensors, config)
        if other := other_base(path, [folder, *(below.folder for below in adapters)], stored_config):
            warnings.append(f"model '{checkpoint.label}': {other}")
        adapters.append(adapter)
        if _num_tokens(adapter.config) != _num_tokens(config) and (path / "tokenizer_config.json").is_file():
            tokenizer = path
        tensors |= adapter.tensors
        config = adapter.config
    everything = [*digests, *(adapter.digest for adapter in adapters)]
    return replace(
        checkpoint,
        tensors=tensors,
        config=config,
        tokenizer=tokenizer,
        adapters=(*checkpoint.adapters, *adapters),
        fingerprint=hashlib.sha256("".join(everything).encode()).hexdigest(),
        notes=(*checkpoint.notes, *(note for adapter in adapters for note in adapter.notes)),
        warnings=(*checkpoint.warnings, *warnings),
    )


def _left_beside(label: str, folder: Path) -> Iterator[str]:
    """Notes about files that belong to the model in a folder, and are not merged."""
    names = sorted(path.name for path in folder.glob("*.gguf"))
    if not names:
        return
    from meldkit.checkpoint.gguf import without_projectors

    models = without_projectors(names)
    for name in names:
        if name not in models:
            yield f"model '{label}': {name}, which makes its input of images or sounds, is left out"


def _num_tokens(config: Mapping[str, Any]) -> object:
    text = config.get("text_config")
    return config.get(
        "vocab_size", cast("dict[str, Any]", text).get("vocab_size") if isinstance(text, dict) else None
    )
