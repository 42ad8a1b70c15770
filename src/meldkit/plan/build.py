"""From a recipe and the headers of its checkpoints to a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from meldkit.checkpoint import BY_TORCH_NAME, DTYPES, Checkpoint, TensorInfo
from meldkit.errors import MismatchError, NotSupportedError
from meldkit.layout import with_depth
from meldkit.methods import Method, get_method
from meldkit.plan.model import Input, Plan, TensorJob
from meldkit.plan.shards import lay_out
from meldkit.plan.slots import Model, Slot, layer_range, open_layouts, sliced_slots, whole_model_slots
from meldkit.plan.values import lint_parameters, resolve_values
from meldkit.recipe import ModelRef, Module, Recipe

#: Bytes of tensors per file if the user names no size; the Hub's own tools write files of 5 GB.
DEFAULT_SHARD_SIZE = 5_000_000_000
#: A model is taken for another architecture when it lacks more than this share of the tensors.
_MAX_MISSING = 0.5
#: Names under which the only module of a model may be addressed.
_MODULE_NAMES = (None, "default", "text_decoder")


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
    module = _supported_module(recipe)
    checkpoints = {ref: open_model(ref) for ref in recipe.models()}
    models = open_layouts(checkpoints)
    donor = models[recipe.base_model or next(iter(models))]
    warnings = list(recipe.warnings)
    warnings += _check_vocabulary(recipe, list(models.values()))
    _check_architectures(list(models.values()), donor, allow_crimes=allow_crimes)
    if module.from_models:
        slots = list(whole_model_slots(recipe, module, method, models))
        _check_depths(module, models, donor)
    else:
        slots = list(sliced_slots(recipe, module, method, models, donor))
    extra, notes = _left_over(recipe, module, models, donor, slots)
    slots += extra
    infos = [c.tensors for c in checkpoints.values()]
    labels = [c.label for c in checkpoints.values()]
    _check_missing(slots, infos, labels)
    warnings += lint_parameters(recipe, method, slots)
    drafts = [_draft(slot, method, recipe, infos, labels, notes) for slot in slots]
    files, positions = lay_out([(d.name, d.dtype, d.shape, d.nbytes) for d in drafts], shard_size)
    jobs = tuple(_placed(d, *positions[d.name]) for d in drafts)
    return Plan(
        recipe=recipe,
        method=method,
        checkpoints=tuple(checkpoints.values()),
        donor=donor.index,
        jobs=jobs,
        files=tuple(files),
        config=_config(recipe, module, models, donor, jobs),
        notes=tuple(notes),
        warnings=tuple(dict.fromkeys(warnings)),
        seed=seed,
    )


def _supported_module(recipe: Recipe) -> Module:
    """The recipe's only module; what cannot be done yet is refused here, before any file is opened."""
    lines = recipe.lines

    def refuse(key: str, what: str, hint: str = "") -> NotSupportedError:
        at = lines.get(key, recipe.origin)
        return NotSupportedError(f"{at + ': ' if at else ''}not supported yet: {what}", hint=hint)

    if recipe.chat_template is not None:
        raise refuse("chat_template", "chat_template", "leave it out to keep the template of the base model")
    if recipe.tokenizer is not None and (recipe.tokenizer.tokens or recipe.tokenizer.pad_to_multiple_of):
        raise refuse("tokenizer", "tokenizer settings for single tokens and padding")
    if recipe.compat is not None:
        raise refuse("compat", "compat")
    if len(recipe.modules) != 1 or recipe.modules[0].name not in _MODULE_NAMES:
        names = ", ".join(str(m.name) for m in recipe.modules)
        raise refuse("modules", f"modules {names}", "a model with one text decoder has the module 'default'")
    return recipe.modules[0]


def _check_vocabulary(recipe: Recipe, models: Sequence[Model]) -> Iterator[str]:
    """A tokenizer setting is carried out where it asks for nothing: all models have the same tokenizer."""
    if recipe.tokenizer is None:
        return
    contents = {_tokenizer_bytes(m.checkpoint) for m in models}
    if len(contents) > 1 or None in contents:
        at = recipe.tokenizer.where
        raise NotSupportedError(
            f"{at + ': ' if at else ''}not supported yet: "
            "a tokenizer setting for models whose tokenizers differ",
            hint="leave the setting out if the vocabularies are the same",
        )
    yield "all models have the same tokenizer; the tokenizer setting changes nothing"


def _tokenizer_bytes(checkpoint: Checkpoint) -> bytes | None:
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
                hint="--allow-crimes merges them all the same if their tensors have equal names and shapes",
            )


def _architecture(model: Model) -> str:
    config = model.checkpoint.config
    names = config.get("architectures")
    if isinstance(names, list) and names:
        return str(names[0])  # pyright: ignore[reportUnknownArgumentType]
    return str(config.get("model_type", ""))


def _check_depths(module: Module, models: Mapping[ModelRef, Model], donor: Model) -> None:
    """Whole models must have equal stacks: a shorter one would leave layers unmerged."""
    expected = {s.prefix: s.num_blocks for s in donor.layout.stacks}
    for source in module.slices[0].sources:
        model = models[source.model]
        for stack in model.layout.stacks:
            if expected.get(stack.prefix, stack.num_blocks) != stack.num_blocks:
                raise MismatchError(
                    f"model '{model.ref}' has {stack.num_blocks} blocks {stack.prefix}*, "
                    f"'{donor.ref}' has {expected[stack.prefix]}",
                    hint="use 'slices:' with a layer_range to say which layers to merge",
                )


def _left_over(
    recipe: Recipe, module: Module, models: Mapping[ModelRef, Model], donor: Model, slots: Sequence[Slot]
) -> tuple[list[Slot], list[str]]:
    """Tensors that the donor lacks: with a base the output has exactly its tensors; else they are copied."""
    known = {slot.name for slot in slots}
    tied = bool(donor.checkpoint.config.get("tie_word_embeddings"))
    extra: list[Slot] = []
    notes: list[str] = []
    for model in models.values():
        own_stack = None if module.from_models else model.stack
        for name, place in model.layout.places.items():
            if name in known or (own_stack is not None and place.stack == own_stack):
                continue
            known.add(name)
            if recipe.base_model is not None or (tied and place.role == "lm_head"):
                notes.append(f"{name}: left out; only '{model.ref}' has it, '{donor.ref}' does not")
            else:
                # The note about the copy is written where the slot is turned into a job.
                extra.append(Slot(name, place, 0.0, Input(model.index, name), (), None, (donor.ref,), ()))
    return extra, notes


def _check_missing(
    slots: Sequence[Slot], infos: Sequence[Mapping[str, TensorInfo]], labels: Sequence[str]
) -> None:
    """A model that lacks most tensors is another kind of model, not one with a tensor too few."""
    lacking: dict[str, list[str]] = {}
    for slot in slots:
        for ref in slot.missing:
            lacking.setdefault(str(ref), []).append(slot.name)
    for label, names in lacking.items():
        if len(names) > _MAX_MISSING * len(slots):
            own = next(iter(infos[labels.index(label)]), "none")
            raise MismatchError(
                f"model '{label}' lacks {len(names)} of {len(slots)} tensors, the first is '{names[0]}'",
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
    _check_shapes(slot, reference, infos, labels)
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
    if slot.missing:
        absent = ", ".join(f"'{ref}'" for ref in dict.fromkeys(slot.missing))
        notes.append(f"{slot.name}: copied from '{labels[slot.reference.checkpoint]}'; missing in {absent}")
        return copy
    values = resolve_values(method, slot, labels)
    if method.copies(values) or reference.numel == 0:
        return job(None, {}, inputs[:1], None)
    return job(method, values, inputs, slot.base)


def _check_shapes(
    slot: Slot, reference: TensorInfo, infos: Sequence[Mapping[str, TensorInfo]], labels: Sequence[str]
) -> None:
    for entry in (*(e.input for e in slot.entries), *((slot.base,) if slot.base else ())):
        info = infos[entry.checkpoint][entry.tensor]
        if info.shape != reference.shape:
            vocabulary = slot.place.role in ("embedding", "lm_head")
            first, second = labels[slot.reference.checkpoint], labels[entry.checkpoint]
            raise MismatchError(
                f"tensor '{slot.name}' has shape {list(reference.shape)} in '{first}' "
                f"and {list(info.shape)} in '{second}'",
                hint="the models have different vocabularies; merging them needs their tokenizers aligned"
                if vocabulary and info.shape[1:] == reference.shape[1:]
                else "models can be merged only where their tensors have equal shapes",
            )


def _placed(draft: TensorJob, file: int, offset: int) -> TensorJob:
    return TensorJob(
        draft.name,
        draft.dtype,
        draft.shape,
        draft.method,
        draft.values,
        draft.inputs,
        draft.base,
        file,
        offset,
    )


def _config(
    recipe: Recipe,
    module: Module,
    models: Mapping[ModelRef, Model],
    donor: Model,
    jobs: Sequence[TensorJob],
) -> dict[str, Any] | None:
    """The donor's configuration with the output's depth and dtype; None if the donor has none."""
    if not donor.checkpoint.config:
        return None
    config = dict(donor.checkpoint.config)
    if not module.from_models:
        origins: list[tuple[Mapping[str, Any], int]] = []
        for part in module.slices:
            ref = part.base_model or recipe.base_model
            source = next((s for s in part.sources if s.model == ref), part.sources[0])
            own = models[source.model].checkpoint.config
            origins += [(own, layer) for layer in range(*layer_range(source))]
        config = with_depth(config, donor.stack.num_blocks, origins)
    floating = [DTYPES[job.dtype].torch for job in jobs if DTYPES[job.dtype].floating]
    if floating:
        key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        config[key] = max(dict.fromkeys(floating), key=floating.count)
    return config
