"""From a recipe and the headers of its checkpoints to a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from meldkit.checkpoint import BY_TORCH_NAME, DTYPES, Checkpoint, TensorInfo, alike, as_named_by
from meldkit.layout import Origin, Place, with_depth
from meldkit.methods import Method, Values, get_method
from meldkit.plan.advice import lint_numbers
from meldkit.plan.checks import (
    check_architectures,
    check_depths,
    check_fit,
    check_missing,
    check_uniform,
    lint_layers,
    lint_models,
    note_range,
)
from meldkit.plan.fp8 import in_blocks, with_quantisation
from meldkit.plan.model import Plan, TensorJob
from meldkit.plan.pieces import (
    Model,
    Piece,
    cast_sources,
    layer_range,
    open_layouts,
    open_pieces,
)
from meldkit.plan.relations import lint_relations
from meldkit.plan.shards import lay_out_jobs
from meldkit.plan.slots import Input, Slot, left_out, recipe_slots
from meldkit.plan.templates import check_setting, settle_templates
from meldkit.plan.values import SharedValues, lint_names, lint_values
from meldkit.plan.vocabulary import settle_vocabulary
from meldkit.recipe import ModelRef, Recipe
from meldkit.recipe.model import GENERATED

#: Bytes of tensors per file if the user names no size; the Hub's own tools write files of 5 GB.
DEFAULT_SHARD_SIZE = 5_000_000_000


def build_plan(
    recipe: Recipe,
    open_model: Callable[[ModelRef], Checkpoint],
    *,
    shard_size: int = DEFAULT_SHARD_SIZE,
    allow_crimes: bool = False,
    allow_crop: bool = False,
    trust_remote_code: bool = False,
    copy_tokenizer: bool = True,
    seed: int = 0,
) -> Plan:
    """Decide everything about a merge; reads headers and configurations only.

    Args:
        recipe: what to do.
        open_model: opens the checkpoint that a reference names.
        shard_size: most bytes of tensors per output file.
        allow_crimes: accept models whose architecture names differ, if names and shapes fit.
        allow_crop: merge rows of embeddings by number, cut to as many as all models have.
        trust_remote_code: run a model's own code where its tokenizer cannot be read otherwise.
        copy_tokenizer: the output gets a tokenizer.
        seed: of random methods.

    Raises:
        RecipeError: the recipe cannot be carried out.
        InputError: checkpoints are damaged or do not fit together.
    """
    method = get_method(recipe.merge_method, recipe.lines.get("merge_method", recipe.origin))
    # Everything that the recipe alone tells comes first: opening a model may mean downloading it.
    check_setting(recipe)
    for module in recipe.modules:
        for part in module.slices:
            cast_sources(method, part, recipe, whole_models=module.from_models)
    warnings = [*recipe.warnings, *lint_names(recipe, method)]
    notes: list[str] = []
    checkpoints = _in_one_layout({ref: open_model(ref) for ref in recipe.models()}, recipe, notes)
    for checkpoint in checkpoints.values():
        notes += checkpoint.notes
        warnings += checkpoint.warnings
    models = open_layouts(checkpoints)
    donor = models[recipe.base_model or next(iter(models))]
    warnings += lint_models(donor)
    notes += note_range(recipe, models)
    check_architectures(list(models.values()), donor, allow_crimes=allow_crimes)
    warnings += lint_relations(recipe, method, models, donor, notes)
    vocabulary = settle_vocabulary(
        recipe,
        models,
        donor,
        open_model,
        notes,
        warnings,
        allow_crop=allow_crop,
        trust_remote_code=trust_remote_code,
        copy_tokenizer=copy_tokenizer,
    )
    models, donor = vocabulary.models, vocabulary.models[donor.ref]
    templates, ends = settle_templates(recipe, models, donor, vocabulary.tokenizer, notes, warnings)
    pieces = open_pieces(recipe, method, models, donor)
    check_depths(pieces, models, donor)
    if recipe.origin != GENERATED:
        warnings += lint_layers(pieces)
    slots = list(recipe_slots(recipe, pieces, models, donor, notes))
    slots += _left_over(recipe, pieces, models, donor, slots, notes, warnings)
    slots = _without_tied_head(slots, donor, notes)
    check_missing(slots, models)
    warnings += lint_values(method, slots)
    infos = [model.checkpoint.tensors for model in models.values()]
    labels = [model.checkpoint.label for model in models.values()]
    check_fit(slots, infos, labels)
    values_of = SharedValues(method, labels, recipe)
    drafts = [_draft(slot, method, recipe, infos, labels, values_of, notes) for slot in slots]
    warnings += lint_numbers(method, slots, drafts, labels)
    check_uniform(method, drafts)
    drafts = in_blocks(drafts, slots, recipe, donor, infos, notes)
    jobs, files = lay_out_jobs(drafts, shard_size, donor.checkpoint.parts)
    config = _config(recipe, pieces, models, donor, jobs)
    if config is not None:
        config = with_quantisation(vocabulary.configured(config), jobs)
    if any(not piece.module.from_models and piece.num_blocks == 0 for piece in pieces):
        warnings.append("no layer is left in the output; look at the layer_range of each source")
    return Plan(
        recipe=recipe,
        method=method,
        checkpoints=tuple(model.checkpoint for model in models.values()),
        donor=donor.index,
        jobs=jobs,
        slots=tuple(slots),
        files=tuple(files),
        config=config,
        tokenizer=vocabulary.tokenizer,
        templates=templates,
        ends=ends,
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
        tensors = named
        if not alike(named, donor.tensors):
            from meldkit.checkpoint.experts import as_stored_by

            tensors = as_stored_by(named, donor.tensors)
        if tensors is not named:
            notes.append(f"the experts of '{ref}' are read as '{donor.label}' stores them")
        result[ref] = replace(checkpoint, tensors=tensors)
    return result


def _left_over(
    recipe: Recipe,
    pieces: Sequence[Piece],
    models: Mapping[ModelRef, Model],
    donor: Model,
    slots: Sequence[Slot],
    notes: list[str],
    warnings: list[str],
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
            if (
                tied
                and place.role == "lm_head"
                and model.checkpoint.config.get("tie_word_embeddings") is False
            ):
                warnings.append(
                    f"{name}: left out; '{model.ref}' has a head of its own, but '{donor.ref}', which the "
                    "output is like, has its embedding for one. To keep the head, let the former be "
                    "base_model, or stand first if there is none"
                )
            elif recipe.base_model is not None or (tied and place.role == "lm_head"):
                notes.append(left_out(name, model.ref, donor.ref))
            else:
                # The note about the copy is written where the slot is turned into a job.
                yield Slot(name, place, 0.0, Input(model.index, name), (), None, (donor.ref,), ())


def _without_tied_head(slots: list[Slot], donor: Model, notes: list[str]) -> list[Slot]:
    """Drop a stored lm_head that is the embedding: merged once, it stays tied."""
    heads = donor.tied_heads()
    tied = [slot for slot in slots if slot.name in heads]
    notes += [f"{slot.name}: left out; it is tied to the embedding (tie_word_embeddings)" for slot in tied]
    return [slot for slot in slots if slot not in tied]


def _draft(
    slot: Slot,
    method: Method,
    recipe: Recipe,
    infos: Sequence[Mapping[str, TensorInfo]],
    labels: Sequence[str],
    values_of: Callable[[Slot], Values],
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

    if not reference.floating:
        if len({i.checkpoint for i in (*inputs, slot.reference)}) > 1:
            notes.append(f"{slot.name}: {reference.dtype}, copied from '{labels[slot.reference.checkpoint]}'")
        return job(None, {}, (slot.reference,), None)
    if slot.place.role == "lm_head":
        notes += [
            f"{slot.name}: that of '{labels[i.checkpoint]}' is its embedding, to which it is tied"
            for i in (*inputs, *((slot.base,) if slot.base else ()))
            if Place(None, None, i.tensor).role == "embedding"
        ]
    if slot.missing:
        absent = ", ".join(f"'{ref}'" for ref in dict.fromkeys(slot.missing))
        notes.append(f"{slot.name}: copied from '{labels[slot.reference.checkpoint]}'; missing in {absent}")
        return job(None, {}, (slot.reference,), None)
    values = values_of(slot)
    if method.copies(values) or reference.numel == 0:
        return job(None, {}, inputs[:1], None)
    return job(method, values, inputs, slot.base)


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
