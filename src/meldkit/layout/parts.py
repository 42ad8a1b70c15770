"""The parts of a model that a recipe's `modules:` may address."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meldkit.errors import MismatchError
from meldkit.layout.infer import Layout, Stack
from meldkit.layout.words import words

#: Names of the part that holds the text decoder and all that belongs to no other part.
TEXT_NAMES = (None, "default", "text_decoder")
#: What a tower may be called, whatever a model calls its own: the word that its own name has.
_TOWERS = {"vision_tower": "vision", "audio_tower": "audio"}


@dataclass(frozen=True, slots=True)
class Part:
    """Tensors that a module addresses, and the layers among them.

    Attributes:
        root: what the names of its tensors begin with; None for the text decoder and the rest.
        stack: what its `layer_range` counts; None if it has no layers, or several that could be meant.
    """

    root: str | None
    stack: Stack | None


def find_part(layout: Layout, name: str | None, label: str) -> Part:
    """The part of a model that a module's name means.

    A part is called by the component of tensor names under which it stands: `vision_tower`, `visual`,
    `multi_modal_projector`, `encoder`. `default`, `text_decoder`, and the components above the text
    decoder's layers (`language_model`, `decoder`) mean the text decoder and everything in no other part.

    Args:
        layout: of the model.
        name: as the recipe has it.
        label: the model, for messages.

    Raises:
        MismatchError: the model has no such part.
    """
    stack = layout.text_stack
    path = stack.prefix.split(".")[:-2] if stack else []
    if name in TEXT_NAMES or name in path:
        return Part(None, stack)
    assert name is not None
    roots = _roots(layout, path)
    found = [root for root in roots if _last(root) == name]
    if not found and name in _TOWERS:
        found = [root for root in roots if _TOWERS[name] in words(_last(root)) and _stacks(layout, root)]
    if len(found) != 1:
        names = dict.fromkeys(["text_decoder", *map(_last, roots)])
        close = difflib.get_close_matches(name, names, 1)
        raise MismatchError(
            f"model '{label}' has {'several parts' if found else 'no part'} called '{name}'"
            + (f"; did you mean '{close[0]}'?" if close else ""),
            hint=f"its parts are {', '.join(names)}",
        )
    inner = _stacks(layout, found[0])
    inner = [s for s in inner if s.num_blocks in layout.depths] or inner
    return Part(found[0], inner[0] if len(inner) == 1 else None)


def all_parts(layout: Layout) -> dict[str, Part]:
    """Every part by its name, the text decoder first; of several of one name, the first one."""
    stack = layout.text_stack
    parts = {"text_decoder": Part(None, stack)}
    for root in _roots(layout, stack.prefix.split(".")[:-2] if stack else []):
        inner = _stacks(layout, root)
        inner = [s for s in inner if s.num_blocks in layout.depths] or inner
        parts.setdefault(_last(root), Part(root, inner[0] if len(inner) == 1 else None))
    return parts


def part_of(parts: Mapping[str, Part], tensor: str) -> str:
    """The name of the part that a tensor belongs to: the most special one."""
    roots = {name: part.root for name, part in parts.items() if part.root and tensor.startswith(part.root)}
    return max(roots, key=lambda name: len(roots[name]), default=next(iter(parts)))


def _roots(layout: Layout, path: Iterable[str]) -> list[str]:
    """Beginnings of names beside the way to the text decoder's layers."""
    steps = list(path)
    above = ["".join(f"{step}." for step in steps[:n]) for n in range(len(steps) + 1)]
    roots: dict[str, None] = {}
    for name, place in layout.places.items():
        if place.role in ("embedding", "norm", "lm_head") and place.stack is None:
            continue
        parent = max((p for p in above if name.startswith(p)), key=len)
        component, dot, _ = name[len(parent) :].partition(".")
        if dot and (place.stack is None or place.stack.prefix != f"{parent}{component}."):
            roots[f"{parent}{component}."] = None
    return list(roots)


def _last(root: str) -> str:
    return root.rstrip(".").rpartition(".")[2]


def _stacks(layout: Layout, root: str) -> list[Stack]:
    return [s for s in layout.stacks if s.prefix.startswith(root) and s.first == 0]
