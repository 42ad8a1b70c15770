"""The models and modules of a recipe: who takes part in which role, and which layers are counted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meldkit.checkpoint import Checkpoint
from meldkit.errors import MismatchError, NotSupportedError, RecipeError
from meldkit.layout import Layout, Part, Place, Stack, find_part, infer_layout
from meldkit.layout.quirks import STACKED_TENSORS, why_fixed
from meldkit.methods import METHODS, Base, Method
from meldkit.recipe import ModelRef, Module, Parameters, Recipe, Slice, Source

#: Embeddings of something else than tokens, and what they are turned into.
NOT_TOKENS = re.compile(r"pos|type|wpe|mapping|project", re.I)


@dataclass(frozen=True, slots=True)
class Model:
    """An input model: its index among the plan's checkpoints, its tensors and their layout."""

    index: int
    ref: ModelRef
    checkpoint: Checkpoint
    layout: Layout

    def stored_name(self, name: str) -> str | None:
        """The tensor with that name's values, if any; a tied lm_head that is not stored is the embedding."""
        if name in self.checkpoint:
            return name
        tied = self.checkpoint.config.get("tie_word_embeddings") is not False
        if not tied or Place(None, None, name).role != "lm_head":
            return None
        tables = self.token_embeddings()
        return tables[0] if len(tables) == 1 else None

    def token_embeddings(self) -> list[str]:
        """The matrices with a row per token; a model of several parts may have several."""
        return [
            name
            for name, place in self.layout.places.items()
            if place.role == "embedding"
            and not NOT_TOKENS.search(name)
            and place.stack is None
            and len(self.checkpoint[name].shape) == 2
        ]

    def tied_heads(self) -> list[str]:
        """Heads that are stored although they are the embedding, as the configuration says."""
        if self.checkpoint.config.get("tie_word_embeddings") is not True:
            return []
        # A head may have layers of its own, in the shape of another embedding than the vocabulary's.
        embeddings = [self.checkpoint[name] for name in self.token_embeddings()]
        vocabulary = max(embeddings, key=lambda info: info.numel, default=None)
        return [
            name
            for name, place in self.layout.places.items()
            if place.role == "lm_head"
            and vocabulary is not None
            and self.checkpoint[name].shape == vocabulary.shape
        ]

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
                f"model '{self.checkpoint.label}' has no single stack of numbered layers in '{name}', "
                "so layer_range has no meaning"
            )
        return part.stack


#: Where parameters are looked up: (name, parameters).
Scopes = tuple[tuple[str, Parameters], ...]


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
        scopes: of its slices: where parameters are looked up after a source's own, narrowest first.
    """

    module: Module
    casts: tuple[Cast, ...]
    part: Part
    stacks: Mapping[ModelRef, Stack]
    scopes: tuple[Scopes, ...]

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
        astray = recipe.parameters.get("base_model")
        hint = "add the line 'base_model: …' at the top level"
        if astray is not None:
            hint = f"{at(astray.where)}move 'base_model' from 'parameters:' to the top level"
        raise RecipeError(f"{where}{method.name} needs a base_model", hint=hint)
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
            + (": " + ", ".join(str(s.model) for s in models) if models else ""),
            hint=_other_number(method, len(models), listed=listed is not None, whole_models=whole_models),
        )
    return Cast(models, base if policy.delta else None, base or models[0])


def _other_number(method: Method, num_models: int, *, listed: bool, whole_models: bool) -> str:
    """What to do when a method takes another number of models."""
    low, high = method.num_models
    if num_models < low:
        return "list more models" if num_models else "list the models to merge, besides the base"
    if method.base is Base.ENDPOINT and not listed:
        return f"base_model is one of the models that {method.name} takes; set it to one of those listed"
    if high == 1 and not whole_models:
        return "for layers one after the other, give each source a slice of its own: '- sources: …'"
    others = [m for m in METHODS.values() if m.num_models[1] is None and m.base.required == method.base.delta]
    return f"leave some out, or take a method for any number: {', '.join(m.name for m in others[:3])}"


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
        scopes = tuple(
            (("slice", part.parameters), ("module", module.parameters), ("recipe", recipe.parameters))
            for part in module.slices
        )
        found.append(Piece(module, casts, part, stacks, scopes))
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


def piece_of(pieces: Sequence[Piece], name: str) -> Piece:
    """The module that a tensor of the donor belongs to."""
    for piece in pieces:
        if piece.part.root is not None and name.startswith(piece.part.root):
            return piece
    return pieces[0]


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
