"""A GGUF file as a model of Hugging Face: its names, its order of rows, its config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meldkit.checkpoint.dtypes import DTYPES
from meldkit.checkpoint.gguf.architectures import ARCHITECTURES, REFUSED, Architecture, variant
from meldkit.checkpoint.gguf.contents import Contents, bad
from meldkit.checkpoint.gguf.parts import read_model
from meldkit.checkpoint.gguf.settings import Settings, token_ids
from meldkit.checkpoint.gguf.tensors import read_tensors
from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.tensor import Header
from meldkit.errors import FormatError


def read_gguf(path: Path) -> Header:
    """The tensors of a GGUF file by their Hugging Face names, and its config.json; no weight is read.

    Any part of a model that is split into several files stands for all of them.

    All tensors have one element type, as in the model that the file was made from: that of the matrices,
    or BF16 if these are quantised. llama.cpp keeps norms and biases in F32 whatever the model's type is.

    Raises:
        CheckpointError: missing, damaged or contradictory.
        FormatError: an architecture whose names are not known, or numbers that cannot be decoded here.
    """
    return header_of(read_model(path))


def header_of(contents: Contents) -> Header:
    """The same of a file's contents.

    Raises:
        CheckpointError: contradictory.
        FormatError: an architecture whose names are not known, or numbers that cannot be decoded here.
    """
    settings = Settings(contents, _architecture(contents))
    architecture = variant(settings)
    dtype = _dtype(contents)
    tensors = read_tensors(settings, architecture, dtype)
    config = _config(settings, architecture, dtype)
    metadata = {key: value for key, value in contents.settings.items() if isinstance(value, str)}
    return Header(tensors=tensors, metadata=metadata, digest=contents.digest, config=config)


def _architecture(contents: Contents) -> str:
    name = contents.settings.get("general.architecture")
    if not isinstance(name, str):
        raise bad(contents.path, "does not say its architecture (general.architecture)")
    if name in REFUSED:
        raise FormatError(
            f"not supported: {contents.path} is of the architecture '{name}': {REFUSED[name]}",
            hint="merge the original model",
        )
    if name not in ARCHITECTURES:
        raise FormatError(
            f"not supported: {contents.path} is of the architecture {shown(name)}, whose tensors have no "
            "known Hugging Face names",
            hint="merge the original model",
        )
    return name


def _dtype(contents: Contents) -> str:
    """The element type of the model that the file was made from, as far as it can be told."""
    kinds = {entry.kind.name for entry in contents.tensors.values()}
    if kinds <= {"F32"}:
        return "F32"
    return "F16" if kinds <= {"F32", "F16"} else "BF16"


def _config(settings: Settings, architecture: Architecture, dtype: str) -> dict[str, Any]:
    contents = settings.contents
    embedding = contents.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise bad(contents.path, "has no matrix token_embd.weight")
    mtp = architecture.mtp
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in contents.tensors,
        "torch_dtype": DTYPES[dtype].torch,
        **architecture.describe(settings),
        **({mtp.setting: settings.count("nextn_predict_layers")} if mtp and mtp.setting else {}),
        **token_ids(contents),
    }
