"""From a recipe's parameters to one number per tensor and model, and what is odd about them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import UnionType

from meldkit.errors import RecipeError, did_you_mean, nearest
from meldkit.methods import METHODS, Method, Parameter, Value, Values
from meldkit.plan.pieces import at
from meldkit.plan.slots import Entry, Slot
from meldkit.recipe import (
    Filtered,
    Gradient,
    Parameters,
    Recipe,
    Resolved,
    evaluate,
    filter_matches,
    filters_of,
    reaches,
    resolve,
    unreached_by,
)
from meldkit.recipe.sections import Configuration

#: Signs of regular expressions and shell patterns, which names do not have.
_SIGNS = set("*?|[]()^$\\")

Scope = tuple[str, Parameters]


class SharedValues:
    """Gives every parameter of a method for output tensors; where all are equal, as one object.

    Parameters that are plain numbers wherever a tensor's models have them are decided once, not once per
    tensor: large models have a hundred thousand.

    Args:
        method: declares the parameters.
        labels: of the plan's checkpoints, for messages.
        recipe: says whether mergekit's numerics are wanted, and where it is what it lacks.
    """

    def __init__(self, method: Method, labels: Sequence[str], recipe: Recipe) -> None:
        self._method = method
        self._labels = labels
        self._recipe = recipe
        #: By scopes and sources: a tensor's values, and which of them may be others for another tensor: of
        #: another depth, or of any other.
        self._first: dict[tuple[int, ...], tuple[Slot, Values, list[Parameter], bool]] = {}
        self._shared: dict[tuple[tuple[int, ...], float | str], Values] = {}

    def __call__(self, slot: Slot) -> Values:
        """The values for one output tensor.

        Raises:
            RecipeError: a required parameter is missing, or a value is out of its range.
        """
        # The slots in `_first` keep what these numbers stand for from being another's.
        key = (id(slot.scopes), *(id(entry.source) for entry in slot.entries))
        if key not in self._first:
            values = self._checked(slot, {p.name: self._value(p, slot) for p in self._method.parameters})
            varying = [p for p in self._method.parameters if _varies(p.name, slot, Filtered | Gradient)]
            by_name = any(_varies(p.name, slot, Filtered) for p in varying)
            self._first[key] = slot, values, varying, by_name
        _, values, varying, by_name = self._first[key]
        if not varying:
            return values
        if not by_name and (key, slot.t) in self._shared:
            return self._shared[key, slot.t]
        own = {parameter.name: self._value(parameter, slot) for parameter in varying}
        shared = (key, repr(own) if by_name else slot.t)
        if shared not in self._shared:
            self._shared[shared] = self._checked(slot, {**values, **own})
        return self._shared[shared]

    def _value(self, parameter: Parameter, slot: Slot) -> Value | tuple[Value, ...]:
        if parameter.of_recipe:
            return self._recipe.compat is not None
        if not parameter.per_model:
            return decide(parameter, slot, None, self._labels, self._recipe)[0]
        return tuple(decide(parameter, slot, e, self._labels, self._recipe)[0] for e in slot.entries)

    def _checked(self, slot: Slot, values: Values) -> Values:
        try:
            self._method.check(values)
        except ValueError as e:
            raise RecipeError(f"{at(_method_line(self._recipe))}tensor '{slot.name}': {e}") from e
        return values


def _varies(name: str, slot: Slot, kinds: type | UnionType) -> bool:
    """Whether a parameter's value is of one of these kinds in one of the places where it may stand."""
    places = (*(entry.source.parameters for entry in slot.entries), *(p for _, p in slot.scopes))
    return any(name in place and isinstance(place[name].value, kinds) for place in places)


def _method_line(recipe: Recipe) -> str:
    return recipe.lines.get("merge_method", recipe.origin)


def view(slot: Slot, entry: Entry | None) -> tuple[str, Sequence[Scope]]:
    """The name that filters look at and the scopes, for the whole tensor or one model's entry."""
    if entry is None:
        return slot.name, slot.scopes
    return entry.input.tensor, (("source", entry.source.parameters), *slot.scopes)


def where_of(parameter: str, slot: Slot, model: int | None = None) -> str:
    """Where the recipe gives a parameter of a tensor, or of one of its models; "" if it does not."""
    for entry in (None, *slot.entries) if model is None else (slot.entries[model],):
        name, scopes = view(slot, entry)
        found = resolve(parameter, name, slot.t, scopes)
        if found is not None:
            return found.where
    return ""


def decide(
    parameter: Parameter, slot: Slot, entry: Entry | None, labels: Sequence[str], recipe: Recipe
) -> tuple[Value, Resolved | None]:
    """A parameter's value for the whole tensor or one model's entry, and what decided it; None: the default.

    Raises:
        RecipeError: it is required and missing, or out of its range.
    """
    name, scopes = view(slot, entry)
    found = resolve(parameter.name, name, slot.t, scopes)
    if found is None:
        if parameter.required:
            label = "" if entry is None else labels[entry.input.checkpoint]
            raise _missing(parameter, slot, entry, label, recipe)
        return parameter.default, None
    try:
        return parameter.check(found.value), found
    except ValueError as e:
        raise RecipeError(f"{at(found.where)}{e}", hint=_meant(parameter, found.value)) from e


def _meant(parameter: Parameter, value: Value) -> str:
    """What a user may have meant by a value that is not valid."""
    number = value
    if isinstance(value, str):
        text = value.strip().removesuffix("%").strip().replace(",", ".")
        try:
            number = float(text) / (100 if value.strip().endswith("%") else 1)
        except ValueError:
            return ""
        return f"write {number:g}" if parameter.kind is float else ""
    # Somewhat more than 1 is another mistake.
    share = (parameter.low, parameter.high) == (0, 1)
    if share and isinstance(number, float) and 2 < number <= 100:
        return f"it is a share: {number:g} % is {number / 100:g}"
    return ""


def _missing(
    parameter: Parameter, slot: Slot, entry: Entry | None, label: str, recipe: Recipe
) -> RecipeError:
    name, _ = view(slot, entry)
    where = _method_line(recipe)
    places = "the slice's or the recipe's 'parameters:'"
    if entry is not None:
        places = f"the model's own 'parameters:', or {places}"
        where = entry.source.where
    hint = f"give it under {places}; if it has filters, end them with a plain 'value:'"
    for other in slot.entries if entry is None else ():
        if parameter.name in other.source.parameters:
            setting = other.source.parameters[parameter.name]
            hint = f"{at(setting.where)}it stands under a model, where it has no effect; move it to {places}"
            break
    if parameter.name in recipe.astray:
        hint = f"{recipe.astray[parameter.name]}: here it has no effect; indent it, below {places}"
    return RecipeError(
        f"{at(where)}parameter '{parameter.name}' is missing for tensor '{name}'"
        + (f" of model '{label}'" if label else ""),
        hint=hint,
    )


def lint_names(recipe: Recipe, method: Method) -> Iterator[str]:
    """Warnings about parameters that the method does not look at; needs no model.

    Raises:
        RecipeError: a name that no method knows.
    """
    own = {p.name: p for p in method.parameters if not p.of_recipe}
    for parameters, per_model in _scopes_of(recipe):
        for name, setting in parameters.items():
            if name in own:
                if per_model and not own[name].per_model:
                    yield (
                        f"{at(setting.where)}'{name}' has no effect under a model: it is one value for the "
                        "whole tensor; write it under the recipe's or the slice's 'parameters:'"
                    )
                continue
            users = [
                m.name
                for m in METHODS.values()
                if any(p.name == name and not p.of_recipe for p in m.parameters)
            ]
            # mergekit knows more names, and recipes in the wild are full of them.
            if not users and name not in Configuration.unused:
                raise RecipeError(
                    f"{at(setting.where)}unknown parameter '{name}'",
                    hint=did_you_mean(name, own) if own else f"{method.name} has no parameters",
                )
            used = f"; {', '.join(users[:3])} would" if users else ""
            yield f"{at(setting.where)}'{name}' has no effect: {method.name} does not use it{used}"
    yield from _idle_base(method, recipe)


def _scopes_of(recipe: Recipe) -> Iterator[tuple[Parameters, bool]]:
    """Every place where parameters stand, and whether that is under a model; in the usual order of files."""
    for module in recipe.modules:
        for part in module.slices:
            for source in part.sources:
                yield source.parameters, True
            yield part.parameters, False
        yield module.parameters, False
    yield recipe.parameters, False


def _idle_base(method: Method, recipe: Recipe) -> Iterator[str]:
    if not method.base.delta:
        return
    for module in recipe.modules:
        for part in module.slices:
            base = part.base_model or recipe.base_model
            source = next((s for s in part.sources if s.model == base), None)
            if source is not None and source.parameters:
                yield (
                    f"{at(source.where)}the parameters of base_model '{base}' have no effect: "
                    f"{method.name} merges the others' differences from it"
                )


def lint_values(method: Method, slots: Sequence[Slot]) -> Iterator[str]:
    """Warnings about filters that match nothing and gradients that reach beyond the layers."""
    seen: dict[int, tuple[Parameters, dict[bool, dict[str, None]]]] = {}
    for slot in slots:
        for entry in (None, *slot.entries):
            name, scopes = view(slot, entry)
            for _, parameters in scopes:
                if parameters:
                    names = seen.setdefault(id(parameters), (parameters, {True: {}, False: {}}))[1]
                    names[entry is not None][name] = None
    own = {p.name: p for p in method.parameters}
    for parameters, names in seen.values():
        for key, setting in parameters.items():
            if key not in own:
                continue
            for pattern in dict.fromkeys(filters_of(setting.value)):
                looked_at = names[own[key].per_model]
                if not any(filter_matches(pattern, name) for name in looked_at):
                    advice = _instead_of(pattern, looked_at)
                    yield f"{at(setting.where)}filter '{pattern}' of '{key}' matches no tensor; {advice}"
            if unreached := unreached_by(setting.value):
                yield (
                    f"{at(setting.where)}filter '{unreached}' of '{key}' is never looked at, because an "
                    "entry without a filter stands before it; move that one to the end"
                )
    yield from _early_gradients(own, slots)


def _instead_of(pattern: str, names: Collection[str]) -> str:
    """What may have been meant by a filter that matches nothing."""
    if not pattern.startswith(("re:", "glob:")):
        if _SIGNS & set(pattern):
            return "to have it taken for a pattern, begin it with 're:' or 'glob:'"
        parts = dict.fromkeys(part for name in names for part in name.split(".") if not part.isdecimal())
        near = nearest(pattern, parts)
        if near is not None and "." not in pattern:
            return f"did you mean '{near}'?"
    deepest = max(names, key=lambda name: name.count("."), default="")
    return f"names are like '{deepest}'"


def _early_gradients(own: Mapping[str, Parameter], slots: Sequence[Slot]) -> Iterator[str]:
    """Outside the layers a gradient gives its first value, which surprises those who expect depth order."""
    reached: dict[tuple[str, str], list[str]] = {}
    for slot in slots:
        if slot.place.stack is not None or not slot.entries:
            continue
        for parameter in own.values():
            entries: tuple[Entry | None, ...] = slot.entries if parameter.per_model else (None,)
            for entry in entries:
                name, scopes = view(slot, entry)
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
    stacks = [slot.place.stack.prefix for slot in slots if slot.place.stack is not None]
    inside = stacks[0].rstrip(".").rpartition(".")[2] if stacks else ""
    advice = f"to leave them out, put it under a filter such as '{inside}', and give the rest a value"
    for (where, parameter_name), names in reached.items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        yield (
            f"{at(where)}the gradient of '{parameter_name}' also reaches {', '.join(names[:2])}{more}, "
            f"which stand outside the layers and take its first value; {advice}"
        )
