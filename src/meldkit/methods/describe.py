"""A method's declaration in words, for the command line and the documentation."""

from __future__ import annotations

import inspect
import math
from typing import Any

from meldkit.methods.base import Base, Method
from meldkit.methods.parameter import Parameter


def models_text(method: Method) -> str:
    """How many models it takes, such as "2 or more + base"."""
    low, high = method.num_models
    count = f"{low}" if low == high else f"{low} to {high}" if high else f"{low} or more"
    return f"{count} + base" if method.base is Base.DELTA else count


def default_text(p: Parameter) -> str:
    """A parameter's default, such as "0.5", "required" or "not used"."""
    if p.required:
        return "required"
    if p.default is None:
        return "not used"
    if isinstance(p.default, bool):
        return str(p.default).lower()
    return f"{p.default:g}" if isinstance(p.default, float) else str(p.default)


def values_text(p: Parameter) -> str:
    """Valid values as the beginning of a sentence, such as "0 to 1" or "One of l1, none"."""
    usual = f", usually {p.usual[0]:g} to {p.usual[1]:g}" if p.usual else ""
    return (f"One of {p.range_text}" if p.choices else p.range_text[:1].upper() + p.range_text[1:]) + usual


def start_text(p: Parameter) -> str:
    """The value to begin with and why, such as "0.5 (half way)"; empty where that is the default."""
    if p.start is None:
        return ""
    value = f"{p.start:g}" if isinstance(p.start, float) else str(p.start)
    return f"{value}{' / number of models' * p.shared} ({p.reason})"


def scope_text(p: Parameter) -> str:
    """Where in a recipe it may stand."""
    if p.of_recipe:
        return "the recipe's `compat: mergekit`"
    return "model, slice or recipe" if p.per_model else "slice or recipe"


def minimal_recipe(method: Method) -> str:
    """The shortest recipe that the method accepts."""
    low = method.num_models[0] - (method.base is Base.ENDPOINT)
    count = max(low, 1 if method.num_models[1] == 1 or method.base is Base.ENDPOINT else 2)
    per_model = [p for p in method.parameters if p.per_model and p.required]
    whole = [p for p in method.parameters if not p.per_model and p.required]
    lines = [f"merge_method: {method.name}"]
    if method.base.required:
        lines.append("base_model: org/base")
    lines.append("models:")
    for index in range(count):
        lines.append(f"  - model: org/model-{'abcd'[index]}")
        if per_model:
            lines.append("    parameters: {" + _starts(per_model, count) + "}")
    if whole:
        lines.append("parameters: {" + _starts(whole, count) + "}")
    lines.append("dtype: bfloat16")
    return "\n".join(lines) + "\n"


def _starts(parameters: list[Parameter], num_models: int) -> str:
    return ", ".join(f"{p.name}: {p.start_for(num_models)}" for p in parameters)


def data(method: Method) -> dict[str, Any]:
    """Everything a method declares about itself, as JSON has it; limits that there are not are null."""
    return {
        "name": method.name,
        "summary": method.summary,
        "documentation": inspect.getdoc(method.function) or "",
        "paper": method.paper,
        "speed_class": method.shape,
        "base_model": method.base.value,
        "num_models": list(method.num_models),
        "parameters": [
            {
                "name": p.name,
                "doc": p.doc,
                "kind": p.kind.__name__,
                "required": p.required,
                "default": None if p.required else p.default,
                "low": p.low if math.isfinite(p.low) else None,
                "high": p.high if math.isfinite(p.high) else None,
                "choices": list(p.choices),
                "per_model": p.per_model,
                "start": p.start,
                "reason": p.reason,
            }
            for p in method.parameters
        ],
        "minimal_recipe": minimal_recipe(method),
    }


def explain(method: Method) -> str:
    """Everything a method declares about itself, as plain text."""
    lines = [method.name, "", inspect.getdoc(method.function) or "", ""]
    lines.append(
        f"Models: {models_text(method)}.  base_model: {method.base.value}.  Speed class: {method.shape}."
    )
    if method.parameters:
        lines += ["", "Parameters:"]
    for p in method.parameters:
        lines.append(f"  {p.name}: {p.doc} {values_text(p)}; default {default_text(p)}; {scope_text(p)}.")
        if start_text(p):
            lines.append(f"    Begin with {start_text(p)}.")
    lines += ["", "A minimal recipe:", ""]
    lines += [f"    {line}" for line in minimal_recipe(method).splitlines()]
    return "\n".join(lines)
