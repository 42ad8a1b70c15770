"""How a model's tensors are organised, read off their names and confirmed by config.json.

A *stack* is a family of names that differ in one integer path component covering 0..n-1, such as
`model.layers.{i}.`, `transformer.h.{i}.` or `encoder.layer.{i}.`. Every other tensor stands outside.
Two families are never stacks: numbers at the very start of names (the modules of a pipeline, as in
`0.auto_model.encoder…`), and experts, which are parallel and not one after the other.

Layers that predict further tokens are stored as if they were more layers of the decoder
(`model.layers.{num_hidden_layers}.`); they are a stack of their own, the *tail*, that follows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from meldkit.errors import MismatchError
from meldkit.layout.quirks import DEPTH_KEYS, LIST_KEYS, NUM_TAIL_KEYS, SPREAD_LISTS
from meldkit.layout.words import NOT_TEXT, words

#: A component of a name that can number a block, within and followed by other components.
_INDEX = re.compile(r"(?<=\.)(?:0|[1-9][0-9]{0,5})(?=\.)")
_NO_STACK = re.compile(r"experts?\.\Z")

_ROLES = (
    ("vision", re.compile(r"(^|\.)(vision|visual|image)", re.I)),
    ("router", re.compile(r"(router|(^|\.)gate\.)", re.I)),
    ("expert", re.compile(r"experts?\.", re.I)),
    ("lm_head", re.compile(r"(^|\.)(lm_head|embed_out|output_projection)\.", re.I)),
    # Before "norm": the normalisation of embeddings belongs to them, not to what follows the layers.
    ("embedding", re.compile(r"(embed|(^|\.)w[tp]e\.|(^|\.)shared\.)", re.I)),
    ("norm", re.compile(r"(norm|(^|\.)ln_)", re.I)),
    ("attention", re.compile(r"att", re.I)),
    ("mlp", re.compile(r"(mlp|ffn|feed_forward|intermediate|output\.dense|DenseRelu|(^|\.)fc)", re.I)),
)


@dataclass(frozen=True, slots=True)
class Stack:
    """Blocks `prefix{first}.` … `prefix{first + num_blocks - 1}.`, numbered from 0 in a `Place`.

    Where a block is spread over several lists (see `SPREAD_LISTS`), a leaf has a `*` for its number.
    """

    prefix: str
    num_blocks: int
    first: int = 0

    def name(self, block: int, leaf: str) -> str:
        """The tensor's name."""
        number = str(self.first + block)
        return self.prefix + (leaf.replace("*", number, 1) if "*" in leaf else f"{number}.{leaf}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands: in a block of a stack, or outside (stack and block None, leaf the full name)."""

    stack: Stack | None
    block: int | None
    leaf: str

    @property
    def role(self) -> str:
        """embedding, lm_head, norm, attention, mlp, expert, router, vision, or other."""
        return _role(self.leaf)


@lru_cache(maxsize=4096)  # Every layer has the same leaves.
def _role(leaf: str) -> str:
    return next((role for role, pattern in _ROLES if pattern.search(leaf)), "other")


@dataclass(frozen=True, slots=True)
class Layout:
    """The stacks of a model and the place of each of its tensors.

    Attributes:
        stacks: in order of first appearance.
        places: by tensor name, in the order of the checkpoint.
        depths: numbers of blocks that config.json speaks of.
        text_depths: those that it does not give for a tower or another part than the text decoder.
    """

    stacks: tuple[Stack, ...]
    places: Mapping[str, Place]
    depths: frozenset[int]
    text_depths: frozenset[int]

    def sliced_stack(self, label: str) -> Stack:
        """The one stack that `layer_range` means: that of the text decoder, or of the only encoder.

        Towers for images and sound, projectors and heads are left aside, and so is the encoder of an
        encoder-decoder model. Among what remains config.json decides.

        Args:
            label: the model, for messages.

        Raises:
            MismatchError: there is none, or several fit.
        """
        candidates = self._text_stacks()
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            raise MismatchError(
                f"model '{label}' has no stack of numbered layers, so layer_range has no meaning",
                hint="merge whole models with 'models:' instead",
            )
        listed = ", ".join(f"{s.prefix}* ({s.num_blocks})" for s in candidates)
        raise MismatchError(
            f"model '{label}' has several stacks of layers: {listed}",
            hint="layer_range needs a single one; merge whole models with 'models:' instead",
        )

    @property
    def text_stack(self) -> Stack | None:
        """The stack that `sliced_stack` finds; None where it does not find one."""
        candidates = self._text_stacks()
        return candidates[0] if len(candidates) == 1 else None

    def _text_stacks(self) -> list[Stack]:
        candidates = [s for s in self.stacks if s.first == 0]
        about = {s: words(s.prefix) for s in candidates}
        candidates = [s for s in candidates if not about[s] & NOT_TEXT] or candidates
        candidates = [s for s in candidates if "text" in about[s]] or candidates
        decoders = [s for s in candidates if "encoder" not in about[s] or "decoder" in about[s]]
        candidates = decoders or candidates
        candidates = [s for s in candidates if s.num_blocks in self.depths] or candidates
        return [s for s in candidates if s.num_blocks in self.text_depths] or candidates

    def tail(self, stack: Stack) -> Stack | None:
        """The layers that are numbered on after a stack's own."""
        return next((s for s in self.stacks if s.prefix == stack.prefix and s.first > 0), None)


def infer_layout(names: Iterable[str], config: Mapping[str, Any]) -> Layout:
    """Find the stacks of a checkpoint.

    Args:
        names: all tensor names, in order.
        config: config.json; may be empty.
    """
    depths = frozenset(_numbers(config, (*DEPTH_KEYS, *LIST_KEYS)))
    tails = frozenset(n for n in _numbers(config, NUM_TAIL_KEYS) if n > 0)
    stacks, places = _arranged(tuple(names), depths, tails)
    text_depths = frozenset(_numbers(config, (*DEPTH_KEYS, *LIST_KEYS), without=NOT_TEXT))
    return Layout(stacks, places, depths, text_depths)


@lru_cache(maxsize=2)  # The models of a recipe mostly have the same names.
def _arranged(
    names: tuple[str, ...], depths: frozenset[int], tails: frozenset[int]
) -> tuple[tuple[Stack, ...], Mapping[str, Place]]:
    """The stacks, and the place of each tensor."""
    blocks: dict[str, set[int]] = {}
    splits = [tuple(_splits(name)) for name in names]
    for split in splits:
        for prefix, index, _ in split:
            blocks.setdefault(prefix, set()).add(index)
    candidates = [
        Stack(prefix, len(numbers))
        for prefix, numbers in blocks.items()
        if max(numbers) == len(numbers) - 1 and (len(numbers) > 1 or 1 in depths)
    ]
    # A stack that config.json confirms comes before one that it does not, an outer one before an inner.
    candidates.sort(key=lambda s: (_own_depth(s, depths, tails) not in depths, s.prefix.count(".")))
    parts = [_without_tail(s, _own_depth(s, depths, tails)) for s in candidates]
    by_prefix = {s.prefix: rank for rank, s in enumerate(candidates)}
    places = {name: _place(name, split, by_prefix, parts) for name, split in zip(names, splits, strict=True)}
    used = dict.fromkeys(place.stack for place in places.values() if place.stack is not None)
    return tuple(used), places


def _splits(name: str) -> Iterable[tuple[str, int, str]]:
    """Every way to read the name as prefix, block index, leaf."""
    if "*" in name:
        return
    for match in _INDEX.finditer(name):
        if _NO_STACK.search(name, 0, match.start()):
            continue
        prefix, index, leaf = name[: match.start()], int(match[0]), name[match.end() + 1 :]
        parent, _, family = prefix[:-1].rpartition(".")
        if family in SPREAD_LISTS:
            yield f"{parent}." if parent else "", index, f"{family}.*.{leaf}"
        else:
            yield prefix, index, leaf


def _own_depth(stack: Stack, depths: frozenset[int], tails: frozenset[int]) -> int:
    """The number of blocks without a tail, which config.json counts apart."""
    n = stack.num_blocks
    return n if n in depths else next((n - t for t in sorted(tails) if n - t in depths), n)


def _without_tail(stack: Stack, depth: int) -> tuple[Stack, Stack]:
    """The stack of the first blocks, and that of the others."""
    return Stack(stack.prefix, depth), Stack(stack.prefix, stack.num_blocks - depth, depth)


def _place(
    name: str,
    split: Iterable[tuple[str, int, str]],
    by_prefix: Mapping[str, int],
    parts: Sequence[tuple[Stack, Stack]],
) -> Place:
    found = [(by_prefix[prefix], index, leaf) for prefix, index, leaf in split if prefix in by_prefix]
    if not found:
        return Place(None, None, name)
    rank, index, leaf = min(found)
    stack, tail = parts[rank]
    if index < stack.num_blocks:
        return Place(stack, index, leaf)
    return Place(tail, index - tail.first, leaf)


def _numbers(
    config: Mapping[str, Any], keys: Iterable[str], *, without: frozenset[str] = frozenset()
) -> Iterable[int]:
    """The values of keys in all sections without such words; of a per-layer list, its length."""
    for key in keys:
        value = config.get(key)
        if type(value) is int:
            yield value
        elif key in LIST_KEYS and isinstance(value, list | str) and value:
            yield len(cast("list[Any]", value))
    for name, section in config.items():
        if isinstance(section, Mapping) and not words(str(name)) & without:
            yield from _numbers(cast("Mapping[str, Any]", section), keys, without=without)
