"""What weight files hold as it is stored, before anything is decoded or laid over it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meldkit.checkpoint.quantised.model import QuantisedModel, settings_of
from meldkit.checkpoint.weights import read_file


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """A tensor as a file has it.

    Attributes:
        kind: of its numbers: safetensors' or ggml's name.
        nbytes: its length.
    """

    kind: str
    nbytes: int


def stored_entries(files: Iterable[Path]) -> dict[tuple[Path, int], StoredEntry]:
    """Everything that weight files hold, by file and first byte; headers only.

    Raises:
        CheckpointError: a file is damaged.
    """
    entries: dict[tuple[Path, int], StoredEntry] = {}
    for path in files:
        if path.suffix == ".gguf":
            from meldkit.checkpoint.gguf.contents import read_contents

            for entry in read_contents(path).tensors.values():
                entries[path, entry.offset] = StoredEntry(entry.kind.name, entry.nbytes)
        else:
            for info in read_file(path).tensors.values():
                entries[path, info.offset] = StoredEntry(info.dtype, info.nbytes)
    return entries


def quantisation_method(config: Mapping[str, Any]) -> str:
    """What a config.json calls the way in which the weights are quantised; "" if it says nothing."""
    return QuantisedModel("", {}, settings_of(config), "BF16").method
