"""Why an output tensor gets the values that it gets: what decided each, and where the recipe says so."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from meldkit.methods import Parameter, Value
from meldkit.plan.model import Plan, TensorJob
from meldkit.plan.slots import Entry, Slot
from meldkit.plan.values import decide, view
from meldkit.recipe import Filtered, choices


@dataclass(frozen=True, slots=True)
class Decision:
    """A parameter's value and who decided it.

    Attributes:
        value: as the method gets it; None for an optional one that is not given.
        scope: "source" (the model's own parameters), "slice", "module", "recipe", or "default".
        where: "recipe.yml:12"; "" for a default, or a recipe that is not from a file.
        filter: that chose the value, as the recipe has it; None if none did.
    """

    value: Value | None
    scope: str = "default"
    where: str = ""
    filter: str | None = None


#: By parameter; those that each model has its own of, by input.
Decisions = Mapping[str, Decision | tuple[Decision, ...]]


def decisions(plan: Plan, indices: Iterable[int]) -> Iterator[Decisions]:
    """Who decided the parameters of output tensors; nothing where the method is not applied to one.

    Tensors about which the same was decided share one mapping.

    Args:
        plan: of the merge.
        indices: of the tensors among `plan.jobs`.
    """
    # Models of many experts have a hundred thousand tensors, and most recipes say the same about all of them.
    known: dict[Hashable, Decisions] = {}
    filters: dict[Hashable, list[tuple[int, Filtered]]] = {}
    for index in indices:
        slot = plan.slots[index]
        if plan.jobs[index].method is None and (slot.missing or not slot.entries or not _merged(plan, slot)):
            yield {}
            continue
        said = (
            *[id(parameters) for _, parameters in slot.scopes],
            *[id(entry.source) for entry in slot.entries],
        )
        if said not in filters:
            filters[said] = _filters(plan, slot)
        names = [slot.name, *[entry.input.tensor for entry in slot.entries]]
        key = (said, slot.t, *[choices(value, names[place]) for place, value in filters[said]])
        if key not in known:
            known[key] = {p.name: _decided(plan, p, slot) for p in plan.method.parameters}
        yield known[key]


def _filters(plan: Plan, slot: Slot) -> list[tuple[int, Filtered]]:
    """The values that depend on names: on the tensor's own (0), or on that of a model's tensor (from 1)."""
    found: dict[tuple[int, Filtered], None] = {}
    for parameter in plan.method.parameters:
        entries: tuple[Entry | None, ...] = slot.entries if parameter.per_model else (None,)
        for place, entry in enumerate(entries, start=int(parameter.per_model)):
            for _, parameters in view(slot, entry)[1]:
                setting = parameters.get(parameter.name)
                if setting is not None and isinstance(setting.value, Filtered):
                    found[place, setting.value] = None
    return list(found)


def _decided(plan: Plan, parameter: Parameter, slot: Slot) -> Decision | tuple[Decision, ...]:
    if parameter.of_recipe:
        if plan.recipe.compat is None:
            return Decision(value=False)
        return Decision(True, "recipe", plan.recipe.lines.get(parameter.name, plan.recipe.origin))
    if parameter.per_model:
        return tuple(_decision(plan, parameter, slot, entry) for entry in slot.entries)
    return _decision(plan, parameter, slot, None)


def _decision(plan: Plan, parameter: Parameter, slot: Slot, entry: Entry | None) -> Decision:
    # Nothing can be missing here: the plan would not have been made.
    value, found = decide(parameter, slot, entry, (), plan.recipe)
    if found is None:
        return Decision(value)
    where, chosen = found.setting.line_for(view(slot, entry)[0])
    return Decision(value, found.scope, where, chosen)


def why_copied(plan: Plan, index: int) -> str:
    """Why an output tensor is a copy, in words; "" if the method makes it.

    Args:
        plan: of the merge.
        index: of the tensor among `plan.jobs`.
    """
    slot, job = plan.slots[index], plan.jobs[index]
    if job.method is not None:
        return ""
    if not _merged(plan, slot):
        return f"{_dtype(plan, job)} is no type of weights"
    if slot.missing:
        return "missing in " + ", ".join(f"'{ref}'" for ref in dict.fromkeys(slot.missing))
    if not job.numel:
        return "it has no elements"
    return f"{plan.method.name} changes nothing with these values"


def _merged(plan: Plan, slot: Slot) -> bool:
    """Whether the tensor is of a kind that is merged at all."""
    return plan.checkpoints[slot.reference.checkpoint][slot.reference.tensor].floating


def _dtype(plan: Plan, job: TensorJob) -> str:
    source = job.inputs[0]
    return plan.checkpoints[source.checkpoint][source.tensor].dtype
