"""A GGUF file as a model of Hugging Face: its names, its order of rows, its config.json."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meldkit.checkpoint.dtypes import DTYPES
from meldkit.checkpoint.gguf.architectures import (
    ARCHITECTURES,
    FALCON_MAMBA,
    FALCON_TWO_NORMS,
    MISTRAL,
    MIXTRAL,
    OLMO3,
    Architecture,
    Rows,
)
from meldkit.checkpoint.gguf.blocks import Blocks, Change, RowOrder, check_decodable
from meldkit.checkpoint.gguf.contents import Contents, Entry, bad, read_contents
from meldkit.checkpoint.gguf.settings import Settings, token_ids
from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.tensor import Header, TensorInfo
from meldkit.errors import NotSupportedError

_NAME = re.compile(r"(?:blk\.(?P<block>0|[1-9][0-9]{0,4})\.)?(?P<leaf>.*?)(?P<end>\.weight|\.bias)?", re.S)


def read_gguf(path: Path) -> Header:
    """The tensors of a GGUF file by their Hugging Face names, and its config.json; no weight is read.

    All tensors have one element type, as in the model that the file was made from: that of the matrices,
    or BF16 if these are quantised. llama.cpp keeps norms and biases in F32 whatever the model's type is.

    Raises:
        CheckpointError: missing, damaged or contradictory.
        NotSupportedError: an architecture whose names are not known, a part of a split file, or numbers that
            cannot be decoded here.
    """
    contents = read_contents(path)
    if contents.settings.get("split.count", 1) not in (0, 1):
        raise NotSupportedError(
            f"not supported: {path} is one of {shown(contents.settings['split.count'])} parts of a model",
            hint="join them: llama-gguf-split --merge FIRST_PART OUTPUT.gguf",
        )
    name, architecture = _architecture(contents)
    settings = Settings(contents, name)
    dtype = _dtype(contents)
    tensors: dict[str, TensorInfo] = {}
    for entry in contents.tensors.values():
        for info in _infos(settings, architecture, entry, dtype):
            if info.name in tensors:
                raise bad(path, f"has two tensors that would be {shown(info.name)}")
            tensors[info.name] = info
    config = _config(settings, architecture, dtype)
    metadata = {key: value for key, value in contents.settings.items() if isinstance(value, str)}
    return Header(tensors=tensors, metadata=metadata, digest=contents.digest, config=config)


def _architecture(contents: Contents) -> tuple[str, Architecture]:
    name = contents.settings.get("general.architecture")
    if not isinstance(name, str):
        raise bad(contents.path, "does not say its architecture (general.architecture)")
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise NotSupportedError(
            f"not supported: {contents.path} is of the architecture {shown(name)}, whose tensors have no "
            "known Hugging Face names",
            hint="known: " + ", ".join(ARCHITECTURES) + "; or merge the original model",
        )
    return name, _variant(contents, name) or architecture


def _variant(contents: Contents, name: str) -> Architecture | None:
    """Another model that llama.cpp files under the same name."""
    settings, tensors = contents.settings, contents.tensors
    if name == "llama":
        titles = [settings.get(f"general.{key}") for key in ("name", "basename")]
        if "blk.0.ffn_gate_inp.weight" in tensors:
            return MIXTRAL
        # To llama.cpp they are the same, and the file says so in nothing but its title.
        if any(isinstance(title, str) and "mistral" in title.lower() for title in titles):
            return MISTRAL
    if name == "falcon" and "blk.0.attn_norm_2.weight" in tensors:
        return FALCON_TWO_NORMS
    if name == "mamba" and settings.get("mamba.ssm.dt_b_c_rms") is True:
        return FALCON_MAMBA
    if name == "olmo2" and "olmo2.attention.sliding_window" in settings:
        return OLMO3
    return None


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
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in contents.tensors,
        "torch_dtype": DTYPES[dtype].torch,
        **architecture.describe(settings),
        **token_ids(contents),
    }


@dataclass(frozen=True, slots=True)
class _Name:
    """A tensor's name, taken apart."""

    block: int | None
    leaf: str
    end: str


def _infos(settings: Settings, architecture: Architecture, entry: Entry, dtype: str) -> Iterator[TensorInfo]:
    """What a tensor of the file is in the model: one tensor, or one for each expert, or none."""
    path = settings.contents.path
    match = _NAME.fullmatch(entry.name)
    assert match is not None  # every text matches
    name = _Name(int(match["block"]) if match["block"] else None, match["leaf"], match["end"] or "")
    if name.block is None and name.leaf in architecture.left_out:
        return
    target = (architecture.names if name.block is None else architecture.leaves).get(name.leaf)
    if target is None:
        raise NotSupportedError(
            f"not supported: {path} has a tensor {shown(entry.name)}, which has no known Hugging Face name "
            f"in the architecture '{settings.architecture}'",
            hint="merge the original model",
        )
    try:
        check_decodable(entry.kind)
    except NotSupportedError as e:
        raise NotSupportedError(f"{path}: tensor {shown(entry.name)}: {e.message}", hint=e.hint) from e
    if name.block is not None:
        target = f"{architecture.blocks}.{name.block}.{target}"
    if name.leaf not in _WITHOUT_ENDING:
        target += name.end
    encoding = Blocks(
        entry.kind,
        rows=_row_order(settings, architecture.rows.get(name.leaf), entry),
        change=_change(architecture, name),
        transposed=name.leaf in architecture.transposed and len(entry.shape) == 2,
    )
    shape = entry.shape[::-1] if encoding.transposed else entry.shape
    if name.leaf in architecture.unsqueezed and name.end == ".weight":
        shape = _unsqueezed(shape, architecture.unsqueezed[name.leaf])
    plain = encoding == Blocks(entry.kind) and entry.kind.name == dtype
    info = TensorInfo(target, dtype, shape, path, entry.offset, entry.nbytes, None if plain else encoding)
    if "{}" not in target:
        yield info
        return
    if len(shape) != 3:
        raise bad(path, f"gives tensor {shown(entry.name)} the shape {list(shape)}, not that of experts")
    nbytes = entry.nbytes // shape[0]
    for expert in range(shape[0]):
        yield replace(
            info,
            name=target.format(expert),
            shape=shape[1:],
            offset=entry.offset + expert * nbytes,
            nbytes=nbytes,
        )


#: Tensors that are neither a weight nor a bias in Hugging Face's names.
_WITHOUT_ENDING = frozenset({"ssm_a", "ssm_d"})


def _change(architecture: Architecture, name: _Name) -> Change:
    if architecture.raised_norms and name.leaf.endswith("norm") and name.end == ".weight":
        return "minus one"
    return "log of negative" if name.leaf in architecture.negated_logs else "as stored"


def _unsqueezed(shape: tuple[int, ...], place: int) -> tuple[int, ...]:
    # Some programs that write these files keep the dimension.
    return shape if len(shape) == place + 2 else (*shape[:place], 1, *shape[place:])


def _row_order(settings: Settings, rule: Rows | None, entry: Entry) -> RowOrder | None:
    if rule is None:
        return None
    heads, kv_heads = settings.heads, settings.kv_heads
    if rule in ("query pairs", "key pairs"):
        own = heads if rule == "query pairs" else kv_heads
        order: tuple[int, ...] = ()
    elif rule == "heads":
        own = 3 * heads
        order = tuple(which * heads + head for head in range(heads) for which in range(3))
    else:
        own = heads + 2 * kv_heads
        each = heads // kv_heads
        order = tuple(
            stored
            for group in range(kv_heads)
            for stored in (*range(group * each, (group + 1) * each), heads + group, heads + kv_heads + group)
        )
    size, rest = divmod(entry.shape[0] if entry.shape else 0, own)
    if rest or not size or heads % kv_heads or (not order and size % 2):
        raise bad(
            settings.contents.path,
            f"gives tensor {shown(entry.name)} the shape {list(entry.shape)}, "
            f"which does not fit {heads} heads ({kv_heads} for keys and values)",
        )
    return RowOrder(size, order, pairs=not order)
