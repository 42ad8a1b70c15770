"""Checkpoints that are not stored: what a recipe gives, as an input of another, and what is put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256

from meldkit.checkpoint import Checkpoint
from meldkit.plan.model import Plan
from meldkit.vocab import OutputTokenizer


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Stage(Checkpoint):
    """A checkpoint whose tensors are computed when they are read, as float32 whatever its recipe's dtype.

    Attributes:
        plan: how they come to be.
    """

    plan: Plan


@dataclass(frozen=True, slots=True)
class OtherVocabulary:
    """A vocabulary that is not that of the files beside a model's configuration.

    Attributes:
        tokenizer: what is written.
        old_sizes: numbers of tokens that the configuration may speak of.
        size: rows of the tables.
    """

    tokenizer: OutputTokenizer
    old_sizes: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Composed(Checkpoint):
    """A checkpoint that is put together from tensors of others.

    Attributes:
        inputs: the others.
        vocabulary: that its tables are for; None for that of its folder.
    """

    inputs: tuple[Checkpoint, ...]
    vocabulary: OtherVocabulary | None = None


def stages_of(plan: Plan) -> list[Stage]:
    """The stages that a plan and its stages read, once each, each after those that it reads itself."""
    found: dict[str, Stage] = {}

    def visit(checkpoints: Iterable[Checkpoint]) -> None:
        for checkpoint in checkpoints:
            if isinstance(checkpoint, Composed):
                visit(checkpoint.inputs)
            elif isinstance(checkpoint, Stage) and checkpoint.label not in found:
                visit(checkpoint.plan.checkpoints)
                found[checkpoint.label] = checkpoint

    visit(plan.checkpoints)
    return list(found.values())


def stored_inputs(plan: Plan) -> list[Checkpoint]:
    """The models that a plan and its stages read, once each, in the order in which they are met."""
    return list({checkpoint.label: checkpoint for checkpoint in _stored(plan.checkpoints)}.values())


def _stored(checkpoints: Iterable[Checkpoint]) -> Iterator[Checkpoint]:
    for checkpoint in checkpoints:
        if isinstance(checkpoint, Stage):
            yield from _stored(checkpoint.plan.checkpoints)
            yield from _laid_over(checkpoint)
        elif isinstance(checkpoint, Composed):
            yield from _stored(checkpoint.inputs)
        else:
            yield checkpoint


def _laid_over(stage: Stage) -> Iterator[Checkpoint]:
    """The adapters over a stage, as one input under the name of both."""
    own = stage.adapters[len(stage.plan.checkpoints[stage.plan.donor].adapters) :]
    if own:
        stored = {f"{place}.{n}": t for place, a in enumerate(own) for n, t in a.stored.items()}
        yield Checkpoint(
            label=stage.label,
            folder=own[0].folder,
            tensors=stored,
            config={},
            tokenizer=None,
            adapters=own,
            fingerprint=sha256("".join(adapter.digest for adapter in own).encode()).hexdigest(),
        )
