"""Which tensors of which models make which output tensor, before any parameter is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from meldkit.checkpoint import Checkpoint
from meldkit.errors import RecipeError
from meldkit.layout import Layout, Place, Stack, infer_layout
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

    @property
    def stack(self) -> Stack:
        """The stack that `layer_range` means; see `Layout.sliced_stack`."""
        return self.layout.sliced_stack(self.checkpoint.label)


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


def whole_model_slots(
    recipe: Recipe, module: Module, method: Method, models: Mapping[ModelRef, Model]
) -> Iterator[Slot]:
    """The slots of a `models:` recipe: every tensor of the reference model, merged with its namesakes."""
    (part,) = module.slices
    cast = cast_sources(method, part, recipe, whole_models=True)
    reference = models[cast.reference.model]
    scopes = _scopes(part, module, recipe)
    for name, place in reference.layout.places.items():
        t = _depth(place.block, place.stack.num_blocks) if place.stack and place.block is not None else 0.0
        entries, missing, base = _gather(cast, models, lambda _, name=name: name)
        yield Slot(name, place, t, Input(reference.index, name), entries, base, missing, scopes)


def sliced_slots(
    recipe: Recipe,
    module: Module,
    method: Method,
    models: Mapping[ModelRef, Model],
    donor: Model,
    notes: list[str],
) -> Iterator[Slot]:
    """The slots of a `slices:` recipe: layers from the slices, the rest from the first and the last one.

    Embeddings, which come before the layers, take the first slice's models and parameters; all else
    outside the layers takes the last one's. What is left out is added to `notes`.
    """
    stack = donor.stack
    casts = [cast_sources(method, part, recipe, whole_models=False) for part in module.slices]
    emitted = False
    for name, place in donor.layout.places.items():
        if place.stack != stack:
            index = 0 if place.role == "embedding" else -1
            entries, missing, base = _gather(casts[index], models, lambda _, name=name: name)
            reference = models[casts[index].reference.model]
            if name not in reference.checkpoint:
                reference = donor
            scopes = _scopes(module.slices[index], module, recipe)
            yield Slot(name, place, 0.0, Input(reference.index, name), entries, base, missing, scopes)
        elif not emitted:
            emitted = True
            yield from _layer_slots(recipe, module, models, casts, stack, notes)


def _layer_slots(
    recipe: Recipe,
    module: Module,
    models: Mapping[ModelRef, Model],
    casts: Sequence[Cast],
    stack: Stack,
    notes: list[str],
) -> Iterator[Slot]:
    sources = dict.fromkeys(source.model for cast in casts for source in cast.sources)
    stacks = {ref: models[ref].stack for ref in sources}
    leaves = {ref: _leaves(models[ref], stacks[ref]) for ref in sources}
    block = 0
    for part, cast in zip(module.slices, casts, strict=True):
        scopes = _scopes(part, module, recipe)
        for source in part.sources:
            check_range(source, models[source.model])
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


def check_range(source: Source, model: Model) -> None:
    """Raise RecipeError if the source asks for layers that its model does not have."""
    num_blocks = model.stack.num_blocks
    _, last = layer_range(source)
    if last > num_blocks:
        raise RecipeError(
            f"{at(source.where)}layer_range {list(layer_range(source))} of model '{model.ref}', "
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
