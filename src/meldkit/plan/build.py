"""From a recipe and the headers of its checkpoints to a plan."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from meldkit.checkpoint import BY_TORCH_NAME, DTYPES, Checkpoint, TensorInfo, as_named_by, as_stored_by
from meldkit.errors import MismatchError, NotSupportedError, RecipeError
from meldkit.layout import Origin, Place, with_depth
from meldkit.methods import Method, get_method
from meldkit.plan.fp8 import in_blocks, with_quantisation
from meldkit.plan.model import Input, Plan, TensorJob
from meldkit.plan.pieces import (
    Model,
    Piece,
    at,
    cast_sources,
    layer_range,
    open_layouts,
    open_pieces,
    piece_of,
)
from meldkit.plan.shards import lay_out_jobs
from meldkit.plan.slots import Slot, left_out, recipe_slots
from meldkit.plan.values import lint_names, lint_values, resolve_values
from meldkit.recipe import ModelRef, Recipe

#: Bytes of tensors per file if the user names no size; the Hub's own tools write files of 5 GB.
DEFAULT_SHARD_SIZE = 5_000_000_000
#: A model is taken for another architecture when it lacks this share of the tensors.
_MAX_MISSING = 0.5


def build_plan(
    recipe: Recipe,
    open_model: Callable[[ModelRef], Checkpoint],
    *,
    shard_size: int = DEFAULT_SHARD_SIZE,
    allow_crimes: bool = False,
    seed: int = 0,
) -> Plan:
    """Decide everything about a merge; reads headers and configurations only.

    Args:
        recipe: what to do.
        open_model: opens the checkpoint that a reference names.
        shard_size: most bytes of tensors per output file.
        allow_crimes: accept models whose architecture names differ, if names and shapes fit.
        seed: of random methods.

    Raises:
        RecipeError: the recipe cannot be carried out.
        InputError: checkpoints are damaged or do not fit together.
    """
    method = get_method(recipe.merge_method, recipe.lines.get("merge_method", recipe.origin))
    # Everything that the recipe alone tells comes first: opening a model may mean downloading it.
    _check_supported(recipe)
    for module in recipe.modules:
        for part in module.slices:
            cast_sources(method, part, recipe, whole_models=module.from_models)
    warnings = [*recipe.warnings, *lint_names(recipe, method)]
    notes: list[str] = []
    checkpoints = _in_one_layout({ref: open_model(ref) for ref in recipe.models()}, recipe, notes)
    models = open_layouts(checkpoints)
    donor = models[recipe.base_model or next(iter(models))]
    notes += _check_vocabulary(recipe, models)
    warnings += _lint_models(recipe, models, donor)
    _check_architectures(list(models.values()), donor, allow_crimes=allow_crimes)
    pieces = open_pieces(recipe, method, models, donor)
    _check_depths(pieces, models, donor)
    slots = list(recipe_slots(recipe, pieces, models, donor, notes))
    slots += _left_over(recipe, pieces, models, donor, slots, notes)
    slots = _without_tied_head(slots, donor, notes)
    _check_missing(slots, models)
    warnings += lint_values(method, slots)
    infos = [c.tensors for c in checkpoints.values()]
    labels = [c.label for c in checkpoints.values()]
    _check_fit(slots, infos, labels)
    drafts = [_draft(slot, method, recipe, infos, labels, notes) for slot in slots]
    _check_uniform(method, drafts)
    drafts = in_blocks(drafts, slots, recipe, donor, infos, notes)
    jobs, files = lay_out_jobs(drafts, shard_size)
    config = _config(recipe, pieces, models, donor, jobs)
    if any(not piece.module.from_models and piece.num_blocks == 0 for piece in pieces):
        warnings.append("no layer is left in the output")
    return Plan(
        recipe=recipe,
        method=method,
        checkpoints=tuple(checkpoints.values()),
        donor=donor.index,
        jobs=jobs,
        files=tuple(files),
        config=with_quantisation(config, jobs),
        notes=tuple(notes),
        warnings=tuple(dict.fromkeys(warnings)),
        seed=seed,
    )


def _in_one_layout(
    checkpoints: Mapping[ModelRef, Checkpoint], recipe: Recipe, notes: list[str]
) -> dict[ModelRef, Checkpoint]:
    """Every model under the donor's names and with its experts stored alike, so that namesakes meet."""
    donor = checkpoints[recipe.base_model or next(iter(checkpoints))]
    result: dict[ModelRef, Checkpoint] = {}
    for ref, checkpoint in checkpoints.items():
        named = as_named_by(checkpoint.tensors, donor.tensors)
        if named is not checkpoint.tensors:
            own, name = next(
                pair for pair in zip(checkpoint.tensors, named, strict=True) if pair[0] != pair[1]
            )
            notes.append(f"the tensors of '{ref}' go by the names of '{donor.label}': {own} is {name}, …")
        tensors = as_stored_by(named, donor.tensors)
        if tensors is not named:
            notes.append(f"the experts of '{ref}' are read as '{donor.label}' stores them")
        result[ref] = replace(checkpoint, tensors=tensors)
    return result


def _check_supported(recipe: Recipe) -> None:
    """What cannot be done yet is refused before any file is opened."""
    lines = recipe.lines

    def refuse(key: str, what: str, hint: str = "") -> NotSupportedError:
        return NotSupportedError(f"{at(lines.get(key, recipe.origin))}not supported yet: {what}", hint=hint)

    if recipe.chat_template is not None:
        raise refuse("chat_template", "chat_template", "leave it out to keep the template of the base model")
    if recipe.tokenizer is not None and (recipe.tokenizer.tokens or recipe.tokenizer.pad_to_multiple_of):
        raise refuse("tokenizer", "tokenizer settings for single tokens and padding")


def _check_vocabulary(recipe: Recipe, models: Mapping[ModelRef, Model]) -> Iterator[str]:
    """A tokenizer setting is carried out where it asks for nothing: all models have the same tokenizer."""
    spec = recipe.tokenizer
    if spec is None:
        return
    foreign = isinstance(spec.source, ModelRef) and spec.source not in models
    contents = {_tokenizer_bytes(m.checkpoint) for m in models.values()}
    if foreign or len(contents) > 1 or None in contents:
        what = "a tokenizer setting for models whose tokenizers differ"
        if foreign:
            what = f"the tokenizer of '{spec.source}', which is not one of the merged models"
        raise NotSupportedError(
            f"{at(spec.where)}not supported yet: {what}",
            hint="without the setting the output gets the tokenizer of base_model, else of the first model; "
            "that is right where the vocabularies are the same",
        )
    yield f"{at(spec.where)}all models have the same tokenizer, which is kept"


def _lint_models(recipe: Recipe, models: Mapping[ModelRef, Model], donor: Model) -> Iterator[str]:
    """What does not keep models from being merged, but the result from being of use."""
    if not donor.checkpoint.config:
        yield f"model '{donor.ref}' has no config.json, so the output has none either"
    layout = donor.layout
    if layout.stacks and layout.depths and not any(s.num_blocks in layout.depths for s in layout.stacks):
        stacks = ", ".join(f"{s.num_blocks} blocks {s.prefix}*" for s in layout.stacks)
        yield (
            f"config.json of '{donor.ref}' speaks of {' or '.join(map(str, sorted(layout.depths)))} layers, "
            f"its weights have {stacks}"
        )
    if recipe.tokenizer is not None:
        return
    expected = _vocabulary(donor.checkpoint)
    for model in models.values():
        found = _vocabulary(model.checkpoint)
        if found is not None and expected is not None and found != expected:
            yield (
                f"the tokenizers of '{donor.ref}' and '{model.ref}' give tokens different numbers: rows of "
                f"their embeddings do not belong together; the output gets the tokenizer of '{donor.ref}'"
            )


def _vocabulary(checkpoint: Checkpoint) -> object:
    """Something that is equal for equal vocabularies; None if there is none to be had."""
    try:
        raw = _tokenizer_bytes(checkpoint)
    except OSError:  # copying it will say so
        return None
    try:
        content = json.loads(raw or b"")
        # Tokens by number, whatever else a tokenizer.json says.
        return content["model"]["vocab"] if "model" in content else content
    except (ValueError, LookupError, TypeError):
        return raw


def _tokenizer_bytes(checkpoint: Checkpoint) -> bytes | None:
    if checkpoint.gguf is not None:  # its tokenizer is in the file; what lies beside it is another model's
        return None
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"):
        path = checkpoint.folder / name
        if path.is_file():
            return path.read_bytes()
    return None


def _check_architectures(models: Sequence[Model], donor: Model, *, allow_crimes: bool) -> None:
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


def _check_depths(pieces: Sequence[Piece], models: Mapping[ModelRef, Model], donor: Model) -> None:
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


def _left_over(
    recipe: Recipe,
    pieces: Sequence[Piece],
    models: Mapping[ModelRef, Model],
    donor: Model,
    slots: Sequence[Slot],
    notes: list[str],
) -> Iterator[Slot]:
    """Tensors that the donor lacks: with a base the output has exactly its tensors; else they are copied."""
    known = {slot.name for slot in slots}
    # A model without lm_head uses its embeddings as one, unless its configuration says otherwise.
    tied = bool(donor.checkpoint.config.get("tie_word_embeddings", True))
    for model in models.values():
        sliced = {(p.stacks.get(model.ref) or p.stacks[donor.ref]).prefix for p in pieces if p.stacks}
        for name, place in model.layout.places.items():
            if name in known or (place.stack is not None and place.stack.prefix in sliced):
                continue
            known.add(name)
            if recipe.base_model is not None or (tied and place.role == "lm_head"):
                notes.append(left_out(name, model.ref, donor.ref))
            else:
                # The note about the copy is written where the slot is turned into a job.
                yield Slot(name, place, 0.0, Input(model.index, name), (), None, (donor.ref,), ())


def _without_tied_head(slots: list[Slot], donor: Model, notes: list[str]) -> list[Slot]:
    """Drop a stored lm_head that is the embedding, as the configuration says: merged once, it stays tied."""
    if donor.checkpoint.config.get("tie_word_embeddings") is not True:
        return slots
    # A head may have layers of its own, in the shape of another embedding than the vocabulary's.
    embeddings = [donor.checkpoint[name] for name in donor.token_embeddings()]
    vocabulary = max(embeddings, key=lambda info: info.numel, default=None)
    tied = [
        slot
        for slot in slots
        if slot.place.role == "lm_head"
        and slot.name in donor.checkpoint
        and vocabulary is not None
        and donor.checkpoint[slot.name].shape == vocabulary.shape
    ]
    notes += [f"{slot.name}: left out; it is tied to the embedding (tie_word_embeddings)" for slot in tied]
    return [slot for slot in slots if slot not in tied]


def _check_missing(slots: Sequence[Slot], models: Mapping[ModelRef, Model]) -> None:
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


def _draft(
    slot: Slot,
    method: Method,
    recipe: Recipe,
    infos: Sequence[Mapping[str, TensorInfo]],
    labels: Sequence[str],
    notes: list[str],
) -> TensorJob:
    """The job of a slot, not yet placed in a file."""
    reference = infos[slot.reference.checkpoint][slot.reference.tensor]
    inputs = tuple(entry.input for entry in slot.entries)
    wanted = recipe.out_dtype or recipe.dtype
    dtype = BY_TORCH_NAME[wanted].name if wanted and reference.floating else reference.dtype

    def job(
        method: Method | None, values: Mapping[str, Any], inputs: tuple[Input, ...], base: Input | None
    ) -> TensorJob:
        return TensorJob(slot.name, dtype, reference.shape, method, values, inputs, base, -1, -1)

    copy = job(None, {}, (slot.reference,), None)
    if not reference.floating:
        if len({i.checkpoint for i in (*inputs, slot.reference)}) > 1:
            notes.append(f"{slot.name}: {reference.dtype}, copied from '{labels[slot.reference.checkpoint]}'")
        return copy
    if slot.place.role == "lm_head":
        notes += [
            f"{slot.name}: that of '{labels[i.checkpoint]}' is its embedding, to which it is tied"
            for i in (*inputs, *((slot.base,) if slot.base else ()))
            if Place(None, None, i.tensor).role == "embedding"
        ]
    if slot.missing:
        absent = ", ".join(f"'{ref}'" for ref in dict.fromkeys(slot.missing))
        notes.append(f"{slot.name}: copied from '{labels[slot.reference.checkpoint]}'; missing in {absent}")
        return copy
    where = recipe.lines.get("merge_method", recipe.origin)
    values = resolve_values(method, slot, labels, where, compat=recipe.compat is not None)
    if method.copies(values) or reference.numel == 0:
        return job(None, {}, inputs[:1], None)
    return job(method, values, inputs, slot.base)


def _check_uniform(method: Method, drafts: Sequence[TensorJob]) -> None:
    """What is measured over all tensors together takes the same parameters for all of them."""
    merged = [d for d in drafts if d.method is not None]
    if method.measure_model is None or not any(method.model_statistic(d.whole, d.values) for d in merged):
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


#: Tensors that a message about misfits names.
_SHOWN = 3


def _check_fit(
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
    raise MismatchError(
        message,
        hint="the models have different vocabularies; merging them needs their tokenizers aligned"
        if vocabulary
        else "models can be merged only where their tensors have equal shapes",
    )


def _config(
    recipe: Recipe,
    pieces: Sequence[Piece],
    models: Mapping[ModelRef, Model],
    donor: Model,
    jobs: Sequence[TensorJob],
) -> dict[str, Any] | None:
    """The donor's configuration with the output's depth and dtype; None if the donor has none."""
    if not donor.checkpoint.config:
        return None
    config = dict(donor.checkpoint.config)
    for piece in pieces:
        if piece.module.from_models:
            continue
        origins: list[Origin] = []
        for part in piece.module.slices:
            ref = part.base_model or recipe.base_model
            source = next((s for s in part.sources if s.model == ref), part.sources[0])
            own, depth = models[source.model].checkpoint.config, piece.stacks[source.model].num_blocks
            origins += [Origin(own, depth, layer) for layer in range(*layer_range(source))]
        config = with_depth(config, piece.stacks[donor.ref], origins, text=piece.part.root is None)
    elements: Counter[str] = Counter()
    for job in jobs:
        if DTYPES[job.dtype].floating and job.scales is None:
            elements[DTYPES[job.dtype].torch] += job.numel
    if elements:
        # transformers called it torch_dtype before version 5; each reader looks for its own.
        for key in [k for k in ("dtype", "torch_dtype") if k in config] or ["dtype"]:
            config[key] = elements.most_common(1)[0][0]
    return config
