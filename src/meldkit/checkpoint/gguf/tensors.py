"""The tensors of a GGUF file as those of Hugging Face's layout."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from meldkit.checkpoint.gguf.architectures.architecture import Architecture, Leaf
from meldkit.checkpoint.gguf.blocks import Blocks, check_decodable
from meldkit.checkpoint.gguf.contents import Entry, bad
from meldkit.checkpoint.gguf.joined import Alternating, Constant
from meldkit.checkpoint.gguf.rows import row_order
from meldkit.checkpoint.gguf.settings import Settings
from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.rearranged import transposed
from meldkit.checkpoint.tensor import TensorInfo
from meldkit.errors import FormatError

_NAME = re.compile(
    r"(?P<stack>enc\.|dec\.)?(?:blk\.(?P<block>0|[1-9][0-9]{0,4})\.)?(?P<leaf>.*?)(?P<end>\.weight|\.bias)?",
    re.S,
)
_STACKS = {"enc.": "encoder", "dec.": "decoder"}
#: Gates and ups of all experts, in one tensor or in two.
_GATES_AND_UPS, _GATES, _UPS = "ffn_gate_up_exps", "ffn_gate_exps", "ffn_up_exps"
#: Queries, keys and values in one tensor, one below the other, or in three.
_FUSED, _APART = "attn_qkv", ("attn_q", "attn_k", "attn_v")


def read_tensors(settings: Settings, architecture: Architecture, dtype: str) -> dict[str, TensorInfo]:
    """Tensors by their Hugging Face names; no weight is read.

    Args:
        settings: of the file.
        architecture: its.
        dtype: the element type of all tensors.

    Raises:
        CheckpointError: tensors that do not fit what the file says.
        FormatError: a tensor without a known name, or numbers that cannot be decoded here.
    """
    path = settings.contents.path
    tensors: dict[str, TensorInfo] = {}
    parts: dict[str, list[tuple[Leaf, TensorInfo]]] = {}
    for entry in settings.contents.tensors.values():
        for leaf, info in _infos(settings, architecture, entry, dtype):
            if leaf.part is not None:
                parts.setdefault(info.name, []).append((leaf, info))
            elif info.name in tensors:
                raise bad(path, f"has two tensors that would be {shown(info.name)}")
            else:
                tensors[info.name] = info
    for name, pieces in parts.items():
        if name in tensors:
            raise bad(path, f"has two tensors that would be {shown(name)}")
        tensors[name] = _joined(settings, name, pieces)
    if architecture.constants is not None:
        for name, (shape, value) in architecture.constants(settings).items():
            tensors[name] = TensorInfo(name, dtype, shape, path, 0, 0, Constant(value))
    return tensors


@dataclass(frozen=True, slots=True)
class _Name:
    """A tensor's name, taken apart; `stack` is empty unless there is an encoder."""

    stack: str
    block: int | None
    leaf: str
    end: str


def _infos(
    settings: Settings, architecture: Architecture, entry: Entry, dtype: str
) -> Iterator[tuple[Leaf, TensorInfo]]:
    """What a tensor of the file is in the model: one tensor, a part of one, several ones, or none."""
    match = _NAME.fullmatch(entry.name)
    assert match is not None  # every text matches
    block = int(match["block"]) if match["block"] else None
    name = _Name(match["stack"] or "", block, match["leaf"], match["end"] or "")
    if block is None and name.leaf in architecture.left_out:
        return
    found = _target(settings, architecture, name)
    if found is None and name.leaf == _FUSED and block is not None and _APART[0] in architecture.leaves:
        for part in _queries_keys_values(settings, entry, block):
            yield from _infos(settings, architecture, part, dtype)
        return
    if found is None:
        raise FormatError(
            f"not supported: {entry.path} has a tensor {shown(entry.name)}, which has no known "
            f"Hugging Face name in the architecture '{settings.architecture}'",
            hint="merge the original model",
        )
    try:
        check_decodable(entry.kind)
    except FormatError as e:
        raise FormatError(f"{entry.path}: tensor {shown(entry.name)}: {e.message}", hint=e.hint) from e
    prefix, leaf, names = found
    if architecture.raised_norms and name.end == ".weight" and name.leaf.endswith("norm"):
        # What state space models call a norm is not one of the model's own kind.
        leaf = leaf if name.leaf == "ssm_norm" else replace(leaf, change="minus one")
    ending = {"": "", ".weight": leaf.weight, ".bias": leaf.bias}[name.end]
    whole = _stored(settings, leaf, entry, dtype)
    for number, own in _experts(entry, whole) if "{}" in names[0] else [(None, whole)]:
        for stem, piece in zip(names, _equal_parts(entry, own, len(names)), strict=True):
            shaped = piece if name.end == ".bias" and leaf.bias else _shaped(leaf, piece)
            yield leaf, replace(shaped, name=prefix + stem.format(number) + ending)


def _target(
    settings: Settings, architecture: Architecture, name: _Name
) -> tuple[str, Leaf, Sequence[str]] | None:
    """What comes before the names in Hugging Face's layout, how it is stored, and the names.

    There are several names where one tensor has several, one below the other; None if none is known.
    """
    key = name.stack + name.leaf
    if name.block is None:
        found = architecture.names.get(key)
        prefix = ""
    else:
        found = architecture.leaves.get(key)
        blocks = architecture.blocks.replace("{stack}", _STACKS.get(name.stack, ""))
        prefix = f"{blocks}.{name.block}."
        if settings.count("nextn_predict_layers") and name.block >= settings.depth:
            mtp = architecture.mtp
            if mtp is None:
                return None
            if key in mtp.names:
                return "", Leaf(mtp.names[key]), (mtp.names[key],)
            prefix = mtp.blocks.format(block=name.block, own=name.block - settings.depth) + "."
            found = mtp.leaves.get(key, found)
        if found is None and key == _GATES_AND_UPS:
            return _gates_and_ups(architecture, prefix)
    if found is None:
        return None
    leaf = Leaf(found) if isinstance(found, str) else found
    return prefix, leaf, (leaf.name,)


def _gates_and_ups(architecture: Architecture, prefix: str) -> tuple[str, Leaf, Sequence[str]] | None:
    """What a tensor of both is, if it has no row of its own."""
    gates, ups = (architecture.leaves.get(key) for key in (_GATES, _UPS))
    if isinstance(gates, str) and isinstance(ups, str):
        return prefix, Leaf(gates), (gates, ups)
    # In Hugging Face's layout they are one too, in the same order but for being turned.
    joined = isinstance(gates, Leaf) and gates.run in ("row", "matrix")
    return (prefix, replace(gates, part=None), (gates.name,)) if isinstance(gates, Leaf) and joined else None


def _queries_keys_values(settings: Settings, entry: Entry, block: int) -> list[Entry]:
    """The tensors that are one in the file."""
    heads, kv_heads = (
        settings.of_block(f"attention.{key}", block) or settings.heads
        for key in ("head_count", "head_count_kv")
    )
    size = settings.head_size
    rows = entry.shape[0]
    for kind in ("", "_swa"):
        key_size = settings.count(f"attention.key_length{kind}") or size
        value_size = settings.count(f"attention.value_length{kind}") or key_size
        sizes = (heads * key_size, kv_heads * key_size, kv_heads * value_size)
        if sum(sizes) == rows and (len(entry.shape) > 1 or entry.kind.block == 1):
            starts = (0, sizes[0], sizes[0] + sizes[1])
            each = entry.nbytes // rows
            return [
                replace(
                    entry,
                    name=entry.name.replace(_FUSED, leaf),
                    shape=(size, *entry.shape[1:]),
                    offset=entry.offset + start * each,
                    nbytes=size * each,
                )
                for leaf, start, size in zip(_APART, starts, sizes, strict=True)
            ]
    raise bad(
        entry.path,
        f"gives tensor {shown(entry.name)} the shape {list(entry.shape)}, "
        "which cannot be cut into queries, keys and values",
    )


def _stored(settings: Settings, leaf: Leaf, entry: Entry, dtype: str) -> TensorInfo:
    """The tensor as it is stored, but for the order and change of its numbers."""
    first, last = entry.shape[0], entry.shape[-1]
    width = entry.numel // first if leaf.rows else last
    if width % entry.kind.block:
        raise bad(
            entry.path,
            f"stores tensor {shown(entry.name)} in blocks of {entry.kind.name} that are longer than its rows",
        )
    encoding = Blocks(
        entry.kind,
        width,
        rows=row_order(settings, leaf.rows, entry, first),
        columns=row_order(settings, leaf.columns, entry, last),
        change=leaf.change,
    )
    plain = encoding == Blocks(entry.kind, width) and entry.kind.name == dtype
    encoded = None if plain else encoding
    return TensorInfo("", dtype, entry.shape, entry.path, entry.offset, entry.nbytes, encoded)


def _experts(entry: Entry, whole: TensorInfo) -> Iterator[tuple[int, TensorInfo]]:
    """The tensors that are stored as one, by number."""
    if len(whole.shape) < 2:
        raise bad(
            entry.path,
            f"gives tensor {shown(entry.name)} the shape {list(entry.shape)}, not that of several",
        )
    nbytes = whole.nbytes // whole.shape[0]
    for number in range(whole.shape[0]):
        yield (
            number,
            replace(whole, shape=whole.shape[1:], offset=whole.offset + number * nbytes, nbytes=nbytes),
        )


def _equal_parts(entry: Entry, whole: TensorInfo, num: int) -> Sequence[TensorInfo]:
    """The tensors that are stored one below the other."""
    if num == 1:
        return (whole,)
    rows = whole.shape[0]
    if rows % num or (len(whole.shape) == 1 and entry.kind.block > 1):
        raise bad(
            entry.path,
            f"gives tensor {shown(entry.name)} the shape {list(entry.shape)}, which cannot be cut into {num}",
        )
    size, nbytes = rows // num, whole.nbytes // num
    return [
        replace(whole, shape=(size, *whole.shape[1:]), offset=whole.offset + i * nbytes, nbytes=nbytes)
        for i in range(num)
    ]


def _shaped(leaf: Leaf, info: TensorInfo) -> TensorInfo:
    """The same numbers with the sizes that Hugging Face's layout gives them."""
    if leaf.turned and len(info.shape) > 1:
        info = transposed(info)
    if leaf.ones:
        sizes = [size for size in info.shape if size != 1]
        for place in leaf.ones:
            sizes.insert(place, 1)
        info = replace(info, shape=tuple(sizes))
    if leaf.padding:
        info = _padded(info, leaf.padding)
    return _flat(info) if leaf.flat and leaf.part is None else info


def _padded(info: TensorInfo, num: int) -> TensorInfo:
    rows, *rest = info.shape
    zeros = replace(info, shape=(num, *rest), nbytes=0, encoding=Constant(0.0))
    runs = (zeros.numel, info.numel)
    return replace(info, shape=(num + rows, *rest), encoding=Alternating((zeros, info), runs))


def _flat(info: TensorInfo) -> TensorInfo:
    first, *rest = info.shape
    return replace(info, shape=(first * rest[0], *rest[1:])) if rest else info


def _joined(settings: Settings, name: str, pieces: Sequence[tuple[Leaf, TensorInfo]]) -> TensorInfo:
    """A tensor out of its parts."""
    ordered = sorted(pieces, key=lambda piece: piece[0].part or 0)
    leaf, infos = ordered[0][0], [info for _, info in ordered]
    if [leaf.part for leaf, _ in ordered] != [0, 1]:
        raise bad(
            settings.contents.path, f"does not have both parts of what would be {shown(name)}, once each"
        )
    shapes = [list(info.shape) for info in infos]
    axis = {"element": -1, "row": -1, "matrix": -2}.get(leaf.run, 0)
    sizes = [shape.pop(axis) for shape in shapes if len(shape) >= max(1, -axis)]
    keys = settings.integer("ssm.group_count") if leaf.run == "key head" else 1
    equal = leaf.run != "element" or len(set(sizes)) == 1
    if len(sizes) < 2 or shapes[0] != shapes[1] or not equal or any(size % keys for size in sizes):
        raise bad(
            settings.contents.path,
            f"has parts of the shapes {[list(info.shape) for info in infos]} of what would be {shown(name)}",
        )
    # How many sizes a run spans, counted from the last one.
    spans = {"element": 0, "row": 1, "matrix": 2}.get(leaf.run)
    runs = [
        info.numel // keys if spans is None else math.prod(info.shape[len(info.shape) - spans :])
        for info in infos
    ]
    shape = list(infos[0].shape)
    shape[axis] = sum(sizes)
    whole = replace(
        infos[0],
        name=name,
        shape=tuple(shape),
        nbytes=sum(info.nbytes for info in infos),
        encoding=Alternating(tuple(infos), tuple(runs)),
    )
    return _flat(whole) if leaf.flat else whole
