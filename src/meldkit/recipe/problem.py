"""Errors found deep inside recipe data, before anyone there knows which file and line they stand on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from typing import TypeAlias, cast

from meldkit.errors import RecipeError, did_you_mean

DataPath: TypeAlias = tuple[str | int, ...]
"""The way from one piece of recipe data to a part of it: mapping keys and list positions (from 0)."""


class Problem(RecipeError):
    """Something wrong at `path`, seen from the data that was being read; whoever knows the line adds it."""

    def __init__(self, message: str, *, hint: str = "", path: DataPath = ()) -> None:
        super().__init__(message, hint=hint)
        self.path = path

    def below(self, path: DataPath) -> Problem:
        """The same, seen from data in which what was read stands at `path`."""
        return Problem(self.message, hint=self.hint, path=(*path, *self.path))


@contextmanager
def within(*steps: str | int, subject: str = "") -> Generator[None]:
    """Lengthens the path of a Problem raised inside by `steps`, and puts `subject: ` before its message."""
    try:
        yield
    except Problem as problem:
        message = f"{subject}: {problem.message}" if subject else problem.message
        raise Problem(message, hint=problem.hint, path=(*steps, *problem.path)) from None


@contextmanager
def placed(where: str) -> Generator[None]:
    """Turns a Problem raised inside into a RecipeError that begins with `where`, when that is known."""
    try:
        yield
    except Problem as problem:
        if not where:
            raise
        raise RecipeError(f"{where}: {problem.message}", hint=problem.hint) from None


def kind_of(raw: object) -> str:
    """What a piece of recipe data is, in a reader's words: "a list", "the number 3", "the text 'x'"."""
    if raw is None:
        return "nothing"
    if isinstance(raw, bool):
        return f"the value {str(raw).lower()}"
    if isinstance(raw, int) and raw.bit_length() > 64:
        return "a huge number"
    if isinstance(raw, int | float):
        return f"the number {raw!r}"
    if isinstance(raw, str):
        return f"the text {raw if len(raw) <= 60 else raw[:57] + '...'!r}"
    if isinstance(raw, Mapping):
        return "a mapping (keys and values)"
    if isinstance(raw, list | tuple):
        return "a list"
    return f"a Python {type(raw).__name__}"


def _keys_hint(key: str, known: Collection[str]) -> str:
    """The nearest valid key, when one is near, and all keys that may stand here."""
    near = did_you_mean(key, known)
    listed = "keys here: " + ", ".join(known)
    return f"{near} {listed}" if near.startswith("did you mean") else listed


def check_keys(
    raw: object,
    place: str,
    known: Collection[str],
    required: Collection[str] = (),
    homes: Callable[[str], list[str]] | None = None,
) -> Mapping[str, object]:
    """`raw` as a mapping whose keys are all known and whose required keys are all there and not null.

    Args:
        raw: recipe data that should be a mapping.
        place: what the mapping is, for messages ("the recipe", "a model").
        known: keys that may stand here, in the order they are listed to the user.
        required: keys that must be present.
        homes: for an unknown key, where it may stand instead, such as "in 'model'".
    """
    if not isinstance(raw, Mapping):
        hint = "keys here: " + ", ".join(known)
        if isinstance(raw, str) and len(required) == 1:
            hint = f"write '{next(iter(required))}: {raw.strip()}'; {hint}"
        raise Problem(f"{place} must be a mapping, got {kind_of(raw)}", hint=hint)
    data = cast("Mapping[object, object]", raw)
    for key in data:
        if not isinstance(key, str):
            raise Problem(f"key {key!r} of {place} is not text", hint="put it in quotes")
        if key not in known:
            elsewhere = homes(key) if homes else []
            hint = f"it belongs {' or '.join(elsewhere)}" if elsewhere else _keys_hint(key, known)
            raise Problem(f"unknown key '{key}' in {place}", hint=hint, path=(key,))
    for key in required:
        if data.get(key) is None:
            path = (key,) if key in data else ()
            raise Problem(f"'{key}' is missing in {place}", hint="keys here: " + ", ".join(known), path=path)
    return cast("Mapping[str, object]", data)
