"""How a recipe names a model: a path or hub id, perhaps a revision, perhaps LoRA adapters on top."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from meldkit.recipe.problem import Problem, check_keys, kind_of, placed, within

_MAPPING_HINT = "if that is part of the path itself, write {model: {path: ...}} instead of plain text"


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A LoRA adapter: its path or hub id, and the revision to take from the hub (None: the newest)."""

    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model of a recipe; equal when all parts are equal, and usable as a dictionary key.

    Attributes:
        path: local folder or hub id, without trailing slashes.
        revision: branch, tag or commit on the hub; None is the default branch.
        adapters: LoRA adapters added to the weights, in this order.
        override_architecture: architecture name to believe instead of the one in config.json.
    """

    path: str
    revision: str | None = None
    adapters: tuple[AdapterRef, ...] = ()
    override_architecture: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Reads `path-or-id[@revision][+adapter[@revision]]...`.

        Raises:
            RecipeError: a part is empty, has more than one '@', or is an address with a password.
        """
        _check_address(text)
        first, *rest = text.split("+")
        path, revision = _split_revision(first, text)
        return cls(path, revision, tuple(AdapterRef(*_split_revision(part, text)) for part in rest))

    @classmethod
    def from_value(cls, value: object, where: str = "") -> ModelRef:
        """Reads what a recipe may write for a model: text, a path object, or the mapping form.

        The mapping form is `{model: M, lora: M, override_architecture: name}`, where M is text
        (`path[@revision]`) or `{path, revision}`; `lora` may also be a list of M.

        Args:
            value: the data.
            where: "recipe.yml:12", put before the message of an error.

        Raises:
            RecipeError: the value is neither, or has unknown keys.
        """
        with placed(where):
            if isinstance(value, ModelRef):
                return value
            if isinstance(value, str):
                return cls.parse(value)
            if isinstance(value, os.PathLike):
                return cls(*_path_and_revision(str(cast("os.PathLike[str]", value)), split=False))
            if isinstance(value, Mapping):
                return _from_mapping(cast("Mapping[object, object]", value))
            raise Problem(f"a model must be text or a mapping, got {kind_of(value)}", hint=_quote_hint(value))

    def __str__(self) -> str:
        head = f"{self.path}@{self.revision}" if self.revision else self.path
        return "+".join([head, *map(str, self.adapters)])

    def to_value(self) -> str | dict[str, object]:
        """The text form, or the mapping form where the text would be read differently."""
        adapter_texts = [text for adapter in self.adapters for text in (adapter.path, adapter.revision or "")]
        texts = [self.path, self.revision or "", *adapter_texts]
        if self.override_architecture is None and not any("+" in text or "@" in text for text in texts):
            return str(self)
        return self.to_mapping()

    def to_mapping(self) -> dict[str, object]:
        """The mapping form, which can hold any path."""
        value: dict[str, object] = {"model": _located(self.path, self.revision)}
        adapters = [_located(adapter.path, adapter.revision) for adapter in self.adapters]
        if adapters:
            value["lora"] = adapters[0] if len(adapters) == 1 else adapters
        if self.override_architecture is not None:
            value["override_architecture"] = self.override_architecture
        return value


def _located(path: str, revision: str | None) -> dict[str, object]:
    return {"path": path} if revision is None else {"path": path, "revision": revision}


def _quote_hint(value: object) -> str:
    return "put it in quotes" if isinstance(value, bool | int | float) else ""


def _strip_slashes(path: str) -> str:
    """`path` without slashes and blanks at its end, but a root such as "/" or "C:\\" as it is."""
    whole = stripped = path.strip()
    while stripped != (shorter := stripped.rstrip("/\\").rstrip()):
        stripped = shorter
    is_drive = len(stripped) == 2 and stripped[0].isalpha() and stripped[1] == ":"
    return stripped if stripped and not is_drive else whole[: len(stripped) + 1]


def _check_address(text: str) -> None:
    """Refuse an address with a password, before the text is taken apart and parts of it are shown."""
    before, colon, rest = text.partition("://")
    scheme = before.rpartition("+")[2].strip()
    server = rest.partition("/")[0]
    # A password may have any letters in it, though it should not.
    if colon and ("@" in server or (":" in server and "@" in rest)):
        raise Problem(
            f"the model is an address with a user name or password: {scheme}://…",
            hint="name a model by its folder, or by its hub id such as org/name",
        )


def _split_revision(part: str, whole: str) -> tuple[str, str | None]:
    """One `path[@revision]` of the text form `whole`."""
    _check_address(part)
    path, at, revision = part.partition("@")
    path, revision = path.strip(), revision.strip()
    if not path:
        if not whole.strip():
            raise Problem("the model is an empty text", hint="write a folder or a hub id such as org/name")
        raise Problem(f"model '{whole}' has an empty name before or after a '+' or '@'", hint=_MAPPING_HINT)
    if at and not revision:
        raise Problem(f"model '{whole}' has no revision after '@'", hint=_MAPPING_HINT)
    if "@" in revision:
        raise Problem(f"model '{whole}' has more than one '@'", hint=_MAPPING_HINT)
    return _strip_slashes(path), revision or None


def _path_and_revision(raw: object, *, split: bool = True) -> tuple[str, str | None]:
    """One M of the mapping form: text, in which only '@' is special, or `{path, revision}`."""
    if isinstance(raw, str):
        if split or not raw:
            return _split_revision(raw, raw)
        return _strip_slashes(raw), None
    data = check_keys(raw, "a model's mapping form", ("path", "revision"), ("path",))
    path, revision = _text(data, "path"), _text(data, "revision")
    assert path is not None
    _check_address(path)
    return _strip_slashes(path), revision


def _text(data: Mapping[str, object], key: str) -> str | None:
    """The text under `key`; None when absent or null. No numbers: YAML may have changed the digits."""
    value = data.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise Problem(
            f"'{key}' must be text that is not empty, got {kind_of(value)}",
            hint=_quote_hint(value),
            path=(key,),
        )
    return value.strip()


def _homes(key: str) -> list[str]:
    return ["in 'model'", "in 'lora'"] if key in ("path", "revision") else []


def _from_mapping(value: Mapping[object, object]) -> ModelRef:
    known = ("model", "lora", "override_architecture")
    data = check_keys(value, "a model's mapping form", known, ("model",), _homes)
    with within("model"):
        path, revision = _path_and_revision(data["model"])
    raw = data.get("lora")
    loras = cast("list[object]", raw) if isinstance(raw, list) else [] if raw is None else [raw]
    adapters: list[AdapterRef] = []
    for lora in loras:
        with within("lora"):
            adapters.append(AdapterRef(*_path_and_revision(lora)))
    return ModelRef(path, revision, tuple(adapters), _text(data, "override_architecture"))
