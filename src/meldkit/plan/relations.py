"""Whether the models of a recipe belong together, as far as their configurations and files tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from meldkit.checkpoint import read_json
from meldkit.errors import MeldError
from meldkit.methods import Method
from meldkit.plan.pieces import Model, at
from meldkit.plan.stage import Stage
from meldkit.recipe import ModelRef, Recipe, Slice, Source
from meldkit.vocab import GENERATION, missing_tokens, read_templates

#: One entry for each layer.
_PER_LAYER = "layer_types"
#: What decides, besides weights, what a model computes: models of one base agree in it. Sizes that shapes of
#: tensors show are not among them, nor what fine-tunes change as they like, such as the longest text.
_COMPUTED = (
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_act", "hidden_activation", "activation_function"),
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    *("rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct", "sliding_window", _PER_LAYER),
    *("num_experts_per_tok", "norm_topk_prob", "routed_scaling_factor", "scoring_func", "topk_method"),
    *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "clip_qkv"),
    *("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling", "logit_scale"),
)
#: Where none is a setting, and not something that was left unsaid.
_OPTIONAL = ("rope_scaling", "sliding_window")
_LONGEST = "max_position_embeddings"
#: Files of which a tokenizer has at least one.
_TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("vocab.json", "vocab.txt", "tokenizer_config.json"),
)


def lint_relations(
    recipe: Recipe, method: Method, models: Mapping[ModelRef, Model], donor: Model, notes: list[str]
) -> Iterator[str]:
    """What does not keep models from being merged, but the result from being of use.

    Args:
        recipe: which models take part, and what it says about tokenizer and chat template.
        method: whether the base is one of the models.
        models: the input models, in order.
        donor: the one that gives configuration and tokenizer.
        notes: are added to.
    """
    for module in recipe.modules:
        for part in module.slices:
            yield from _twice(part, method, models, recipe.base_model)
    yield from _other_settings(list(models.values()), donor)
    longest = {
        str(model.ref): value
        for model in models.values()
        if (value := _settings(model).get(_LONGEST)) is not None
    }
    if len(set(longest.values())) > 1:
        values = ", ".join(f"{value} in '{ref}'" for ref, value in longest.items())
        notes.append(f"{_LONGEST} is {values}; the output has that of '{donor.ref}'")
    merged = _merged(recipe, method, models)
    if recipe.tokenizer is None:
        yield from _no_tokenizer(models, donor)
        yield from _other_ends(merged, donor)
    if recipe.chat_template is None:
        yield from _other_templates(merged, donor)


def _merged(recipe: Recipe, method: Method, models: Mapping[ModelRef, Model]) -> list[Model]:
    """The models whose skills the output is to have: without the base that task vectors start from."""
    result: dict[ModelRef, Model] = {}
    for module in recipe.modules:
        for part in module.slices:
            base = (part.base_model or recipe.base_model) if method.base.delta else None
            result |= {s.model: models[s.model] for s in part.sources if s.model != base}
    return list(result.values())


def _twice(
    part: Slice, method: Method, models: Mapping[ModelRef, Model], recipe_base: ModelRef | None
) -> Iterator[str]:
    """Sources of a slice that are the same layers of the same files."""
    base = part.base_model or recipe_base
    sources = list(part.sources)
    if method.base.delta and base is not None and all(s.model != base for s in sources):
        sources.insert(0, Source(base))
    seen: dict[object, Source] = {}
    for source in sorted(sources, key=lambda s: s.model != base):
        checkpoint = models[source.model].checkpoint
        # Several stages may read the same files.
        stored = frozenset(path.resolve() for path in checkpoint.files())
        what_it_is = checkpoint.fingerprint if isinstance(checkpoint, Stage) else stored
        identity = (what_it_is, source.layer_range)
        first = seen.setdefault(identity, source)
        if first is source:
            continue
        if first.model == source.model:
            what = f"model '{source.model}' is listed a second time"
        else:
            what = f"model '{source.model}' has the files of '{first.model}'"
        if method.base.delta and first.model == base:
            what += ", the base_model, so its task vector is 0"
        yield f"{at(source.where)}{what}; leave one out, or name another model"


def _settings(model: Model) -> dict[str, Any]:
    """What a configuration says about the text model, with positions as before transformers 5."""
    config = model.checkpoint.config
    text = config.get("text_config")
    settings = {**config, **(cast("dict[str, Any]", text) if isinstance(text, dict) else {})}
    rope = settings.get("rope_parameters")
    scaling: object = settings.get("rope_scaling")
    if isinstance(rope, dict):
        scaling = dict(cast("dict[str, Any]", rope))
        if scaling and all(isinstance(value, dict) for value in scaling.values()):
            # One for each kind of layer; before, those of full attention stood where others have theirs.
            scaling = dict(scaling.get("full_attention") or next(iter(scaling.values())))
        if (partial := scaling.pop("partial_rotary_factor", None)) is not None:
            settings["partial_rotary_factor"] = partial
        theta = scaling.pop("rope_theta", settings.get("rope_theta"))
        settings["rope_theta"] = theta
    if isinstance(scaling, dict):
        kinds = cast("dict[str, Any]", scaling)
        kind = kinds.get("rope_type", kinds.get("type"))
        scaling = {"type": kind, **{k: v for k, v in kinds.items() if k not in ("rope_type", "type")}}
        scaling = None if kind in (None, "default") and len(scaling) == 1 else scaling
    settings["rope_scaling"] = scaling
    if settings.get("use_sliding_window") is False:
        settings.pop("sliding_window", None)
    return settings


def _other_settings(models: Sequence[Model], donor: Model) -> Iterator[str]:
    """Models that were trained with other settings than the output gets; alike ones in one sentence."""
    groups: dict[tuple[str, str], list[str]] = {}
    for model in models:
        if model.checkpoint.config and donor.checkpoint.config:
            differing = differences(model, donor)
            if differing:
                words = ", ".join(own for own, _ in differing), ", ".join(given for _, given in differing)
                groups.setdefault(words, []).append(f"'{model.ref}'")
    for (own, given), names in groups.items():
        yield (
            f"{' and '.join(names)} {'have' if len(names) > 1 else 'has'} {own}, '{donor.ref}' {given}, "
            "which the output gets; models of one base agree in this, so look where these come from"
        )


def differences(model: Model, donor: Model) -> list[tuple[str, str]]:
    """What of importance the configurations of two models say differently, each in words."""
    own, given = _settings(model), _settings(donor)
    result: list[tuple[str, str]] = []
    for key in _COMPUTED:
        left: object = own.get(key)
        right: object = given.get(key)
        none_is_a_value = key in _OPTIONAL and key in own and key in given
        if left == right or ((left is None or right is None) and not none_is_a_value):
            continue
        if key == _PER_LAYER:
            # The layers of slices may be any; with equally many, each has its counterpart.
            if _num_entries(left) == _num_entries(right):
                result.append((f"other {key}", "its own"))
            continue
        result.append((_shown(key, left), _shown(key, right)))
    return result


def _num_entries(value: object) -> int:
    return len(cast("list[object]", value)) if isinstance(value, list) else 0


def _shown(key: str, value: object) -> str:
    if isinstance(value, dict):
        parts = cast("dict[str, object]", value).values()
        return f"{key} {' '.join(map(_text, parts))}"
    return f"no {key}" if value is None else f"{key} {_text(value)}"


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _no_tokenizer(models: Mapping[ModelRef, Model], donor: Model) -> Iterator[str]:
    if _has_tokenizer(donor):
        return
    other = next((str(model.ref) for model in models.values() if _has_tokenizer(model)), None)
    if other is not None:
        yield (
            f"'{donor.ref}' gives the tokenizer, but has none; copy the files of that of '{other}' into its "
            "folder"
        )


def _has_tokenizer(model: Model) -> bool:
    checkpoint = model.checkpoint
    folder = checkpoint.tokenizer or checkpoint.folder
    return checkpoint.gguf is not None or any((folder / name).exists() for name in _TOKENIZERS)


def _other_ends(merged: Sequence[Model], donor: Model) -> Iterator[str]:
    """Models that end their texts with tokens at which the output does not stop."""
    expected, ends = _ends(donor), [_ends(model) for model in merged]
    if donor in merged or not expected or not all(ends) or any(expected & own for own in ends):
        return
    advice = "write its eos_token_id into generation_config.json"
    if any(_has_tokenizer(model) for model in merged):
        advice = f"take the settings of one of them with 'tokenizer: {{source: {merged[0].ref}}}'"
    yield (
        f"{_names(merged)} end texts with token {_listed(set[int]().union(*ends))}, the output like "
        f"'{donor.ref}' with {_listed(expected)}, so that it may not stop; {advice}"
    )


def _names(models: Sequence[Model]) -> str:
    return " and ".join(f"'{model.ref}'" for model in models)


def _ends(model: Model) -> set[int]:
    """Numbers of the tokens at which generation stops."""
    checkpoint = model.checkpoint
    value: object = checkpoint.config.get("eos_token_id")
    path = checkpoint.folder / GENERATION
    if checkpoint.gguf is None and path.is_file():
        try:
            value = read_json(path).get("eos_token_id", value)
        except MeldError:  # it will be said when the file is copied
            return set()
    numbers: list[object] = cast("list[object]", value) if isinstance(value, list) else [value]
    return {number for number in numbers if isinstance(number, int)}


def _listed(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _other_templates(merged: Sequence[Model], donor: Model) -> Iterator[str]:
    """Two models whose chat templates have no marker of turns in common."""
    texts: dict[str, Model] = {}
    for model in merged:
        if model.checkpoint.gguf is None:
            try:
                text = read_templates(model.checkpoint.tokenizer or model.checkpoint.folder).default
            except MeldError as e:
                yield f"{e.message}, so it is not compared with the chat templates of other models"
                continue
            if text is not None:
                texts.setdefault(text, model)
    if len(texts) < 2:
        return
    (first, known), *others = [(model, missing_tokens(text, ())) for text, model in texts.items()]
    for second, own in others:
        if known and own and not set(known) & set(own):
            yield (
                f"{_names([first, second])} were trained with different chat templates, {known[0]} … and "
                f"{own[0]} …; the output gets that of '{donor.ref}', or the one named under 'chat_template:'"
            )
            return
