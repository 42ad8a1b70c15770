"""Where a model comes from, as far as its own files say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from meldkit.checkpoint import read_json
from meldkit.errors import MeldError
from meldkit.recipe import load_recipe
from meldkit.regular import read_start

_CARD = "README.md"
#: No front matter is longer.
_CARD_LENGTH = 1 << 16
_ADAPTER = "adapter_config.json"
#: Recipes that merging programs leave in what they made.
_RECIPES = ("meldkit.yml", "mergekit_config.yml")
_LICENSES = ("LICENSE", "LICENCE", "USE_POLICY")
#: What a base model is to a model, where its card does not say it.
_BASE = "base model"
#: The hub's names for what was done to a base model.
_RELATIONS = {
    "finetune": "fine-tune of",
    "adapter": "adapter for",
    "quantized": "quantised from",
    "merge": "merged from",
}


@dataclass(frozen=True, slots=True)
class Relative:
    """A model that another one probably comes from.

    Attributes:
        name: hub id or path, as it is written.
        relation: what the other one is: "fine-tune of", "merged from", "adapter for", …
        source: the file that says so.
    """

    name: str
    relation: str
    source: str


def read_card(folder: Path) -> Mapping[str, Any]:
    """The front matter of a model card; empty if there is none, or if it is no YAML."""
    import yaml

    try:
        text = read_start(folder / _CARD, _CARD_LENGTH)
    except OSError:
        return {}
    _, fence, rest = text.partition("---\n")
    front, end, _ = rest.partition("\n---")
    if not text.startswith(fence) or not end:
        return {}
    with suppress(yaml.YAMLError, ValueError):
        said: object = yaml.safe_load(front)
        return cast("dict[str, Any]", said) if isinstance(said, dict) else {}
    return {}


def relatives(folder: Path, card: Mapping[str, Any], config: Mapping[str, Any], own: str) -> list[Relative]:
    """Models that a model comes from, each once, what is said most plainly first.

    Args:
        folder: of the model.
        card: front matter of its card.
        config: its config.json.
        own: the name of the model itself.
    """
    found: dict[str, Relative] = {}
    for relative in _mentioned(folder, card, config):
        if relative.name and relative.name not in (own, str(folder)):
            found.setdefault(relative.name, relative)
    return list(found.values())


def _mentioned(folder: Path, card: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Relative]:
    bases = _names(card.get("base_model"))
    if (folder / _ADAPTER).is_file():
        yield from (Relative(name, "adapter for", _ADAPTER) for name in _names(_adapter(folder)))
    relation = str(card.get("base_model_relation") or "")
    if not relation and "merge" in _names(card.get("tags")) and len(bases) > 1:
        relation = "merge"
    for name in bases:
        yield Relative(name, _RELATIONS.get(relation, _BASE), _CARD)
    for file in _RECIPES:
        if (folder / file).is_file():
            # A recipe that another program wrote may say what this one does not know.
            with suppress(MeldError):
                yield from (
                    Relative(str(ref), "merged from", file)
                    for ref in load_recipe(folder / file).stored_models()
                )
    name = config.get("_name_or_path")
    if isinstance(name, str):
        yield Relative(name, "saved from", "config.json")


def _adapter(folder: Path) -> object:
    with suppress(MeldError):
        return read_json(folder / _ADAPTER).get("base_model_name_or_path")
    return None


def _names(value: object) -> list[str]:
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def license_of(folder: Path, card: Mapping[str, Any]) -> str | None:
    """The license that a card names, else the file with its text; None if there is neither."""
    named = card.get("license")
    if isinstance(named, list):
        named = ", ".join(map(str, cast("list[object]", named)))
    if named == "other":
        named = card.get("license_name") or named
    if isinstance(named, str):
        return named
    files = sorted(path.name for path in folder.iterdir() if path.name.upper().startswith(_LICENSES))
    return files[0] if files else None
