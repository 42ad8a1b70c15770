"""Where the weights are in what a training program saved: a mapping from names to tensors, or inside one.

{name: tensor}
{"state_dict": {name: tensor}, "optimizer": …, "epoch": …}
{"generator": {name: tensor}, "discriminator": {name: tensor}}      names are "generator.…" and so on
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from meldkit.checkpoint.json_file import shown

#: Keys under which training programs keep the weights, the most telling one first.
_WEIGHTS = ("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "weights")
#: Keys of what is full of tensors but no weights.
_TRAINING = re.compile(
    r"(?:optimi[sz]er|optim|opt|lr_scheduler|scheduler|ema|(?:grad_?)?scaler|amp|native_amp|rng|random|losse?|"
    r"callback|loop)s?(?![a-z])",
    re.IGNORECASE,
)
#: Averages of weights over the training, which merged weights do not have.
_AVERAGE = re.compile(r"(?:^|_)ema(?![a-z])", re.IGNORECASE)
#: What data parallel training and compilation put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
_MAX_DEPTH = 8
#: Mappings may stand in several places, so that a small file can describe endless names.
_MAX_ENTRIES = 10_000_000

Key = str | int


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the weights are.

    Attributes:
        path: the keys that lead to the mapping that holds them.
        keys: for each name of a tensor, the keys that lead to it from there.
        wrapper: what stands before every name there, and was taken away.
    """

    path: tuple[Key, ...]
    keys: Mapping[str, tuple[Key, ...]]
    wrapper: str = ""

    def of(self, content: Any) -> dict[str, Any]:
        """The tensors by name, from the content that was searched or from a copy of it."""
        return {name: at(content, (*self.path, *keys)) for name, keys in self.keys.items()}


def at(content: Any, keys: tuple[Key, ...]) -> Any:
    """What stands under a key of a mapping under a key of …"""
    for key in keys:
        content = content[key]
    return content


def is_training_state(key: object) -> bool:
    """Whether what stands under this key is about training, such as an optimizer's state."""
    return isinstance(key, str) and _TRAINING.match(key) is not None


def is_average(key: object) -> bool:
    """Whether it is a key of weights averaged over the training: `model_ema`, `params_ema`."""
    return isinstance(key, str) and _AVERAGE.search(key) is not None


def find_weights(content: object, tensor: type) -> Weights:
    """Look for the weights among what was saved.

    They are the mapping of names to tensors itself, or one that stands under a usual key such as "state_dict"
    or "model", or under the only key that has tensors; several such mappings are taken together.

    Args:
        content: whatever was saved.
        tensor: type of the tensors in it.

    Raises:
        ValueError: there are none, or their names are not clear; the text says what is wrong.
    """
    path = _path(content, tensor)
    if path is None:
        raise ValueError("holds no weights: a mapping of names to tensors was looked for")
    keys: dict[str, tuple[Key, ...]] = {}
    for found in _tensors(at(content, path), tensor):
        name = ".".join(map(str, found))
        if name in keys:
            raise ValueError(f"has two tensors named {shown(name)}")
        keys[name] = found
    wrapper = ""
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in keys):
            keys = {name.removeprefix(prefix): found for name, found in keys.items()}
            wrapper += prefix
    return Weights(path, keys, wrapper)


def _path(content: object, tensor: type) -> tuple[Key, ...] | None:
    path: tuple[Key, ...] = ()
    while isinstance(content, Mapping) and len(path) < _MAX_DEPTH:
        entries = cast("Mapping[object, object]", content)
        holding = [
            key
            for key, value in entries.items()
            if isinstance(key, Key) and not is_training_state(key) and _has_tensors(value, tensor)
        ]
        chosen = next((key for key in _WEIGHTS if key in holding), None)
        if chosen is None:
            direct = any(isinstance(k, Key) and isinstance(v, tensor) for k, v in entries.items())
            if direct or len(holding) != 1 or not isinstance(holding[0], str):
                return path if direct or holding else None
            chosen = holding[0]
        path, content = (*path, chosen), entries[chosen]
    return None


def _has_tensors(content: object, tensor: type) -> bool:
    """Whether it is a mapping that holds tensors, directly or in mappings inside."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if not isinstance(item, Mapping) or id(cast("object", item)) in seen:
            continue
        seen.add(id(cast("object", item)))
        for key, value in cast("Mapping[object, object]", item).items():
            if isinstance(value, tensor) and isinstance(key, Key):
                return True
            if not is_training_state(key):
                waiting.append(value)
    return False


def _tensors(content: Mapping[object, object], tensor: type) -> Iterator[tuple[Key, ...]]:
    """The keys that lead to each tensor, in order."""
    waiting: list[tuple[tuple[Key, ...], Iterator[tuple[object, object]]]] = [((), iter(content.items()))]
    visited = 0
    while waiting:
        path, entries = waiting[-1]
        entry = next(entries, None)
        if entry is None:
            waiting.pop()
            continue
        key, value = entry
        visited += 1
        if visited > _MAX_ENTRIES:
            raise ValueError("holds more entries than can be read")
        if not isinstance(key, Key):
            continue
        if isinstance(value, tensor):
            yield (*path, key)
        elif isinstance(value, Mapping) and not is_training_state(key):
            if len(path) == _MAX_DEPTH:
                raise ValueError("holds mappings nested too deeply")
            inner = cast("Mapping[object, object]", value)
            waiting.append(((*path, key), iter(inner.items())))
