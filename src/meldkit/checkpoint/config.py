"""config.json: what in it decides how a model is merged must be of the right kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from meldkit.checkpoint.json_file import read_json, shown
from meldkit.errors import CheckpointError

#: How the names of models that have a head for the next token end.
_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_WORDS = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "a mapping"}
#: Models of several parts, such as LXMERT, may give a number for each.
_NUMBERS = (int, list, dict)
#: Settings that decide something, with their usual kind first. They may be missing or null.
_KINDS: Mapping[str, tuple[type, ...]] = {
    "architectures": (list,),
    "model_type": (str,),
    "num_hidden_layers": _NUMBERS,
    "n_layer": _NUMBERS,
    "num_layers": _NUMBERS,
    "layer_types": (list,),
    "vocab_size": _NUMBERS,
    "tie_word_embeddings": (bool,),
    "text_config": (dict,),
    "quantization_config": (dict,),
}


def read_config(path: Path) -> dict[str, Any]:
    """A model's config.json.

    Raises:
        CheckpointError: unreadable, not JSON, or of the wrong kind where something is decided by it.
    """
    config = read_json(path)
    _check(path, config)
    return config


def _check(path: Path, section: Mapping[str, Any], prefix: str = "") -> None:
    for key, kinds in _KINDS.items():
        value = section.get(key)
        # Not `isinstance`: true and false are whole numbers to Python.
        if value is not None and type(value) not in kinds:
            raise CheckpointError(
                f"{path}: {prefix}{key} is {shown(value)}; {_WORDS[kinds[0]]} is expected",
                hint="correct it, or download the file again",
            )
    text = section.get("text_config")
    if text is not None:
        _check(path, cast("dict[str, Any]", text), f"{prefix}text_config.")


def writes_texts(config: Mapping[str, Any]) -> bool | None:
    """Whether a model has a head for the next token, by the name of its architecture; None if it has none."""
    names: object = config.get("architectures")
    if not isinstance(names, list) or not names:
        return None
    return str(cast("list[object]", names)[0]).endswith(_WITH_HEAD)
