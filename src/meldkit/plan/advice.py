"""What is unwise about parameters that are valid: found out from the numbers of all tensors together."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from meldkit.methods import Base, Method, Values
from meldkit.plan.model import TensorJob
from meldkit.plan.pieces import at
from meldkit.plan.slots import Slot
from meldkit.plan.values import where_of

#: Weights that are not normalized should sum to 1; customary roundings such as 0.33 are no mistake.
_TOLERANCE = 0.1
#: The task vectors of two models are often added whole. Factors of 0.3 to 0.5 were found best
#: (https://arxiv.org/abs/2212.04089); many times as much takes a model out of the range in which it works.
_MAX_SUM = 2.0
#: The name of this switch differs between methods.
_SWITCHES = ("normalize", "normalize_weights")
#: Tensors that a factor of 0 makes useless; on others it is a way to switch off an inserted layer.
_VITAL = ("embedding", "lm_head", "norm")


class _Remark(NamedTuple):
    """A sentence about a tensor's numbers.

    Attributes:
        rule: what it says, whatever the numbers are.
        parameter: what it is about, for the place in the recipe.
        model: whose parameter; None if it is not one model's.
        text: the sentence.
    """

    rule: str
    parameter: str
    model: int | None
    text: str


def lint_numbers(
    method: Method, slots: Sequence[Slot], drafts: Sequence[TensorJob], labels: Sequence[str]
) -> Iterator[str]:
    """Warnings about numbers that make a merge pointless, or larger than life.

    Args:
        method: declares the parameters.
        slots, drafts: the tensors, and the jobs made of them.
        labels: of the plan's checkpoints.
    """
    distinct: dict[object, tuple[Slot, TensorJob]] = {}
    for slot, draft in zip(slots, drafts, strict=True):
        if draft.method is not None:
            # Equal values are one object, in large models for very many tensors.
            inputs = tuple(i.checkpoint for i in draft.all_inputs)
            distinct.setdefault((id(draft.values), inputs, slot.place.role), (slot, draft))
    jobs = list(distinct.values())
    found: dict[str, list[str]] = {}
    for slot, draft in jobs:
        names = [labels[i.checkpoint] for i in draft.inputs]
        base = "" if draft.base is None else labels[draft.base.checkpoint]
        for remark in _remarks(method, draft.values, names, base):
            text = at(where_of(remark.parameter, slot, remark.model)) + remark.text
            found.setdefault(remark.rule, []).append(text)
    # What holds for some tensors only, such as those where a gradient begins, may well be meant.
    yield from (texts[0] for texts in found.values() if len(texts) == len(jobs))
    yield from _unusual(method, jobs)
    yield from _zeros(jobs)


def _remarks(method: Method, values: Values, names: Sequence[str], base: str) -> Iterator[_Remark]:
    """Of one tensor's parameters."""
    yield from _of_sparsity(method, values, names)
    t = values.get("t")
    if method.base in (Base.ENDPOINT, Base.DELTA) and (t == 0 or (t == 1 and not base)):
        name = (base or names[0]) if t == 0 else names[-1]
        yield _Remark(f"t {t}", "t", None, f"t is {t:g} for every tensor, so the output is '{name}' as it is")
    if base and values.get("lambda") == 0:
        yield _Remark("lambda", "lambda", None, f"lambda is 0, so the output is '{base}' as it is")
    weight = _numbers(values, "weight")
    switch = next((name for name in _SWITCHES if name in values), "")
    if base and weight and not any(weight):
        yield _Remark("no weight", "weight", None, f"every weight is 0, so the output is '{base}' as it is")
    elif switch and values[switch]:
        off = abs(math.fsum(weight) - 1) > _TOLERANCE
        if weight and min(weight) < 0 and (base or off):
            yield _Remark(
                "negative",
                "weight",
                None,
                f"the negative weight {min(weight):g} is divided by the sum of weights, which may turn its "
                f"sign; write '{switch}: false' to subtract a model",
            )
    elif base:
        factor = values.get("lambda")
        added = math.fsum(w for w in weight if w > 0) * (factor if isinstance(factor, float) else 0)
        if added > _MAX_SUM:
            times = " times lambda" if factor != 1 else ""
            yield _Remark(
                "much",
                "weight",
                None,
                f"the weights{times} sum to {added:g}, and models rarely stand task vectors of more than "
                f"{_MAX_SUM:g} in sum; take smaller weights" + f", or '{switch}: true'" * bool(switch),
            )
    elif switch and abs(math.fsum(weight) - 1) > _TOLERANCE:
        total = math.fsum(weight)
        yield _Remark(
            "sum",
            "weight",
            None,
            f"the weights sum to {total:g} and are not normalized, so the output is {total:g} times a mean; "
            f"write '{switch}: true', or weights that sum to 1",
        )


def _of_sparsity(method: Method, values: Values, names: Sequence[str]) -> Iterator[_Remark]:
    density = _numbers(values, "density")
    gamma = _numbers(values, "gamma")
    for model, (name, kept) in enumerate(zip(names, density, strict=False)):
        if kept == 0:
            text = f"density 0 keeps nothing of '{name}', which then has no effect; leave the model out"
            yield _Remark(f"density {model}", "density", model, text)
    for model, (name, kept, dropped) in enumerate(zip(names, density, gamma, strict=False)):
        if kept < 1 < kept + dropped - 1e-9:
            yield _Remark(
                f"gamma {model}",
                "gamma",
                model,
                f"gamma {dropped:g} and density {kept:g} of '{name}' sum to more than 1, so only the largest "
                f"{1 - kept:g} are dropped; take smaller ones",
            )
    if density and min(density) >= 1 and (method.random or gamma):
        text = f"density is 1 for every model, so {method.name} drops nothing; give a density below 1"
        yield _Remark("density", "density", None, text)


def _numbers(values: Values, name: str) -> tuple[float, ...]:
    """A parameter's numbers, one for each model; empty if it has none."""
    found = values.get(name)
    return tuple(v for v in found if isinstance(v, float)) if isinstance(found, tuple) else ()


def _unusual(method: Method, jobs: Collection[tuple[Slot, TensorJob]]) -> Iterator[str]:
    """Values that no tensor should have."""
    for p in method.parameters:
        if p.usual is None:
            continue
        low, high = p.usual
        for slot, draft in jobs:
            value = draft.values[p.name]
            if isinstance(value, float) and not low <= value <= high:
                yield (
                    f"{at(where_of(p.name, slot))}{p.name} is {value:g} for tensor '{slot.name}', but "
                    f"{method.name} is meant for {low:g} to {high:g}"
                )
                break


def _zeros(jobs: Collection[tuple[Slot, TensorJob]]) -> Iterator[str]:
    for slot, draft in jobs:
        if slot.place.role in _VITAL and 0 in _numbers(draft.values, "scale"):
            yield (
                f"{at(where_of('scale', slot, 0))}scale 0 makes '{slot.name}' all zeros; "
                "give it a filter such as o_proj"
            )
            return
