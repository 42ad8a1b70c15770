"""Reading one field of a recipe: raw data and the name of its key in, canonical value out, or a Problem that
says what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from meldkit.errors import did_you_mean
from meldkit.recipe.dtypes import parse_dtype
from meldkit.recipe.model import ModelToken
from meldkit.recipe.problem import Problem, check_keys, kind_of, within
from meldkit.recipe.refs import ModelRef
from meldkit.recipe.values import Value, parse_value, to_plain

COMPAT = ("mergekit",)
"""What `compat:` may ask for."""


def read_text(raw: object, name: str) -> str:
    """Text that is not blank."""
    if not isinstance(raw, str):
        hint = "put it in quotes" if isinstance(raw, bool | int | float) else ""
        raise Problem(f"'{name}' must be text, got {kind_of(raw)}", hint=hint)
    if not raw.strip():
        raise Problem(f"'{name}' is empty")
    return raw


def read_dtype(raw: object, name: str) -> str | None:
    """The name of a tensor type; None for null and "auto"."""
    del name
    return parse_dtype(raw)


def read_compat(raw: object, name: str) -> str:
    """The name of another program whose numerics are wanted."""
    text = read_text(raw, name)
    if text not in COMPAT:
        raise Problem(f"'{name}' cannot be '{text}'", hint=did_you_mean(text, COMPAT))
    return text


def read_flag(raw: object, name: str) -> bool:
    """true or false."""
    if not isinstance(raw, bool):
        raise Problem(f"'{name}' must be true or false, got {kind_of(raw)}")
    return raw


def read_multiple(raw: object, name: str) -> int:
    """A whole number, at least 1."""
    number = _whole(raw)
    if number is None or number < 1:
        raise Problem(f"'{name}' must be a whole number, 1 or more, got {kind_of(raw)}")
    return number


def read_list(raw: object, name: str) -> object:
    """A list with at least one entry; the entries are read by others."""
    if raw is None:
        return None
    if not isinstance(raw, list | tuple):
        hint = "begin each entry with '- '"
        raise Problem(f"'{name}' must be a list, got {kind_of(raw)}", hint=hint)
    if not raw:
        raise Problem(f"'{name}' is an empty list")
    return cast("list[object] | tuple[object, ...]", raw)


def read_mapping(raw: object, name: str) -> object:
    """A mapping whose keys are text; the values are read by others."""
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise Problem(f"'{name}' must be a mapping (keys and values), got {kind_of(raw)}")
    for key in cast("Mapping[object, object]", raw):
        if not isinstance(key, str):
            raise Problem(f"key {key!r} of '{name}' is not text", hint="put it in quotes")
    return cast("Mapping[str, object]", raw)


def read_later(raw: object, name: str) -> object:
    """Anything, which is read by others."""
    del name
    return raw


def read_modules(raw: object, name: str) -> object:
    """A mapping with at least one entry; the values are read by others."""
    if raw == {}:
        raise Problem(f"'{name}' is empty")
    return read_mapping(raw, name)


def read_model(raw: object, name: str) -> ModelRef:
    """A model, as text or in the mapping form."""
    del name
    return ModelRef.from_value(raw)


def read_parameters(raw: object, name: str) -> dict[str, Value]:
    """Parameters by name; nothing at all is no parameters."""
    data = cast("Mapping[str, object] | None", read_mapping(raw, name))
    parameters: dict[str, Value] = {}
    for key, value in (data or {}).items():
        with within(key, subject=f"parameter '{key}'"):
            parameters[key] = parse_value(value)
    return parameters


def write_parameters(parameters: Mapping[str, Value]) -> dict[str, object]:
    """The inverse of read_parameters."""
    return {key: to_plain(value) for key, value in parameters.items()}


def read_layer_range(raw: object, name: str) -> tuple[int, int]:
    """A half-open range of layers, [first, one past the last]."""
    ends = [_whole(end) for end in cast("list[object]", raw)] if isinstance(raw, list | tuple) else []
    hint = "write [first, end], where 'end' is one past the last layer: [0, 8] is layers 0 to 7"
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        got = f"{list(cast('list[object]', raw))}" if isinstance(raw, list | tuple) else kind_of(raw)
        raise Problem(f"'{name}' must be two whole numbers, got {got}", hint=hint)
    first, end = ends[0], ends[1]
    if not 0 <= first <= end:
        raise Problem(f"'{name}' [{first}, {end}] is not a range of layers", hint=hint)
    return first, end


def read_tokenizer_source(raw: object, name: str) -> ModelRef | Literal["union", "base"]:
    """Whose vocabulary; `model:` before a path keeps a folder called "union" apart from the keyword."""
    del name
    if raw == "union" or raw == "base":
        return "union" if raw == "union" else "base"
    if isinstance(raw, str) and raw.startswith("model:"):
        return ModelRef.parse(raw.removeprefix("model:"))
    return ModelRef.from_value(raw)


_KINDS = ("model_token", "zero")


def read_token_source(raw: object, name: str) -> ModelRef | ModelToken | Literal["zero"]:
    """Where the embedding of one token comes from."""
    del name
    if isinstance(raw, ModelToken):
        return raw
    if not _has_kind(raw):
        return ModelRef.from_value(raw)
    data = cast("Mapping[object, object]", raw)
    kind = data["kind"]
    if kind == "zero":
        check_keys(data, "a zero embedding", ("kind",))
        return "zero"
    if kind != "model_token":
        near = did_you_mean(kind, _KINDS) if isinstance(kind, str) else "known: " + ", ".join(_KINDS)
        raise Problem(f"'kind' cannot be {kind_of(kind)}", hint=near, path=("kind",))
    data = check_keys(data, "a model's token", ("kind", "model", "token", "token_id"), ("model",))
    with within("model"):
        model = ModelRef.from_value(data["model"])
    token, token_id = data.get("token"), data.get("token_id")
    if (token is None) == (token_id is None):
        raise Problem("a model's token is given by exactly one of 'token' and 'token_id'")
    if token is not None:
        if not isinstance(token, str):
            problem = f"'token' must be text, got {kind_of(token)}"
            raise Problem(problem, hint="put it in quotes", path=("token",))
        return ModelToken(model, token=token)
    number = _whole(token_id)
    if number is None or number < 0:
        raise Problem(
            f"'token_id' must be a whole number, 0 or more, got {kind_of(token_id)}", path=("token_id",)
        )
    return ModelToken(model, token_id=number)


def _has_kind(raw: object) -> bool:
    return isinstance(raw, Mapping) and "kind" in raw


def _whole(raw: object) -> int | None:
    """A whole number, also as text or with a zero fraction, as mergekit takes it; None for anything else."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, str) and raw.isascii() and raw.isdecimal() and len(raw) < 10:
        return int(raw)
    if isinstance(raw, float):
        return int(raw) if raw.is_integer() else None
    return raw if isinstance(raw, int) else None
