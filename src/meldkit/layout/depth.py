"""What config.json says about depth, after layers were cut or stacked."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

from meldkit.errors import MismatchError
from meldkit.layout.infer import DEPTH_KEYS

#: For one layer of the new model: the configuration of the model it came from, and its number there.
Origin = tuple[Mapping[str, Any], int]


def with_depth(config: Mapping[str, Any], depth: int, origins: Sequence[Origin]) -> dict[str, Any]:
    """A copy of the configuration for a model made of other layers.

    Every depth key that says `depth` becomes the new number of layers. Every list of that length beside
    one (`layer_types`, `no_rope_layers`, …) has an entry per layer: each new layer brings its own. A model
    whose configuration does not have the list is taken to be built like this one.

    Args:
        config: the configuration of a model of `depth` layers.
        depth: its number of layers.
        origins: the layers of the new model, in order.

    Raises:
        MismatchError: no entry can be found for one of the layers.
    """
    result = copy.deepcopy(dict(config))
    _rewrite(result, depth, origins)
    return result


def _rewrite(section: dict[str, Any], depth: int, origins: Sequence[Origin]) -> None:
    depth_keys = [key for key in DEPTH_KEYS if type(section.get(key)) is int and section[key] == depth]
    for key, value in section.items():
        if key in depth_keys:
            section[key] = len(origins)
        elif isinstance(value, list):
            entries = cast("list[Any]", value)
            if depth_keys and _per_layer(key, entries, depth):
                section[key] = [_entry(key, entries, config, layer) for config, layer in origins]
        elif isinstance(value, dict):
            inner = [(_section(config, key), layer) for config, layer in origins]
            _rewrite(cast("dict[str, Any]", value), depth, inner)


def _per_layer(key: str, value: list[Any], depth: int) -> bool:
    """Whether it has an entry per layer; lists of classes and of tokens may be as long by chance."""
    return len(value) == depth and key != "architectures" and not key.endswith(("token_id", "token_ids"))


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = config.get(key)
    return cast("Mapping[str, Any]", section) if isinstance(section, Mapping) else {}


def _entry(key: str, ours: list[Any], config: Mapping[str, Any], layer: int) -> Any:
    entries = config.get(key)
    entries = cast("list[Any]", entries) if isinstance(entries, list) else ours
    if layer >= len(entries):
        raise MismatchError(
            f"'{key}' of config.json has {len(entries)} entries, none for layer {layer}",
            hint="the models' configurations describe their layers differently; correct one of them",
        )
    return entries[layer]
