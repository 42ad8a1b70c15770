"""What config.json says about depth, after layers were cut or stacked."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from meldkit.errors import MismatchError
from meldkit.layout.infer import Stack
from meldkit.layout.quirks import (
    DEPTH_KEYS,
    ENCODER_LISTS,
    LIST_KEYS,
    OTHER_LISTS,
    SPELLINGS,
)
from meldkit.layout.spellings import Period, Spelling
from meldkit.layout.words import NOT_TEXT, words

#: Words of keys and sections that do not say which part of a model they describe.
_NEUTRAL = words(
    "config model thinker text num n hidden layer layers depth block blocks self attends per "
    "types type hybrid override pattern"
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a layer of a new model comes from: a model's configuration, its depth, and the layer's number."""

    config: Mapping[str, Any]
    depth: int
    layer: int


def with_depth(
    config: Mapping[str, Any], stack: Stack, origins: Sequence[Origin], *, text: bool = True
) -> dict[str, Any]:
    """A copy of the configuration for a model made of other layers.

    The sections that describe the stack are those whose depth is its number of blocks, and that do not
    speak of another part of the model. There the depth becomes the new number of layers, and whatever says
    layer by layer what a layer is (`layer_types`, `first_k_dense_replace`, …) is written for the new
    layers, each of which brings its own entry. A model whose configuration does not have the setting is
    taken to be built like this one.

    Args:
        config: the configuration of the model that has the stack.
        stack: the layers that are replaced.
        origins: the layers of the new model, in order.
        text: the stack is the one that `layer_range` means.

    Raises:
        MismatchError: no entry can be found for one of the layers, or no setting gives these layers theirs.
    """
    result = copy.deepcopy(dict(config))
    depth = stack.num_blocks
    sections = _sections(result, stack, text=text)
    for path, keys in sections:
        section = _section(result, path)
        own = [Origin(_section(o.config, path), o.depth, o.layer) for o in origins]
        settings = _settings(section, depth, own, encoder="decoder" not in words(stack.prefix))
        section |= settings | dict.fromkeys(keys, len(origins))
    if text and config and not sections and len(origins) != depth:
        # One that relies on a default would build a model as deep as before.
        inner: object = result.get("text_config")
        section = cast("dict[str, Any]", inner) if isinstance(inner, dict) else result
        if not any(key in section for key in DEPTH_KEYS):
            section[DEPTH_KEYS[0]] = len(origins)
    return result


def _sections(
    config: Mapping[str, Any], stack: Stack, *, text: bool
) -> list[tuple[tuple[str, ...], list[str]]]:
    """The sections of the configuration that describe the stack, and the keys of its depth in each."""
    part = words(stack.prefix)
    if "decoder" in part:
        part -= {"encoder"}  # as in decoder.bert.encoder.layer
    told = [
        (path, key, words(" ".join((*path, key))) - _NEUTRAL)
        for path, key in _depth_keys(config, stack.num_blocks)
    ]
    found = [entry for entry in told if entry[2] <= part and (text or not _is_text(entry[0]))]
    if text and not found:
        # A section of another name is the text decoder's if it is not plainly another part's.
        found = [entry for entry in told if not entry[2] & (NOT_TEXT | {"encoder"})]
    # A decoder and a tower may have keys of their own beside plain ones, which then speak of the rest.
    if ("decoder" in part or part & NOT_TEXT) and any(about for _, _, about in found):
        found = [entry for entry in found if entry[2]]
    sections: dict[tuple[str, ...], list[str]] = {}
    for path, key, _ in found:
        keys = sections.setdefault(path, [])
        if key in DEPTH_KEYS:
            keys.append(key)
    return list(sections.items())


def _is_text(path: Sequence[str]) -> bool:
    return "text" in words(" ".join(path))


def _depth_keys(
    config: Mapping[str, Any], depth: int, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in config.items():
        told = value
        if key in LIST_KEYS and isinstance(value, list | str):
            told = len(cast("list[Any]", value))
        if key in (*DEPTH_KEYS, *LIST_KEYS) and type(told) is int and told == depth:
            yield path, key
        elif isinstance(value, Mapping):
            yield from _depth_keys(cast("Mapping[str, Any]", value), depth, (*path, key))


def _section(config: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    for key in path:
        inner = config.get(key)
        config = cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}
    return cast("dict[str, Any]", config)


def _settings(
    section: Mapping[str, Any], depth: int, origins: Sequence[Origin], *, encoder: bool
) -> dict[str, Any]:
    """All settings of a section that speak of single layers, for the new ones."""
    settings: dict[str, Any] = {}
    lists = [
        _PerLayer(key)
        for key, value in section.items()
        if _per_layer(key, value, depth) and (encoder or key not in ENCODER_LISTS)
    ]
    for spelling in (*lists, *SPELLINGS):
        ours = spelling.read(section, depth)
        if ours is None or spelling.key in settings:
            continue
        entries = [_entry(spelling, ours, origin) for origin in origins]
        changes = spelling.write({**section, **settings}, entries)
        if changes is None:
            raise MismatchError(
                f"'{spelling.key}' of config.json cannot describe these {len(entries)} layers",
                hint="this architecture fixes by a rule which layer is of which kind; "
                "choose layer ranges that keep to it",
            )
        settings |= changes
    return settings


@dataclass(frozen=True, slots=True)
class _PerLayer:
    """A list with an entry per layer."""

    key: str

    def read(self, section: Mapping[str, Any], depth: int) -> Sequence[Any] | None:
        value = section.get(self.key)
        if isinstance(value, list):
            return cast("list[Any]", value)
        # Another model's configuration may give a period where this one has a list.
        periods = (s for s in SPELLINGS if isinstance(s, Period) and s.listed == self.key)
        return next((entries for s in periods if (entries := s.read(section, depth)) is not None), None)

    def write(self, section: Mapping[str, Any], entries: Sequence[Any]) -> dict[str, Any]:
        del section
        return {self.key: list(entries)}


def _per_layer(key: str, value: Any, depth: int) -> bool:
    """Whether it has an entry per layer; lists of classes and of tokens may be as long by chance."""
    return (
        isinstance(value, list)
        and len(cast("list[Any]", value)) == depth
        and key not in OTHER_LISTS
        and not key.endswith(("token_id", "token_ids"))
        and key not in {spelling.key for spelling in SPELLINGS}
    )


def _entry(spelling: Spelling, ours: Sequence[Any], origin: Origin) -> Any:
    entries = spelling.read(origin.config, origin.depth)
    if entries is None and isinstance(spelling, Period):
        entries = spelling.read_list(origin.config)
    if entries is None:
        entries = ours
    if origin.layer >= len(entries):
        raise MismatchError(
            f"'{spelling.key}' of config.json has {len(entries)} entries, none for layer {origin.layer}",
            hint="the models' configurations describe their layers differently; correct one of them",
        )
    return entries[origin.layer]
