"""What a recipe gives, as an input of another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from meldkit.checkpoint import Checkpoint
from meldkit.plan.model import Plan


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Stage(Checkpoint):
    """A checkpoint whose tensors are computed when they are read, as float32 whatever its recipe's dtype.

    Attributes:
        plan: how they come to be.
    """

    plan: Plan


def stages_of(plan: Plan) -> list[Stage]:
    """The stages that a plan and its stages read, once each, each after those that it reads itself."""
    found: dict[str, Stage] = {}

    def visit(current: Plan) -> None:
        for checkpoint in current.checkpoints:
            if isinstance(checkpoint, Stage) and checkpoint.label not in found:
                visit(checkpoint.plan)
                found[checkpoint.label] = checkpoint

    visit(plan)
    return list(found.values())


def stored_inputs(plan: Plan) -> list[Checkpoint]:
    """The models that a plan and its stages read, once each, in the order in which they are met."""
    return list({checkpoint.label: checkpoint for checkpoint in _stored(plan)}.values())


def _stored(plan: Plan) -> Iterator[Checkpoint]:
    for checkpoint in plan.checkpoints:
        if isinstance(checkpoint, Stage):
            yield from _stored(checkpoint.plan)
        else:
            yield checkpoint
