"""What must be so, or should be, for models to be merged: found out from recipe and headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from meldkit.checkpoint import TensorInfo
from meldkit.errors import MismatchError, RecipeError
from meldkit.methods import Method
from meldkit.plan.model import TensorJob
from meldkit.plan.pieces import Model, Piece, at, layer_range, piece_of
from meldkit.plan.slots import Slot
from meldkit.recipe import ModelRef, Recipe

#: A model is taken for another architecture when it lacks this share of the tensors.
_MAX_MISSING = 0.5
#: Tensors that a message about misfits names.
_SHOWN = 3


def lint_models(donor: Model) -> Iterator[str]:
    """What does not keep models from being merged, but the result from being of use."""
    # A file of weights that stands for itself, as in `meldkit pytorch`, has no configuration to be missed.
    if not donor.checkpoint.config and donor.checkpoint.folder.is_dir():
        yield f"model '{donor.ref}' has no config.json, so the output has none either; copy it there"
    layout = donor.layout
    if layout.stacks and layout.depths and not any(s.num_blocks in layout.depths for s in layout.stacks):
        stacks = ", ".join(f"{s.num_blocks} blocks {s.prefix}*" for s in layout.stacks)
        yield (
            f"config.json of '{donor.ref}' speaks of {' or '.join(map(str, sorted(layout.depths)))} layers, "
            f"its weights have {stacks}; one of them is of another model"
        )


def note_range(recipe: Recipe, models: Mapping[ModelRef, Model]) -> Iterator[str]:
    """Values of the models may be too large for float16."""
    key = "out_dtype" if recipe.out_dtype else "dtype"
    stored = {info.dtype for model in models.values() for info in model.checkpoint.values() if info.floating}
    if (recipe.out_dtype or recipe.dtype) == "float16" and "BF16" in stored:
        yield (
            f"{at(recipe.lines.get(key, recipe.origin))}float16 ends at 65504, bfloat16 does not; a merge "
            "stops where a value does not fit"
        )


def lint_layers(pieces: Sequence[Piece]) -> Iterator[str]:
    """Layers that seem to be left out by mistake: the end of a range is not included, and the first is 0."""
    for piece in pieces:
        sources = [c.reference for c in piece.casts if piece.stacks and any(layer_range(c.reference))]
        used = {layer for source in sources for layer in range(*layer_range(source))}
        for before, source in zip((None, *sources), sources, strict=False):
            first, last = layer_range(source)
            depth = piece.stacks[source.model].num_blocks
            shown = f"{at(source.where)}layer_range [{first}, {last}]"
            if before is None and first == 1:
                yield f"{shown} leaves out the first layer; layers are counted from 0"
            if before is not None and first == layer_range(before)[1] + 1 and first - 1 not in used:
                yield f"{shown} leaves out layer {first - 1}; the end of the range before it is not included"
            if source is sources[-1] and last == depth - 1:
                yield f"{shown} leaves out the last layer; the end is not included: all are [0, {depth}]"


def check_architectures(models: Sequence[Model], donor: Model, *, allow_crimes: bool) -> None:
    if allow_crimes:
        return
    expected = _architecture(donor)
    for model in models:
        found = _architecture(model)
        if found and expected and found != expected:
            raise MismatchError(
                f"model '{model.ref}' is a {found}, '{donor.ref}' is a {expected}",
                hint="--allow-crimes merges them all the same if tensors of equal names have equal shapes",
            )


def _architecture(model: Model) -> str:
    if model.ref.override_architecture is not None:
        return model.ref.override_architecture
    config = model.checkpoint.config
    names = config.get("architectures")
    if isinstance(names, list) and names:
        return str(names[0])  # pyright: ignore[reportUnknownArgumentType]
    return str(config.get("model_type", ""))


def check_depths(pieces: Sequence[Piece], models: Mapping[ModelRef, Model], donor: Model) -> None:
    """Whole models must have equal stacks: a shorter one would leave layers unmerged."""
    expected = {(s.prefix, s.first > 0): s.num_blocks for s in donor.layout.stacks}
    for piece in pieces:
        if not piece.module.from_models:
            continue
        for source in piece.module.slices[0].sources:
            model = models[source.model]
            for stack in model.layout.stacks:
                num_blocks = expected.get((stack.prefix, stack.first > 0), stack.num_blocks)
                if piece_of(pieces, stack.prefix) is piece and num_blocks != stack.num_blocks:
                    raise MismatchError(
                        f"model '{model.ref}' has {stack.num_blocks} blocks {stack.prefix}*, "
                        f"'{donor.ref}' has {num_blocks}",
                        hint="use 'slices:' with a layer_range to say which layers to merge",
                    )


def check_missing(slots: Sequence[Slot], models: Mapping[ModelRef, Model]) -> None:
    """A model that lacks most tensors is another kind of model, not one with a tensor too few."""
    lacking: dict[ModelRef, list[str]] = {}
    for slot in slots:
        for ref in dict.fromkeys(slot.missing):
            lacking.setdefault(ref, []).append(slot.name)
    for ref, names in lacking.items():
        if len(names) >= _MAX_MISSING * len(slots):
            own = next(iter(models[ref].checkpoint), "none")
            raise MismatchError(
                f"model '{ref}' lacks {len(names)} of {len(slots)} tensors, the first is '{names[0]}'",
                hint=f"its own tensors have names like '{own}'; the models are of different kinds",
            )


def check_uniform(method: Method, drafts: Sequence[TensorJob]) -> None:
    """What is measured over all tensors together takes the same parameters for all of them."""
    if method.measure_model is None:
        return
    # One of those that share their values.
    merged = list({(id(d.values), d.shape): d for d in reversed(drafts) if d.method is not None}.values())[
        ::-1
    ]
    if not any(method.model_statistic(d.whole, d.values) for d in merged):
        return
    first = merged[0]
    for draft in merged:
        for name, value in draft.values.items():
            if value != first.values[name] and name in method.model_parameters:
                raise RecipeError(
                    f"{name} is {value} for tensor '{draft.name}' and {first.values[name]} for "
                    f"'{first.name}', but is used over all tensors together",
                    hint=f"give {name} one value per model, without filters and gradients",
                )


def check_fit(
    slots: Sequence[Slot], infos: Sequence[Mapping[str, TensorInfo]], labels: Sequence[str]
) -> None:
    """All inputs of a slot must have the reference's shape, and be numbers of its kind."""
    misfits: list[tuple[Slot, TensorInfo, TensorInfo, str]] = []
    for slot in slots:
        reference = infos[slot.reference.checkpoint][slot.reference.tensor]
        first = labels[slot.reference.checkpoint]
        for entry in (*(e.input for e in slot.entries), *((slot.base,) if slot.base else ())):
            info, second = infos[entry.checkpoint][entry.tensor], labels[entry.checkpoint]
            if info.shape != reference.shape:
                misfits.append((slot, reference, info, second))
            elif info.floating != reference.floating:
                raise MismatchError(
                    f"tensor '{slot.name}' is {reference.dtype} in '{first}' and {info.dtype} in '{second}'",
                    hint="integers are no weights; one of the models may be quantised",
                )
    if not misfits:
        return
    slot, reference, info, second = misfits[0]
    message = (
        f"tensor '{slot.name}' has shape {list(reference.shape)} in '{labels[slot.reference.checkpoint]}' "
        f"and {list(info.shape)} in '{second}'"
    )
    if len(misfits) > 1:
        others = [f"'{s.name}' {list(r.shape)} and {list(i.shape)}" for s, r, i, _ in misfits[1:_SHOWN]]
        message += f"; {len(misfits) - 1} more of {len(slots)} tensors do not fit: {', '.join(others)}"
        message += ", …" * (len(misfits) > _SHOWN)
    vocabulary = all(
        s.place.role in ("embedding", "lm_head") and i.shape[1:] == r.shape[1:] for s, r, i, _ in misfits
    )
    hint = "models can be merged only where their tensors have equal shapes"
    if vocabulary:
        hint = "the vocabularies differ; copy each model's tokenizer into its folder, and add to the recipe "
        hint += "'tokenizer: {source: union}'"
    raise MismatchError(message, hint=hint)
