"""Which tensor goes into which file at which byte: headers are computed before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from meldkit.checkpoint import DTYPES
from meldkit.plan.model import OutputFile, TensorJob

_METADATA = {"format": "pt"}
#: Bytes: weights begin at a page of the file, so that they can be written and mapped in whole pages.
_HEADER_ALIGNMENT = 4096

#: name, dtype (safetensors spelling), shape, bytes
Spec = tuple[str, str, tuple[int, ...], int]


def lay_out_jobs(
    drafts: Sequence[TensorJob], shard_size: int, parts: Sequence[str] = ()
) -> tuple[tuple[TensorJob, ...], list[OutputFile]]:
    """Give each job, and its scales, its file and its offset; see `lay_out`."""
    stored = [part for draft in drafts for part in draft.stored]
    files, positions = lay_out([(p.name, p.dtype, p.shape, p.nbytes) for p in stored], shard_size, parts)

    def placed(d: TensorJob) -> TensorJob:
        scales = None if d.scales is None else placed(d.scales)
        # Not `replace`, which takes twice as long.
        return TensorJob(
            d.name, d.dtype, d.shape, d.method, d.values, d.inputs, d.base, *positions[d.name], scales
        )

    return tuple(map(placed, drafts)), files


def lay_out(
    specs: Sequence[Spec], shard_size: int, parts: Sequence[str] = ()
) -> tuple[list[OutputFile], dict[str, tuple[int, int]]]:
    """Distribute tensors over files.

    Tensors keep their order, except that inside a file those of larger elements come first, so that
    each one starts at a multiple of its element size, which readers rely on.

    Args:
        specs: the tensors in output order.
        shard_size: most bytes of tensors per file; a larger tensor has a file of its own.
        parts: folders; tensors whose names begin with one go into files of their own, in that folder.

    Returns:
        The files, and for each tensor name (file index, first byte in that file).
    """
    files: list[OutputFile] = []
    positions: dict[str, tuple[int, int]] = {}
    for folder, own in _by_folder(specs, parts).items():
        shards = list(_fill(own, shard_size))
        for number, shard in enumerate(shards, start=1):
            name = "model" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}"
            ordered = sorted(shard, key=lambda spec: -DTYPES[spec[1]].itemsize)
            header = header_bytes((spec[0].removeprefix(folder), *spec[1:]) for spec in ordered)
            position = len(header)
            for tensor, _, _, nbytes in ordered:
                positions[tensor] = (len(files), position)
                position += nbytes
            files.append(OutputFile(f"{folder}{name}.safetensors", header, position, folder))
    return files, positions


def _by_folder(specs: Sequence[Spec], parts: Sequence[str]) -> dict[str, list[Spec]]:
    """Tensors by the folder that their names begin with; those of the model itself come first."""
    folders: dict[str, list[Spec]] = {"": []}
    for spec in specs:
        part = next((part for part in parts if spec[0].startswith(f"{part}/")), None)
        folders.setdefault("" if part is None else f"{part}/", []).append(spec)
    return folders


def _fill(specs: Iterable[Spec], shard_size: int) -> Iterable[list[Spec]]:
    shard: list[Spec] = []
    filled = 0
    for spec in specs:
        if shard and filled + spec[3] > shard_size:
            yield shard
            shard, filled = [], 0
        shard.append(spec)
        filled += spec[3]
    yield shard


def header_bytes(specs: Iterable[Spec]) -> bytes:
    """Length prefix and JSON header of a safetensors file that holds these tensors back to back."""
    header: dict[str, object] = {"__metadata__": _METADATA}
    position = 0
    for name, dtype, shape, nbytes in specs:
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [position, position + nbytes],
        }
        position += nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
