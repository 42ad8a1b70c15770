"""Which tensors of which models make which output tensor, before any parameter is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from meldkit.layout import Place, Stack
from meldkit.plan.pieces import Cast, Model, Piece, Scopes, check_range, layer_range, piece_of
from meldkit.recipe import ModelRef, Recipe, Source


@dataclass(frozen=True, slots=True)
class Input:
    """One tensor of one checkpoint: index into `Plan.checkpoints`, and the tensor's name there."""

    checkpoint: int
    tensor: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One model's tensor, and the recipe's entry that put it there."""

    source: Source
    input: Input


@dataclass(frozen=True, slots=True)
class Slot:
    """One output tensor and what goes into it.

    Attributes:
        name: of the output tensor.
        place: of the output tensor.
        t: depth inside its slice, 0 to 1; 0 outside the stacks.
        reference: decides dtype and shape, and is copied where the method cannot be applied.
        entries: models to merge that have the tensor.
        base: where task vectors start.
        missing: models that should take part but lack the tensor.
        scopes: where parameters are looked up after the entry's own: (name, parameters), narrowest first.
    """

    name: str
    place: Place
    t: float
    reference: Input
    entries: tuple[Entry, ...]
    base: Input | None
    missing: tuple[ModelRef, ...]
    scopes: Scopes


def recipe_slots(
    recipe: Recipe,
    pieces: Sequence[Piece],
    models: Mapping[ModelRef, Model],
    donor: Model,
    notes: list[str],
) -> Iterator[Slot]:
    """The slots of a recipe, in the order of the donor's tensors.

    A module of whole models merges every tensor with its namesakes. In a module of slices the layers come
    from the slices; embeddings, which come before them, take the first slice's models and parameters, all
    else outside the layers takes the last one's. What is left out is added to `notes`.
    """
    emitted: set[str | None] = set()
    for name, place in donor.layout.places.items():
        piece = piece_of(pieces, name)
        stack = piece.stacks.get(donor.ref)
        if stack is None or place.stack is None or place.stack.prefix != stack.prefix:
            yield _plain_slot(piece, models, donor, name, place)
        elif place.stack.first > 0:
            yield _tail_slot(piece, models, donor, place)
        elif piece.part.root not in emitted:
            emitted.add(piece.part.root)
            yield from _layer_slots(recipe, piece, models, stack, notes)


def _plain_slot(
    piece: Piece,
    models: Mapping[ModelRef, Model],
    donor: Model,
    name: str,
    place: Place,
) -> Slot:
    """A tensor of whole models, or outside the layers: it has the same name everywhere."""
    whole = piece.module.from_models
    index = 0 if whole or place.role == "embedding" else -1
    cast = piece.casts[index]
    entries, missing, base = _gather(cast, models, lambda _: name)
    reference = models[cast.reference.model]
    if name not in reference.checkpoint:
        reference = donor
    t = 0.0
    if whole and place.stack is not None and place.block is not None:
        t = _depth(place.block, place.stack.num_blocks)
    return Slot(
        name=name,
        place=place,
        t=t,
        reference=Input(reference.index, name),
        entries=entries,
        base=base,
        missing=missing,
        scopes=piece.scopes[index],
    )


def _tail_slot(piece: Piece, models: Mapping[ModelRef, Model], donor: Model, place: Place) -> Slot:
    """A tensor of the layers that follow the last one (see `Layout.tail`): numbered on after the new last."""
    assert place.stack is not None
    assert place.block is not None
    own, block, leaf, cast = place.stack, place.block, place.leaf, piece.casts[-1]

    def name_in(model: Model) -> str:
        tail = model.layout.tail(piece.stacks[model.ref])
        return (tail or own).name(block, leaf)

    entries, missing, base = _gather(cast, models, lambda source: name_in(models[source.model]))
    reference = models[cast.reference.model]
    if name_in(reference) not in reference.checkpoint:
        reference = donor
    moved = Stack(own.prefix, own.num_blocks, piece.num_blocks)
    return Slot(
        name=moved.name(block, leaf),
        place=Place(moved, block, leaf),
        t=0.0,
        reference=Input(reference.index, name_in(reference)),
        entries=entries,
        base=base,
        missing=missing,
        scopes=piece.scopes[-1],
    )


def _layer_slots(
    recipe: Recipe, piece: Piece, models: Mapping[ModelRef, Model], stack: Stack, notes: list[str]
) -> Iterator[Slot]:
    module, casts, stacks = piece.module, piece.casts, piece.stacks
    leaves = {ref: _leaves(models[ref], own) for ref, own in stacks.items()}
    block = 0
    for part, cast, scopes in zip(module.slices, casts, piece.scopes, strict=True):
        for source in part.sources:
            check_range(source, models[source.model].ref, stacks[source.model])
        first, last = layer_range(cast.reference)
        has_base = (part.base_model or recipe.base_model) is not None
        for j in range(last - first):
            owners: dict[str, Source] = {}
            for source in (cast.reference, *cast.sources):
                for leaf in leaves[source.model][layer_range(source)[0] + j]:
                    owners.setdefault(leaf, source)
            for leaf, owner in owners.items():

                def name_in(source: Source, j: int = j, leaf: str = leaf) -> str:
                    return stacks[source.model].name(layer_range(source)[0] + j, leaf)

                name = stack.name(block, leaf)
                if owner is not cast.reference and has_base:
                    notes.append(left_out(name, owner.model, cast.reference.model))
                    continue
                entries, missing, base = _gather(cast, models, name_in)
                yield Slot(
                    name=name,
                    place=Place(stack, block, leaf),
                    t=_depth(j, last - first),
                    reference=Input(models[owner.model].index, name_in(owner)),
                    entries=entries,
                    base=base,
                    missing=missing,
                    scopes=scopes,
                )
            block += 1


def _leaves(model: Model, stack: Stack) -> list[list[str]]:
    """The leaves of each block of a stack, in the order of the checkpoint."""
    leaves: list[list[str]] = [[] for _ in range(stack.num_blocks)]
    for place in model.layout.places.values():
        if place.stack == stack and place.block is not None:
            leaves[place.block].append(place.leaf)
    return leaves


def left_out(name: str, owner: ModelRef, donor: ModelRef) -> str:
    """The note about a tensor that the output does not get."""
    return f"{name}: left out; '{owner}' has it, '{donor}' does not"


def _gather(
    cast: Cast, models: Mapping[ModelRef, Model], name_in: Callable[[Source], str]
) -> tuple[tuple[Entry, ...], tuple[ModelRef, ...], Input | None]:
    """The entries of one output tensor, the models that lack it, and the base's tensor."""
    entries: list[Entry] = []
    missing: list[ModelRef] = []
    for source in cast.models:
        model = models[source.model]
        name = model.stored_name(name_in(source))
        if name is not None:
            entries.append(Entry(source, Input(model.index, name)))
        else:
            missing.append(source.model)
    if cast.base is None:
        return tuple(entries), tuple(missing), None
    model = models[cast.base.model]
    name = model.stored_name(name_in(cast.base))
    if name is None:
        return tuple(entries), (*missing, cast.base.model), None
    return tuple(entries), tuple(missing), Input(model.index, name)


def _depth(block: int, num_blocks: int) -> float:
    return block / (num_blocks - 1) if num_blocks > 1 else 1.0
