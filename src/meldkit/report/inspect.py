"""What one model is made of, from its headers and its configuration."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meldkit.checkpoint import Checkpoint, TensorInfo, open_model
from meldkit.layout import Layout, Part, all_parts, infer_layout, part_of
from meldkit.recipe import ModelRef


@dataclass(frozen=True, slots=True)
class PartSummary:
    """One part of a model, as a recipe's `modules:` addresses it.

    Attributes:
        name: of the part.
        part: the beginning of its tensors' names and the layers that `layer_range` counts in it.
        num_tensors: how many tensors it has.
        num_parameters: elements of them.
    """

    name: str
    part: Part
    num_tensors: int
    num_parameters: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one model is made of.

    Attributes:
        checkpoint: its tensors and configuration.
        layout: where each tensor stands.
        parts: the text decoder first.
        roles: elements by role: attention, mlp, expert, router, embedding, norm, lm_head, vision, other.
        dtypes: elements by the type of their values, safetensors spelling.
        num_encoded: tensors that are not stored as an array of that type, such as quantised ones.
    """

    checkpoint: Checkpoint
    layout: Layout
    parts: tuple[PartSummary, ...]
    roles: Mapping[str, int]
    dtypes: Mapping[str, int]
    num_encoded: int

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in the order of the files."""
        return self.checkpoint.tensors

    def part_of(self, tensor: str) -> str:
        """The name of the part that a tensor belongs to."""
        return part_of({summary.name: summary.part for summary in self.parts}, tensor)


def inspect(model: str | os.PathLike[str] | ModelRef, *, cache: Path | None = None) -> Inspection:
    """Look at a model; reads headers and configuration only.

    Args:
        model: as recipes name it: a folder, a file, a hub id, with adapters.
        cache: where downloads are kept; None for the hub's own cache.

    Raises:
        RecipeError: that names no model.
        CheckpointError: there is no such model, or it is damaged.
    """
    ref = model if isinstance(model, ModelRef) else ModelRef.parse(os.fspath(model))
    checkpoint = open_model(ref, cache=cache, headers_only=True)
    layout = infer_layout(checkpoint, checkpoint.config)
    parts = all_parts(layout)
    tensors: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    roles: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for name, info in checkpoint.items():
        owner = part_of(parts, name)
        tensors[owner] += 1
        elements[owner] += info.numel
        roles[layout.places[name].role] += info.numel
        dtypes[info.dtype] += info.numel
    return Inspection(
        checkpoint=checkpoint,
        layout=layout,
        parts=tuple(PartSummary(n, part, tensors[n], elements[n]) for n, part in parts.items() if tensors[n]),
        roles=dict(roles.most_common()),
        dtypes=dict(dtypes.most_common()),
        num_encoded=sum(info.encoding is not None for info in checkpoint.values()),
    )
