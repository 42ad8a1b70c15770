"""From a recipe's parameters to one number per tensor and model, and what is odd about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from meldkit.errors import RecipeError, did_you_mean
from meldkit.methods import METHODS, Base, Method, Parameter, Value, Values
from meldkit.plan.slots import Entry, Slot
from meldkit.recipe import Parameters, Recipe, evaluate, filter_matches, filters_of, reaches, resolve

#: Written in many recipes though it does nothing: in mergekit either.
_IDLE = ("int8_mask", "embed_slerp", "dtype")

Scope = tuple[str, Parameters]


def resolve_values(method: Method, slot: Slot, labels: Sequence[str]) -> Values:
    """Every parameter of the method for one output tensor.

    Args:
        method: declares the parameters.
        slot: the tensor.
        labels: of the plan's checkpoints, for messages.

    Raises:
        RecipeError: a required parameter is missing, or a value is out of its range.
    """
    values: dict[str, Value | tuple[Value, ...]] = {}
    for parameter in method.parameters:
        if parameter.per_model:
            values[parameter.name] = tuple(
                _resolve(
                    parameter,
                    entry.input.tensor,
                    slot,
                    (("source", entry.source.parameters), *slot.scopes),
                    labels[entry.input.checkpoint],
                )
                for entry in slot.entries
            )
        else:
            values[parameter.name] = _resolve(parameter, slot.name, slot, slot.scopes, None)
    try:
        method.check(values)
    except ValueError as e:
        raise RecipeError(f"tensor '{slot.name}': {e}") from e
    return values


def _resolve(
    parameter: Parameter, name: str, slot: Slot, scopes: Sequence[Scope], label: str | None
) -> Value:
    found = resolve(parameter.name, name, slot.t, scopes)
    if found is None:
        if parameter.required:
            raise _missing(parameter, name, label)
        return parameter.default
    try:
        return parameter.check(found.value)
    except ValueError as e:
        raise RecipeError(f"{found.where + ': ' if found.where else ''}{e}") from e


def _missing(parameter: Parameter, name: str, label: str | None) -> RecipeError:
    places = "the slice's or the recipe's 'parameters:'"
    if parameter.per_model:
        places = f"the model's own 'parameters:', or {places}"
    return RecipeError(
        f"parameter '{parameter.name}' is missing for tensor '{name}'"
        + (f" of model '{label}'" if label else ""),
        hint=f"give it under {places}; if it has filters, end them with a plain 'value:'",
    )


def lint_parameters(recipe: Recipe, method: Method, slots: Sequence[Slot]) -> Iterator[str]:
    """Warnings about parameters that have no effect; unknown ones are errors.

    Raises:
        RecipeError: a name that no method knows.
    """
    own = {p.name: p for p in method.parameters}
    elsewhere = {p.name for m in METHODS.values() for p in m.parameters}
    sources = [s for module in recipe.modules for part in module.slices for s in part.sources]
    wide: list[Parameters] = [recipe.parameters]
    for module in recipe.modules:
        wide += [module.parameters, *(part.parameters for part in module.slices)]
    scopes = [(p, False) for p in wide] + [(s.parameters, True) for s in sources]
    for parameters, per_model in scopes:
        for name, setting in parameters.items():
            at = f"{setting.where}: " if setting.where else ""
            if name in own:
                if per_model and not own[name].per_model:
                    yield (
                        f"{at}'{name}' has no effect under a model: it is one value for the whole tensor; "
                        "write it under the recipe's or the slice's 'parameters:'"
                    )
            elif name in elsewhere or name in _IDLE:
                yield f"{at}'{name}' has no effect: {method.name} does not use it"
            else:
                raise RecipeError(
                    f"{at}unknown parameter '{name}'", hint=did_you_mean(name, own or sorted(elsewhere))
                )
    yield from _idle_base(method, recipe)
    yield from _idle_filters(scopes, slots)
    yield from _early_gradients(own, slots)


def _idle_base(method: Method, recipe: Recipe) -> Iterator[str]:
    if method.base is not Base.DELTA:
        return
    for module in recipe.modules:
        for part in module.slices:
            base = part.base_model or recipe.base_model
            for source in part.sources:
                if source.model == base and source.parameters:
                    at = f"{source.where}: " if source.where else ""
                    yield f"{at}parameters of the base have no effect: {method.name} merges task vectors"


def _idle_filters(scopes: Iterable[tuple[Parameters, bool]], slots: Sequence[Slot]) -> Iterator[str]:
    names = dict.fromkeys(
        name for slot in slots for name in (slot.name, *(e.input.tensor for e in slot.entries))
    )
    for parameters, _ in scopes:
        for setting in parameters.values():
            for pattern in dict.fromkeys(filters_of(setting.value)):
                if not any(filter_matches(pattern, name) for name in names):
                    at = f"{setting.where}: " if setting.where else ""
                    yield f"{at}filter '{pattern}' matches no tensor"


def _early_gradients(own: Mapping[str, Parameter], slots: Sequence[Slot]) -> Iterator[str]:
    """Outside the layers a gradient gives its first value, which surprises those who expect depth order."""
    reached: dict[tuple[str, str], list[str]] = {}
    for slot in slots:
        if slot.place.stack is not None or not slot.entries:
            continue
        for parameter in own.values():
            entries: tuple[Entry | None, ...] = slot.entries if parameter.per_model else (None,)
            for entry in entries:
                name = slot.name if entry is None else entry.input.tensor
                scopes = slot.scopes if entry is None else (("source", entry.source.parameters), *slot.scopes)
                setting = next(
                    (
                        s[parameter.name]
                        for _, s in scopes
                        if parameter.name in s and evaluate(s[parameter.name].value, name, slot.t) is not None
                    ),
                    None,
                )
                if setting is not None and reaches(setting.value, name):
                    names = reached.setdefault((setting.where, parameter.name), [])
                    if slot.name not in names:
                        names.append(slot.name)
    for (where, parameter_name), names in reached.items():
        at = f"{where}: " if where else ""
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        yield (
            f"{at}the gradient of '{parameter_name}' also reaches {', '.join(names[:2])}{more}, "
            "which stand outside the layers and take its first value"
        )
