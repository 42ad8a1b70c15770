"""What a fine-tune has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from meldkit.checkpoint import Checkpoint, OpenFiles, Scratch, TensorInfo
from meldkit.tools.lora.experts import is_expert_stack

#: Elements read at once where two tensors are compared.
_PIECE = 1 << 20


def equal(files: OpenFiles, one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors are the same."""
    if one.shape != other.shape:
        return False
    sources = [info.open(files) for info in (one, other)]
    rooms = [torch.empty(min(_PIECE, one.numel)) for _ in sources]
    scratch = Scratch()
    for start in range(0, one.numel, _PIECE):
        stop = min(start + _PIECE, one.numel)
        parts = [room[: stop - start] for room in rooms]
        for source, part in zip(sources, parts, strict=True):
            source.read(start, stop, part, scratch)
        if not torch.equal(*parts):
            return False
    return True


def loose_changes(
    files: OpenFiles, base: Checkpoint, model: Checkpoint, chosen: Callable[[str], bool]
) -> Iterator[str]:
    """Warnings about tensors that belong to no module that PEFT could change, and have changed."""
    loose = [
        name
        for name, info in model.tensors.items()
        if info.floating
        and not name.endswith(".weight")
        and not (name.endswith(".bias") and name in base)
        and not is_expert_stack(name, info)
        and chosen(name)
    ]
    changed = [name for name in loose if name in base and not equal(files, base[name], model[name])]
    for names, why in (
        (changed, "changed by the fine-tune, and left out: it is no module's weight"),
        ([name for name in loose if name not in base], "left out: the base has none that it could change"),
    ):
        if names:
            more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
            yield f"{names[0]}{more}: {why}"
