"""What config.json says about depth, after layers were cut or stacked."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

from meldkit.layout.infer import DEPTH_KEYS

#: For one layer of the new model: the configuration of the model it came from, and its number there.
Origin = tuple[Mapping[str, Any], int]


def with_depth(config: Mapping[str, Any], depth: int, origins: Sequence[Origin]) -> dict[str, Any]:
    """A copy of the configuration for a model made of other layers.

    Every depth key that says `depth` becomes the new number of layers. Every list of that length beside
    one (`layer_types`, `no_rope_layers`, …) has an entry per layer: each new layer brings its own.

    Args:
        config: the configuration of a model of `depth` layers.
        depth: its number of layers.
        origins: the layers of the new model, in order.
    """
    result = copy.deepcopy(dict(config))
    _rewrite(result, depth, origins)
    return result


def _rewrite(section: dict[str, Any], depth: int, origins: Sequence[Origin]) -> None:
    per_layer = any(section.get(key) == depth for key in DEPTH_KEYS)
    for key, value in section.items():
        if key in DEPTH_KEYS and value == depth:
            section[key] = len(origins)
        elif isinstance(value, list) and per_layer and len(cast("list[Any]", value)) == depth:
            own = [origin.get(key, value) for origin, _ in origins]
            section[key] = [entries[layer] for entries, (_, layer) in zip(own, origins, strict=True)]
        elif isinstance(value, dict):
            _rewrite(cast("dict[str, Any]", value), depth, [(o.get(key, {}), layer) for o, layer in origins])
