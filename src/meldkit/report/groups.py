"""The tensors of a plan by stack and leaf: what is one row of a table for people."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from meldkit.layout import Stack
from meldkit.plan import Plan

#: A number inside a name, such as an expert's.
_NUMBER = re.compile(r"(?<![^.])\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Group:
    """The same tensor of all blocks of a stack, or one outside of the stacks.

    Attributes:
        stack: as in "model.layers.*"; "" outside of the stacks.
        leaf: the rest of the name, with * for the numbers of experts; a single tensor's own.
        members: places in `Plan.jobs`, in the order of the blocks.
        num_blocks: how many blocks have it; 0 outside of the stacks.
    """

    stack: str
    leaf: str
    members: tuple[int, ...]
    num_blocks: int


def group_tensors(plan: Plan, chosen: Iterable[int] | None = None) -> tuple[Group, ...]:
    """The groups of a plan: what stands outside of the stacks first, then stack by stack.

    Args:
        plan: whose tensors.
        chosen: places of those that count; None for all.
    """
    leaves: dict[str, str] = {}
    families: dict[tuple[Stack | None, str], list[int]] = {}
    for index in range(len(plan.slots)) if chosen is None else chosen:
        slot = plan.slots[index]
        leaf = leaves.get(slot.place.leaf)
        if leaf is None:
            leaf = leaves[slot.place.leaf] = _NUMBER.sub("*", slot.place.leaf)
        families.setdefault((slot.place.stack, leaf), []).append(index)
    found: dict[Stack | None, list[Group]] = {None: []}
    for (stack, leaf), members in families.items():
        # Files have block 10 before block 2.
        members.sort(key=lambda index: plan.slots[index].place.block or 0)
        blocks = {plan.slots[index].place.block for index in members} if stack is not None else ()
        own = plan.slots[members[0]].place.leaf if len(members) == len(blocks or members[:1]) else leaf
        found.setdefault(stack, []).append(Group(_title(stack), own, tuple(members), len(blocks)))
    return tuple(group for groups in found.values() for group in groups)


def _title(stack: Stack | None) -> str:
    if stack is None:
        return ""
    return f"{stack.prefix}*" + (f" from {stack.first} on" if stack.first else "")
