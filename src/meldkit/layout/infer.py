"""How a model's tensors are organised, read off their names and confirmed by config.json.

A *stack* is a family of names that differ in one integer path component covering 0..n-1, such as
`model.layers.{i}.`, `transformer.h.{i}.` or `encoder.layer.{i}.`. Every other tensor stands outside.
Two families are never stacks: numbers at the very start of names (the modules of a pipeline, as in
`0.auto_model.encoder…`), and experts, which are parallel and not one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from meldkit.errors import MismatchError

#: What configurations call the number of blocks of a stack.
DEPTH_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
#: Sections of a configuration that describe a part of the model.
_SECTIONS = (
    "text_config",
    "language_config",
    "llm_config",
    "vision_config",
    "audio_config",
    "encoder",
    "decoder",
)

#: A component of a name that can number a block, within and followed by other components.
_INDEX = re.compile(r"(?<=\.)(?:0|[1-9][0-9]{0,5})(?=\.)")
_NO_STACK = re.compile(r"experts?\.\Z")

_ROLES = (
    ("vision", re.compile(r"(^|\.)(vision|visual|image)", re.I)),
    ("router", re.compile(r"(router|(^|\.)gate\.)", re.I)),
    ("expert", re.compile(r"experts?\.", re.I)),
    ("lm_head", re.compile(r"(^|\.)(lm_head|embed_out|output_projection)\.", re.I)),
    # Before "norm": the normalisation of embeddings belongs to them, not to what follows the layers.
    ("embedding", re.compile(r"(embed|(^|\.)w[tp]e\.|^shared\.)", re.I)),
    ("norm", re.compile(r"(norm|(^|\.)ln_)", re.I)),
    ("attention", re.compile(r"att", re.I)),
    ("mlp", re.compile(r"(mlp|ffn|feed_forward|intermediate|output\.dense|DenseRelu|(^|\.)fc)", re.I)),
)


@dataclass(frozen=True, slots=True)
class Stack:
    """Blocks `prefix{0}.` … `prefix{num_blocks-1}.`."""

    prefix: str
    num_blocks: int

    def name(self, block: int, leaf: str) -> str:
        """The tensor's name."""
        return f"{self.prefix}{block}.{leaf}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands: in a block of a stack, or outside (stack and block None, leaf the full name)."""

    stack: Stack | None
    block: int | None
    leaf: str

    @property
    def role(self) -> str:
        """embedding, lm_head, norm, attention, mlp, expert, router, vision, or other."""
        for role, pattern in _ROLES:
            if pattern.search(self.leaf):
                return role
        return "other"


@dataclass(frozen=True, slots=True)
class Layout:
    """The stacks of a model and the place of each of its tensors.

    Attributes:
        stacks: in order of first appearance.
        places: by tensor name, in the order of the checkpoint.
        depths: numbers of blocks that config.json speaks of.
    """

    stacks: tuple[Stack, ...]
    places: Mapping[str, Place]
    depths: frozenset[int]

    def sliced_stack(self, label: str) -> Stack:
        """The one stack that `layer_range` means.

        Args:
            label: the model, for messages.

        Raises:
            MismatchError: there is none, or several fit.
        """
        confirmed = [s for s in self.stacks if s.num_blocks in self.depths]
        candidates = confirmed or list(self.stacks)
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            raise MismatchError(
                f"model '{label}' has no stack of numbered layers, so layer_range has no meaning"
            )
        listed = ", ".join(f"{s.prefix}* ({s.num_blocks})" for s in candidates)
        raise MismatchError(
            f"model '{label}' has several stacks of layers: {listed}",
            hint="layer_range needs a single one; merge whole models with 'models:' instead",
        )


def infer_layout(names: Iterable[str], config: Mapping[str, Any]) -> Layout:
    """Find the stacks of a checkpoint.

    Args:
        names: all tensor names, in order.
        config: config.json; may be empty.
    """
    names = list(names)
    depths = frozenset(_depths(config))
    blocks: dict[str, dict[int, int]] = {}
    for name in names:
        for prefix, index, _ in _splits(name):
            counts = blocks.setdefault(prefix, {})
            counts[index] = counts.get(index, 0) + 1
    candidates = [
        Stack(prefix, len(counts))
        for prefix, counts in blocks.items()
        if counts.keys() == set(range(len(counts))) and (len(counts) > 1 or 1 in depths)
    ]
    # A stack that config.json confirms comes before one that it does not, an outer one before an inner.
    candidates.sort(key=lambda s: (s.num_blocks not in depths, s.prefix.count(".")))
    by_prefix = {s.prefix: rank for rank, s in enumerate(candidates)}
    places = {name: _place(name, by_prefix, candidates) for name in names}
    used = dict.fromkeys(place.stack for place in places.values() if place.stack is not None)
    return Layout(tuple(used), places, depths)


def _splits(name: str) -> Iterable[tuple[str, int, str]]:
    """Every way to read the name as prefix, block index, leaf."""
    for match in _INDEX.finditer(name):
        if not _NO_STACK.search(name, 0, match.start()):
            yield name[: match.start()], int(match[0]), name[match.end() + 1 :]


def _place(name: str, by_prefix: Mapping[str, int], candidates: list[Stack]) -> Place:
    found = [(by_prefix[prefix], index, leaf) for prefix, index, leaf in _splits(name) if prefix in by_prefix]
    if not found:
        return Place(None, None, name)
    rank, index, leaf = min(found)
    return Place(candidates[rank], index, leaf)


def _depths(config: Mapping[str, Any]) -> Iterable[int]:
    for key in DEPTH_KEYS:
        if type(config.get(key)) is int:
            yield config[key]
    for section in _SECTIONS:
        inner = config.get(section)
        if isinstance(inner, dict):
            yield from _depths(cast("dict[str, Any]", inner))
