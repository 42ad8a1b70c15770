"""Why an output tensor gets the values that it gets: what decided each, and where the recipe says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from meldkit.methods import Parameter, Value
from meldkit.plan.model import Plan, TensorJob
from meldkit.plan.slots import Entry, Slot
from meldkit.plan.values import decide, view


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


def decisions(plan: Plan, index: int) -> Decisions:
    """Who decided the parameters of an output tensor; empty where the method is not applied to it.

    Args:
        plan: of the merge.
        index: of the tensor among `plan.jobs`.
    """
    slot, job = plan.slots[index], plan.jobs[index]
    if job.method is None and (slot.missing or not slot.entries or not _merged(plan, slot)):
        return {}
    found: dict[str, Decision | tuple[Decision, ...]] = {}
    for parameter in plan.method.parameters:
        if parameter.of_recipe:
            found[parameter.name] = _of_recipe(plan, parameter)
        elif parameter.per_model:
            found[parameter.name] = tuple(_decision(plan, parameter, slot, e) for e in slot.entries)
        else:
            found[parameter.name] = _decision(plan, parameter, slot, None)
    return found


def _of_recipe(plan: Plan, parameter: Parameter) -> Decision:
    if plan.recipe.compat is None:
        return Decision(value=False)
    return Decision(True, "recipe", plan.recipe.lines.get(parameter.name, plan.recipe.origin))


def _decision(plan: Plan, parameter: Parameter, slot: Slot, entry: Entry | None) -> Decision:
    value, found = decide(parameter, slot, entry, (), "")
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
