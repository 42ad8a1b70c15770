"""What may stand in a recipe, as JSON Schema: the forms of values that are read by functions of their own.

Each form is a definition that others refer to by its name. Forms say everything about a value that JSON
Schema can say; tests/test_schema.py compares them with the functions that read the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from meldkit.recipe.dtypes import DTYPES, SPELLINGS

JsonSchema: TypeAlias = dict[str, Any]

#: Marks, in the schemas that pydantic makes, where a form of this module stands.
MARK = "x-form"

#: As text, a number that YAML 1.1 does not take for one, such as 1e-5.
NUMBER = r"^\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*$"
_TEXT: JsonSchema = {"type": "string", "pattern": r"\S"}
_REVISION = r"[^@+]*[^@+\s][^@+]*"
_PART = rf"{_REVISION}(@{_REVISION})?"
_LOCATION = r"[^@]*[^@\s][^@]*(@[^@]*[^@\s][^@]*)?"
#: A recipe in place of a model.
_RECIPE: JsonSchema = {"allOf": [{"type": "object", "required": ["merge_method"]}, {"$ref": "#"}]}
_WHOLE: JsonSchema = {"type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]{1,9}$"}


def ref(name: str) -> JsonSchema:
    """A reference to a definition."""
    return {"$ref": "#/$defs/" + name}


def mapping(
    properties: JsonSchema, required: Sequence[str] = (), *, description: str = "", nullable: bool = False
) -> JsonSchema:
    """A mapping with exactly these keys."""
    schema: JsonSchema = {"type": ["object", "null"] if nullable else "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    if description:
        schema["description"] = description
    return {**schema, "additionalProperties": False}


def deprecated(schema: JsonSchema, reason: str) -> JsonSchema:
    """The schema of what is accepted though it does nothing; editors warn of it and do not propose it."""
    return {**schema, "deprecated": True, "description": reason, "deprecationMessage": reason}


def one_of(**kinds: str) -> list[Any]:
    """Alternatives for `oneOf`: exactly one of the keys has a value of its kind."""
    return [{"required": [key], "properties": {key: {"type": kind}}} for key, kind in kinds.items()]


def values(name: str, scalar: JsonSchema, *lists: JsonSchema) -> dict[str, JsonSchema]:
    """The forms of a parameter's value: itself, a gradient, and values with filters.

    Args:
        name: of the definition.
        scalar: the value itself.
        lists: the points of a gradient, as `items` of an array and what else is said of it, one alternative
            each; scalars if none are given.
    """
    filtered = name + "-filtered"
    gradients = [
        {"type": "array", **points, "minItems": 1, "description": "A gradient over the layers."}
        for points in lists or ({"items": scalar},)
    ]
    entries = {"type": "array", "items": ref(filtered), "minItems": 1}
    return {
        name: {"anyOf": [scalar, *gradients, ref(filtered), entries]},
        filtered: mapping(
            {
                "filter": {
                    "type": ["string", "null"],
                    "description": "Text in the tensor's name, `re:` and a regular expression, or `glob:` "
                    "and a pattern; `*` or none is every tensor. The first entry that matches counts.",
                },
                "value": ref(name),
            },
            ["value"],
            description="A value for the tensors whose names match the filter.",
        ),
    }


def _any_case(word: str) -> str:
    return "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in word)


FORMS: dict[str, JsonSchema] = {
    "text": _TEXT,
    "dtype": {
        "anyOf": [
            {"enum": [*DTYPES, None]},
            {
                "type": "string",
                "pattern": rf"^\s*(torch\.)?({'|'.join(map(_any_case, [*SPELLINGS, 'auto']))})\s*$",
            },
        ]
    },
    "whole": _WHOLE,
    "layer-range": {"type": "array", "items": ref("whole"), "minItems": 2, "maxItems": 2},
    "location": {
        "anyOf": [
            {"type": "string", "pattern": f"^{_LOCATION}$"},
            mapping(
                {
                    "path": {**_TEXT, "description": "A folder, a file or a hub id."},
                    "revision": {
                        "anyOf": [_TEXT, {"type": "null"}],
                        "description": "Branch, tag or commit on the hub.",
                    },
                },
                ["path"],
            ),
        ]
    },
    "model": {"anyOf": [ref("stored-model"), _RECIPE]},
    "stored-model": {
        "anyOf": [
            {"type": "string", "pattern": rf"^{_PART}(\+{_PART})*$"},
            mapping(
                {
                    "model": {"anyOf": [ref("location"), _RECIPE]},
                    "lora": {
                        "anyOf": [
                            ref("location"),
                            {"type": "array", "items": ref("location")},
                            {"type": "null"},
                        ],
                        "description": "LoRA adapters over the model.",
                    },
                    "override_architecture": {
                        "anyOf": [_TEXT, {"type": "null"}],
                        "description": "The architecture to believe instead of config.json's.",
                    },
                },
                ["model"],
                description="A model whose path has a + or @ in it, or whose architecture has another name.",
            ),
        ]
    },
    "tokenizer-source": {
        "anyOf": [
            {"enum": ["union", "base"]},
            {"allOf": [ref("stored-model"), {"not": {"type": "string", "pattern": r"^model:\s*$"}}]},
        ]
    },
    "token-source": {
        "anyOf": [
            ref("stored-model"),
            mapping({"kind": {"const": "zero"}}, ["kind"], description="A row of zeros."),
            {
                **mapping(
                    {
                        "kind": {"const": "model_token"},
                        "model": ref("model"),
                        "token": {"type": ["string", "null"]},
                        "token_id": {"anyOf": [ref("whole"), {"type": "null"}]},
                    },
                    ["kind", "model"],
                    description="The row of a token of a model.",
                ),
                "oneOf": [
                    {"required": ["token"], "properties": {"token": {"type": "string"}}},
                    {"required": ["token_id"], "properties": {"token_id": ref("whole")}},
                ],
            },
        ]
    },
    **values(
        "value",
        {"type": ["number", "boolean", "string"]},
        {"items": {"type": ["number", "boolean", "string"], "pattern": NUMBER}},
        {"items": {"type": "string", "not": {"pattern": NUMBER}}},
    ),
}
