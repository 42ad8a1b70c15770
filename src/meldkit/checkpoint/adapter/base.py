"""Which model an adapter was trained on, and whether it is the one that it is laid over."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from meldkit.checkpoint.json_file import read_json, shown
from meldkit.regular import read_start

#: A model in the cache of the hub's client.
_CACHED = re.compile(r"models--[^/]+?--([^/]+)")
#: What names of quantised copies end in; adapters trained on those are laid over the original.
_QUANTISED = re.compile(r"(-unsloth)?-(bnb-[48]bit|gguf|awq|gptq|fp8)$")
#: What the front matter of a model card says about where the model comes from: one name, or a list of them.
_CARD = re.compile(r"---\n(?:(?!---).*\n)*?base_model:(?P<names>.*\n(?:[ \t]*- .*\n)*)")
_CARD_LENGTH = 1 << 16


def base_of(folder: Path) -> tuple[str, str | None]:
    """The model that an adapter was trained on, and its revision; the name is empty if nothing says it.

    Raises:
        CheckpointError: the adapter's configuration cannot be read.
    """
    settings = read_json(folder / "adapter_config.json")
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    return name if isinstance(name, str) else "", revision if isinstance(revision, str) else None


def other_base(adapter: Path, under: Sequence[Path], config: Mapping[str, Any]) -> str:
    """What to say about an adapter that was trained on another model than the one under it; "" if nothing.

    Shapes do not tell, and folders may have any name. So the last component of the name that the adapter
    gives is looked for in the model's path, and in what configuration and card say about its origin.

    Args:
        adapter: its folder.
        under: folder or weight file of the model under it, and folders of adapters between them.
        config: that model's config.json.
    """
    name = base_of(adapter)[0]
    wanted = _last(name)
    model = under[0]
    if not wanted.strip(".") or wanted in _names(under, config):
        return ""
    if model.is_file() and _last(model.name).startswith(wanted):
        return ""
    return (
        f"adapter {adapter} was trained on {shown(name)}, says its adapter_config.json; "
        f"it is laid over {model}, which may be another model"
    )


def _names(under: Sequence[Path], config: Mapping[str, Any]) -> Iterator[str]:
    """What a model is called, or was made of."""
    folder = under[0].parent if under[0].is_file() else under[0]
    for path in (folder, *under[1:]):
        yield _last(str(path))
        yield _last(str(path.resolve()))
    yield _last(str(config.get("_name_or_path")))
    try:
        card = read_start(folder / "README.md", _CARD_LENGTH)
    except OSError:
        return
    match = _CARD.match(card)
    for name in re.findall(r"[\w./-]+", match["names"]) if match else ():
        yield _last(name)


def _last(name: str) -> str:
    """What a path or a hub id ends in, without case, and without what tells of quantisation."""
    path = name.replace("\\", "/").rstrip("/")
    cached = _CACHED.search(path)
    last = cached[1] if cached else path.rpartition("/")[2]
    return _QUANTISED.sub("", last.casefold())
