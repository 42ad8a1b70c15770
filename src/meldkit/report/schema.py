"""The JSON Schema of recipes, for editors: what `recipe.schema` reads and what the methods declare.

The structure comes from the classes that read recipes, the forms of values from `recipe.forms`, and the
parameters with their meaning, range and default from the methods' declarations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import meldkit.recipe
from meldkit.methods import METHODS, Method, Parameter
from meldkit.methods.describe import default_text, values_text
from meldkit.recipe import ADAPTER_METHODS
from meldkit.recipe.forms import FORMS, MARK, NUMBER, JsonSchema, deprecated, ref, values
from meldkit.recipe.schema import MergeConfiguration
from meldkit.vocab import AUTO, PRESETS

#: The schema of the methods that come with meldkit, made by scripts/make_docs.py; completion reads it too.
STORED = Path(meldkit.recipe.__file__).with_name("recipe.schema.json")

_TITLE = "meldkit recipe"
_WIDTH = 110

#: Where mergekit never looks; accepted among parameters because they are often written there.
_NOT_PARAMETERS = ("dtype", "out_dtype")
#: Of recipes whose models are adapters.
_OF_ADAPTERS = ("rank",)


def recipe_schema(methods: Iterable[Method] | None = None) -> JsonSchema:
    """The JSON Schema (draft 2020-12) of a recipe, one document of a file.

    Args:
        methods: those that `merge_method` may name; None for all that are known.
    """
    known = list(METHODS.values()) if methods is None else list(methods)
    plain = MergeConfiguration.model_json_schema()
    definitions = {**FORMS, "chat-template": _chat_template(), **plain.pop("$defs")}
    definitions["unused-parameter"] = deprecated({}, "No effect: the recipe's merge_method does not use it.")
    for kind in {_kind(p): p for m in known for p in m.parameters if not p.of_recipe}.values():
        definitions |= values(_kind(kind), _scalar(kind), *_points(kind))
    branches: list[JsonSchema] = []
    for method in known:
        definitions |= _definitions(method)
        branches.append(_branch(method))
    names = [p.name for m in known for p in m.parameters if not p.of_recipe]
    names = list(dict.fromkeys([*names, *MergeConfiguration.unused, *_NOT_PARAMETERS, *_OF_ADAPTERS]))
    # Editors propose the parameters of the method, which have descriptions, and not all names.
    definitions["parameter-name"] = {"enum": names, "doNotSuggest": True}
    schema: JsonSchema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **plain,
        "title": _TITLE,
        "description": "A recipe: which models are merged, and how.",
        "allOf": branches,
        "$defs": definitions,
    }
    schema["properties"]["merge_method"] |= {
        "enum": [*(m.name for m in known), *ADAPTER_METHODS],
        "enumDescriptions": [*(m.summary for m in known), *ADAPTER_METHODS.values()],
    }
    return cast(JsonSchema, _refined(schema))


def to_text(schema: JsonSchema) -> str:
    """The schema as a file has it: what is short stands on one line."""
    return _lines(schema, 0) + "\n"


def _lines(part: Any, indent: int) -> str:
    line = json.dumps(part, ensure_ascii=False)
    if indent + len(line) <= _WIDTH or not isinstance(part, dict | list) or not part:
        return line
    margin = " " * (indent + 2)
    if isinstance(part, dict):
        entries = [
            f"{json.dumps(key)}: {_lines(value, indent + 2)}"
            for key, value in cast("dict[str, Any]", part).items()
        ]
    else:
        entries = [_lines(item, indent + 2) for item in cast("list[Any]", part)]
    body = ",\n".join(margin + entry for entry in entries)
    first, last = "{}" if isinstance(part, dict) else "[]"
    return f"{first}\n{body}\n{' ' * indent}{last}"


def _chat_template() -> JsonSchema:
    names = [AUTO, *PRESETS]
    text = {"type": "string", "pattern": rf"\{{|^\s*({'|'.join(names)})\s*$"}
    return {"anyOf": [{"enum": [*names, None]}, text]}


def _kind(p: Parameter) -> str:
    """The definition of a parameter's values: parameters with the same valid values share one."""
    if p.kind is bool:
        return "flag"
    if p.choices:
        return "one-of-" + "-".join(p.choices)
    if p.kind is str:
        return "word"
    low, high = ("any" if math.isinf(end) else f"{end:g}" for end in (p.low, p.high))
    return "number" if low == high == "any" else f"number-{low}-{high}"


def _scalar(p: Parameter) -> JsonSchema:
    if p.kind is bool:
        # mergekit's recipes have 0 and 1 too.
        return {"type": ["boolean", "integer"], "minimum": 0, "maximum": 1}
    if p.choices:
        return {"enum": [*p.choices, *p.aliases]}
    if p.kind is str:
        return {"type": "string"}
    schema: JsonSchema = {"type": ["number", "string"], "pattern": NUMBER}
    if not math.isinf(p.low):
        schema["minimum"] = p.low
    if not math.isinf(p.high):
        schema["maximum"] = p.high
    return schema


def _points(p: Parameter) -> list[JsonSchema]:
    """Gradients where they are not lists of scalars: true and false beside numbers are 1 and 0."""
    scalar = _scalar(p)
    if scalar.get("type") != ["number", "string"]:
        return []
    points = {**scalar, "type": ["number", "string", "boolean"]}
    return [{"items": points, "contains": {"type": ["number", "string"]}}]


def _parameter(p: Parameter) -> JsonSchema:
    schema = {**ref(_kind(p)), "description": f"{p.doc} {values_text(p)}; default {default_text(p)}."}
    if not p.required and p.default is not None:
        schema["default"] = p.default
    return schema


def _definitions(method: Method) -> dict[str, JsonSchema]:
    """The parameters of a method for all models, those under a model, and the places where both stand."""
    own = [p for p in method.parameters if not p.of_recipe]
    misplaced = {
        p.name: deprecated(
            {},
            f"No effect under a model: {p.name} is one value for the whole tensor; write it "
            "under the recipe's or the slice's 'parameters:'.",
        )
        for p in own
        if not p.per_model
    }
    shared = {p.name: _parameter(p) for p in own}
    of_model = {p.name: _parameter(p) for p in own if p.per_model} | misplaced
    unused = ref("unused-parameter")
    name = method.name
    under_model = {"properties": {"parameters": ref(f"{name}-of-model")}}
    under_slice = {
        "properties": {"parameters": ref(name), "sources": {"items": under_model}},
    }
    return {
        name: {"properties": shared, "additionalProperties": unused},
        f"{name}-of-model": {"properties": of_model, "additionalProperties": unused},
        f"{name}-layers": {
            "properties": {
                "parameters": ref(name),
                "models": {"items": under_model},
                "slices": {"items": under_slice},
            }
        },
    }


def _branch(method: Method) -> JsonSchema:
    """What holds in a recipe with this method."""
    layers = ref(f"{method.name}-layers")
    then: JsonSchema = {**layers, "properties": {"modules": {"additionalProperties": layers}}}
    if method.base.required:
        # Slices may have bases of their own.
        then["if"] = {"required": ["models"], "properties": {"models": {"type": "array"}}}
        then["then"] = {
            "required": ["base_model"],
            "properties": {"base_model": {"type": ["string", "object"]}},
        }
    return {
        "if": {"required": ["merge_method"], "properties": {"merge_method": {"const": method.name}}},
        "then": then,
    }


def _refined(part: Any) -> Any:
    """Without pydantic's titles and nulls for absent values, and with a reference where a form is marked."""
    if isinstance(part, list):
        return [_refined(item) for item in cast("list[Any]", part)]
    if not isinstance(part, dict):
        return part
    given = cast("dict[str, Any]", part)
    form = given.get(MARK)
    if isinstance(form, str):
        said = {k: given[k] for k in ("description", "enum", "enumDescriptions") if k in given}
        return {**ref(form), **said}
    result: dict[str, Any] = {}
    for key, value in given.items():
        if (key == "default" and value is None) or (key == "title" and value != _TITLE):
            continue
        result[key] = _refined(value)
    return result
