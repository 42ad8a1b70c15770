"""Which tensors of which models make which output tensor, before any parameter is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from meldkit.checkpoint import Checkpoint
from meldkit.errors import MismatchError, NotSupportedError, RecipeError
from meldkit.layout import Layout, Part, Place, Stack, find_part, infer_layout
from meldkit.layout.quirks import STACKED_TENSORS, why_fixed
from meldkit.methods import Base, Method
from meldkit.plan.model import Input
from meldkit.recipe import ModelRef, Module, Parameters, Recipe, Slice, Source


@dataclass(frozen=True, slots=True)
class Model:
    """An input model: its index among the plan's checkpoints, its tensors and their layout."""

    index: int
    ref: ModelRef
    checkpoint: Checkpoint
    layout: Layout

    def part(self, name: str | None) -> Part:
        """What a module of this name addresses; see `find_part`."""
        return find_part(self.layout, name, self.checkpoint.label)

    def stack(self, name: str | None) -> Stack:
        """The layers that `layer_range` counts in a module of this name.

        Raises:
            MismatchError: it has none.
        """
        part = self.part(name)
        if part.root is None:
            return self.layout.sliced_stack(self.checkpoint.label)
        if part.stack is None:
            raise MismatchError(
                f"model '{self.checkpoint.label}' has no numbered layers in '{name}', "
                "so layer_range has no meaning"
            )
        return part.stack


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
    scopes: tuple[tuple[str, Parameters], ...]


@dataclass(frozen=True, slots=True)
class Cast:
    """The sources of a slice in the roles that the method gives them."""

    models: tuple[Source, ...]
    base: Source | None
    reference: Source

    @property
    def sources(self) -> tuple[Source, ...]:
        """Everything that is read: the models, and the base if it is not one of them."""
        return self.models if self.base is None else (self.base, *self.models)


@dataclass(frozen=True, slots=True)
class Piece:
    """A module of the recipe and what it addresses.

    Attributes:
        module: as the recipe has it.
        casts: of its slices.
        part: what it addresses in the donor.
        stacks: the layers that `layer_range` counts, by model; empty for whole models.
    """

    module: Module
    casts: tuple[Cast, ...]
    part: Part
    stacks: Mapping[ModelRef, Stack]

    @property
    def num_blocks(self) -> int:
        """Number of layers that its slices make."""
        ranges = [layer_range(cast.reference) for cast in self.casts]
        return sum(last - first for first, last in ranges)


def open_layouts(checkpoints: Mapping[ModelRef, Checkpoint]) -> dict[ModelRef, Model]:
    """The input models by reference, in order."""
    return {
        ref: Model(index, ref, checkpoint, infer_layout(checkpoint, checkpoint.config))
        for index, (ref, checkpoint) in enumerate(checkpoints.items())
    }


def cast_sources(method: Method, part: Slice, recipe: Recipe, *, whole_models: bool) -> Cast:
    """Decide which source is the base and which are merged.

    Args:
        method: its base policy decides.
        part: the slice.
        recipe: gives the base model if the slice does not.
        whole_models: the recipe lists whole models, so that an unlisted base can join them.

    Raises:
        RecipeError: no base where one is needed, or a number of models the method does not take.
    """
    ref = part.base_model or recipe.base_model
    listed = next((s for s in part.sources if s.model == ref), None)
    base = Source(ref) if listed is None and ref is not None and whole_models else listed
    where = at(part.where or recipe.lines.get("merge_method", recipe.origin))
    policy = method.base
    if ref is None and policy.required:
        raise RecipeError(
            f"{where}{method.name} needs a base_model",
            hint="add the line 'base_model: …' at the top level",
        )
    if base is None and ref is not None and (policy.required or policy.delta):
        raise RecipeError(
            f"{where}base_model '{ref}' is not among the sources of this slice",
            hint="list it with the layer_range that the others are compared with",
        )
    models = part.sources
    if base is not None and (policy.delta or policy is Base.ENDPOINT):
        models = tuple(s for s in models if s is not base)
    if base is not None and policy is Base.ENDPOINT:
        models = (base, *models)
    if base is not None and policy is Base.MEMBER and listed is None:
        models = (*models, base)
    low, high = method.num_models
    if len(models) < low or (high is not None and len(models) > high):
        wanted = f"exactly {low}" if low == high else f"at least {low}"
        raise RecipeError(
            f"{where}{method.name} takes {wanted} model{'s' * (low != 1)}"
            f"{' besides the base' if policy.delta and base else ''}, got {len(models)}"
            + (": " + ", ".join(str(s.model) for s in models) if models else "")
        )
    return Cast(models, base if policy.delta else None, base or models[0])


def at(where: str) -> str:
    """The beginning of a message about a place in the recipe, such as "recipe.yml:12: "."""
    return f"{where}: " if where else ""


def open_pieces(
    recipe: Recipe, method: Method, models: Mapping[ModelRef, Model], donor: Model
) -> tuple[Piece, ...]:
    """The modules of a recipe with the tensors that they address; the one that gets the rest is the first.

    Raises:
        RecipeError: two modules are the same part of the model.
        MismatchError: a model has no such part.
    """
    found: list[Piece] = []
    for module in recipe.modules:
        part = donor.part(module.name)
        for other in found:
            if other.part.root == part.root:
                raise RecipeError(
                    f"{at(module.where)}modules '{other.module.name}' and '{module.name}' "
                    "are the same part of the model",
                    hint="leave one of them out",
                )
        casts = tuple(
            cast_sources(method, part, recipe, whole_models=module.from_models) for part in module.slices
        )
        stacks: dict[ModelRef, Stack] = {}
        if not module.from_models:
            sources = (source.model for cast in casts for source in cast.sources)
            for ref in dict.fromkeys((donor.ref, *sources)):
                stacks[ref] = models[ref].stack(module.name)
        found.append(Piece(module, casts, part, stacks))
        _check_movable(found[-1], donor)
    # Sorting is stable: without a text decoder the recipe's first module gets what no module addresses.
    return tuple(sorted(found, key=lambda piece: piece.part.root is not None))


def _check_movable(piece: Piece, donor: Model) -> None:
    """Raise NotSupportedError where other layers are asked for than a model can have."""
    layers = [layer for cast in piece.casts if piece.stacks for layer in range(*layer_range(cast.reference))]
    if piece.part.root is not None or not layers or layers == list(range(piece.stacks[donor.ref].num_blocks)):
        return
    why = why_fixed(donor.checkpoint.config)
    for name in donor.layout.places:
        if name.endswith(STACKED_TENSORS):
            why = f"its tensor '{name}' holds a share of every layer"
    if why:
        raise NotSupportedError(
            f"not supported: other layers of '{donor.ref}', because {why}",
            hint="merge whole models with 'models:' instead",
        )


def owner(pieces: Sequence[Piece], name: str) -> Piece:
    """The module that a tensor of the donor belongs to."""
    for piece in pieces:
        if piece.part.root is not None and name.startswith(piece.part.root):
            return piece
    return pieces[0]


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
        piece = owner(pieces, name)
        stack = piece.stacks.get(donor.ref)
        if stack is None or place.stack is None or place.stack.prefix != stack.prefix:
            yield _plain_slot(recipe, piece, models, donor, name, place)
        elif place.stack.first > 0:
            yield _tail_slot(recipe, piece, models, donor, place)
        elif piece.part.root not in emitted:
            emitted.add(piece.part.root)
            yield from _layer_slots(recipe, piece, models, stack, notes)


def _plain_slot(
    recipe: Recipe,
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
        scopes=_scopes(piece.module.slices[index], piece.module, recipe),
    )


def _tail_slot(
    recipe: Recipe, piece: Piece, models: Mapping[ModelRef, Model], donor: Model, place: Place
) -> Slot:
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
        scopes=_scopes(piece.module.slices[-1], piece.module, recipe),
    )


def _layer_slots(
    recipe: Recipe, piece: Piece, models: Mapping[ModelRef, Model], stack: Stack, notes: list[str]
) -> Iterator[Slot]:
    module, casts, stacks = piece.module, piece.casts, piece.stacks
    leaves = {ref: _leaves(models[ref], own) for ref, own in stacks.items()}
    block = 0
    for part, cast in zip(module.slices, casts, strict=True):
        scopes = _scopes(part, module, recipe)
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


def layer_range(source: Source) -> tuple[int, int]:
    """The layers that a source of a slice contributes, half-open."""
    assert source.layer_range is not None, "the recipe's schema asks for a layer_range in slices"
    return source.layer_range


def check_range(source: Source, model: ModelRef, stack: Stack) -> None:
    """Raise RecipeError if the source asks for layers that its model does not have."""
    num_blocks = stack.num_blocks
    _, last = layer_range(source)
    if last > num_blocks:
        raise RecipeError(
            f"{at(source.where)}layer_range {list(layer_range(source))} of model '{model}', "
            f"which has {num_blocks} layers",
            hint=f"the end is not included: all layers are [0, {num_blocks}]",
        )


def _gather(
    cast: Cast, models: Mapping[ModelRef, Model], name_in: Callable[[Source], str]
) -> tuple[tuple[Entry, ...], tuple[ModelRef, ...], Input | None]:
    """The entries of one output tensor, the models that lack it, and the base's tensor."""
    entries: list[Entry] = []
    missing: list[ModelRef] = []
    for source in cast.models:
        model, name = models[source.model], name_in(source)
        if name in model.checkpoint:
            entries.append(Entry(source, Input(model.index, name)))
        else:
            missing.append(source.model)
    if cast.base is None:
        return tuple(entries), tuple(missing), None
    model, name = models[cast.base.model], name_in(cast.base)
    if name not in model.checkpoint:
        return tuple(entries), (*missing, cast.base.model), None
    return tuple(entries), tuple(missing), Input(model.index, name)


def _depth(block: int, num_blocks: int) -> float:
    return block / (num_blocks - 1) if num_blocks > 1 else 1.0


def _scopes(part: Slice, module: Module, recipe: Recipe) -> tuple[tuple[str, Parameters], ...]:
    return (("slice", part.parameters), ("module", module.parameters), ("recipe", recipe.parameters))
