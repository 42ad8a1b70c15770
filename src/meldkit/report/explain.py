"""Which value each parameter has, tensor by tensor, and which line of the recipe says so."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from meldkit.errors import RecipeError
from meldkit.plan import Decision, Decisions, Plan, decisions, stages_of, why_copied
from meldkit.recipe import filter_matches
from meldkit.report.groups import Group, group_tensors

#: How many names an error about a pattern without a match suggests, and how like it whole names must be.
_SUGGESTED = 3
_LIKE = 0.8
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True, slots=True)
class ModelValues:
    """One model's part in a tensor.

    Attributes:
        label: the model, as the recipe names it.
        tensor: its tensor, whose name filters look at.
        values: its own parameters.
    """

    label: str
    tensor: str
    values: Mapping[str, Decision]


@dataclass(frozen=True, slots=True)
class TensorExplanation:
    """How one output tensor comes to be, and why.

    Attributes:
        name: of the tensor.
        t: depth in its slice, where gradients are looked up: 0 to 1, and 0 outside of the layers.
        method: None if the tensor is copied.
        why_copied: in words; "" if it is not.
        base: (model, tensor) where task vectors start; None if there is none.
        values: parameters of the whole tensor.
        models: what is merged, in order; of a copy, what is copied.
        notes: what else the plan says about it.
    """

    name: str
    t: float
    method: str | None
    why_copied: str
    base: tuple[str, str] | None
    values: Mapping[str, Decision]
    models: tuple[ModelValues, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of some output tensors, or of all.

    Attributes:
        plan: what is explained.
        pattern: which tensors were asked for; None for all.
        decisions: who decided their parameters, by their places in `plan.jobs`.
        groups: by stack and leaf, of those tensors.
    """

    plan: Plan
    pattern: str | None
    decisions: Mapping[int, Decisions]
    groups: tuple[Group, ...]

    def tensors(self, members: Iterable[int] | None = None) -> list[TensorExplanation]:
        """Tensors at some places, or all that were asked for, in the order of the output."""
        explained = _Explained(self.plan)
        places = self.decisions if members is None else members
        return [explained.tensor(index, self.decisions[index]) for index in places]

    def distinct(self, members: Iterable[int]) -> list[TensorExplanation]:
        """Of the tensors at some places, one each of those that differ in more than their names."""
        jobs, slots = self.plan.jobs, self.plan.slots
        noted = {note.partition(": ")[0] for note in self.plan.notes}
        seen: dict[tuple[object, ...], int] = {}
        for index in members:
            job = jobs[index]
            models = [tensor.checkpoint for tensor in job.all_inputs]
            # Of what is copied the reason may differ, and notes are of single tensors.
            alone = index if job.name in noted or job.method is None else None
            seen.setdefault((id(self.decisions[index]), slots[index].t, alone, *models), index)
        return self.tensors(seen.values())

    def data(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        return {
            "method": self.plan.method.name,
            "pattern": self.pattern,
            "num_tensors": len(self.plan.jobs),
            "tensors": [_data(tensor) for tensor in self.tensors()],
        }


def _data(tensor: TensorExplanation) -> dict[str, Any]:
    models = [(model.label, model.tensor, _decided(model.values)) for model in tensor.models]
    return {
        "name": tensor.name,
        "t": tensor.t,
        "method": tensor.method,
        "why_copied": tensor.why_copied,
        "base": tensor.base and {"model": tensor.base[0], "tensor": tensor.base[1]},
        "values": _decided(tensor.values),
        "models": [{"model": label, "tensor": own, "values": values} for label, own, values in models],
        "notes": list(tensor.notes),
    }


def _decided(values: Mapping[str, Decision]) -> dict[str, dict[str, Any]]:
    return {
        name: {"value": d.value, "scope": d.scope, "where": d.where, "filter": d.filter}
        for name, d in values.items()
    }


def explain(plan: Plan, pattern: str | None = None) -> Explanation:
    """Say where the values of a plan come from.

    Args:
        plan: as `meldkit.plan` makes it.
        pattern: a tensor's name, or what filters in recipes are (a part of it, "re:…", "glob:…"), or None.

    Raises:
        RecipeError: the pattern matches no tensor of the output, or is no valid expression.
    """
    chosen = _chosen(plan, pattern)
    found = dict(zip(chosen, decisions(plan, chosen), strict=True))
    return Explanation(plan, pattern, found, group_tensors(plan, chosen))


def explain_stages(plan: Plan, pattern: str | None = None) -> dict[str, Explanation]:
    """The same of the stages that a plan reads, by name; those without such a tensor are left out.

    Args:
        plan, pattern: as for `explain`.
    """
    found: dict[str, Explanation] = {}
    for stage in stages_of(plan):
        with suppress(RecipeError):  # the pattern has been looked at for the output
            found[stage.label] = explain(stage.plan, pattern)
    return found


def _chosen(plan: Plan, pattern: str | None) -> Sequence[int]:
    if pattern is None:
        return range(len(plan.jobs))
    exact = [index for index, job in enumerate(plan.jobs) if job.name == pattern]
    if exact:
        return exact
    found = [index for index, job in enumerate(plan.jobs) if filter_matches(pattern, job.name)]
    if not found:
        raise RecipeError(
            f"no tensor of the output matches '{pattern}'",
            hint=_near(pattern, [job.name for job in plan.jobs]),
        )
    return found


def _near(pattern: str, names: Iterable[str]) -> str:
    """A hint: names, or parts of names, that look like the pattern; numbers of layers are not compared."""
    families = dict.fromkeys(_NUMBER.sub("*", name) for name in names)
    parts = dict.fromkeys(part for family in families for part in family.split(".") if part != "*")
    wanted = pattern.removeprefix("re:").removeprefix("glob:").strip("^$*")
    near = difflib.get_close_matches(_NUMBER.sub("*", wanted), families, _SUGGESTED, _LIKE)
    for number in _NUMBER.findall(wanted):
        near = [name.replace("*", number, 1) for name in near]
    for part in () if near else wanted.split("."):
        if part not in parts:
            near += difflib.get_close_matches(part, parts, _SUGGESTED)
    if near:
        return "did you mean " + " or ".join(f"'{name}'" for name in near) + "?"
    *some, last = [f"'{family}'" for family in list(families)[:_SUGGESTED]]
    return f"names are like {', '.join(some)} and {last}" if some else f"the only name is {last}"


class _Explained:
    """Makes explanations of tensors from the plan's decisions."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._labels = [checkpoint.label for checkpoint in plan.checkpoints]
        self._notes: dict[str, list[str]] = {}
        for note in plan.notes:
            # Those about a tensor begin with its name.
            name, colon, rest = note.partition(": ")
            if colon:
                self._notes.setdefault(name, []).append(rest)

    def tensor(self, index: int, found: Decisions) -> TensorExplanation:
        job, labels = self._plan.jobs[index], self._labels
        own: list[dict[str, Decision]] = [{} for _ in job.inputs]
        for name, decided in found.items():
            for model, decision in zip(own, decided, strict=True) if isinstance(decided, tuple) else ():
                model[name] = decision
        return TensorExplanation(
            name=job.name,
            t=self._plan.slots[index].t,
            method=job.method.name if job.method else None,
            why_copied=why_copied(self._plan, index),
            base=None if job.base is None else (labels[job.base.checkpoint], job.base.tensor),
            values={name: d for name, d in found.items() if isinstance(d, Decision)},
            models=tuple(
                ModelValues(labels[i.checkpoint], i.tensor, values)
                for i, values in zip(job.inputs, own, strict=True)
            ),
            notes=tuple(self._notes.get(job.name, ())),
        )


@dataclass(frozen=True, slots=True)
class Grid:
    """One parameter over the layers of a stack.

    Attributes:
        parameter: its name.
        model: whose it is; None if it is one for the whole tensor.
        stack: as in "model.layers.*".
        num_blocks: columns.
        rows: by leaf the value for each block; None where a block has no such tensor, or it is copied. Of
            experts the first one stands for all.
    """

    parameter: str
    model: str | None
    stack: str
    num_blocks: int
    rows: Mapping[str, tuple[Any, ...]]


def varying(plan: Plan) -> list[str]:
    """Names of the parameters that are not the same for all tensors of the layers."""
    seen: dict[str, set[Any]] = {}
    for job, slot in zip(plan.jobs, plan.slots, strict=True):
        if job.method is not None and slot.place.stack is not None:
            for name, value in job.values.items():
                seen.setdefault(name, set()).add(value)
    return [name for name, values in seen.items() if len(values) > 1]


def grids(explanation: Explanation, parameter: str) -> list[Grid]:
    """A parameter's values over the layers, stack by stack, and model by model where each has its own.

    Args:
        explanation: its tensors are drawn.
        parameter: its name.

    Raises:
        RecipeError: the method has no such parameter.
    """
    plan = explanation.plan
    known = {p.name: p for p in plan.method.parameters}
    if parameter not in known:
        listed = ", ".join(known)
        raise RecipeError(
            f"{plan.method.name} has no parameter '{parameter}'",
            hint=f"it has {listed}" if listed else "it has none at all",
        )
    found: dict[tuple[str, int, str | None], dict[str, dict[int, Any]]] = {}
    for group in explanation.groups if plan.method.parameters else ():
        for index in group.members if group.stack else ():
            job, block = plan.jobs[index], cast("int", plan.slots[index].place.block)
            if job.method is None:
                continue
            value = job.values[parameter]
            parts: Sequence[Any] = value if isinstance(value, tuple) else (value,)
            for place, part in enumerate(parts):
                label = None
                if isinstance(value, tuple):
                    label = plan.checkpoints[job.inputs[place].checkpoint].label
                rows = found.setdefault((group.stack, place, label), {})
                rows.setdefault(group.leaf, {}).setdefault(block, part)
    result: list[Grid] = []
    for (stack, _, label), rows in found.items():
        depth = 1 + max(max(cells) for cells in rows.values())
        cells = {leaf: tuple(row.get(block) for block in range(depth)) for leaf, row in rows.items()}
        result.append(Grid(parameter, label, stack, depth, cells))
    return result
