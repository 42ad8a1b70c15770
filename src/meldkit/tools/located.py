"""Where the models of a recipe are now that lay elsewhere when it was carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, TypeVar

from meldkit.errors import RecipeError, did_you_mean
from meldkit.recipe import ModelRef
from meldkit.recipe.refs import AdapterRef

P = TypeVar("P", ModelRef, AdapterRef)


class Located:
    """Says where a model of a recipe is now.

    Args:
        refs: every reference of the recipe.
        record: of its merge; models of the hub are taken at the commits that it names.
        models: folders in which models are looked for that are not where the recipe says.
        moved: where single models and adapters are now, by their paths in the recipe.

    Raises:
        RecipeError: one of these folders is none, or something is said of a model that the recipe has not.
    """

    def __init__(
        self,
        refs: Sequence[ModelRef],
        record: Mapping[str, Any],
        models: Sequence[Path],
        moved: Mapping[str, str],
    ) -> None:
        for folder in models:
            if not folder.is_dir():
                raise RecipeError(f"--models {folder} is no folder", hint="name one that holds models")
        names = dict.fromkeys(place.path for ref in refs for place in (ref, *ref.adapters))
        # Of "./a", "a/" and "a" each may be written for the other.
        bases = [name for model in record["models"] for name in model.get("commits", {})]
        known = {PurePath(name) for name in (*names, *bases)}
        for name in moved:
            if PurePath(name) not in known:
                raise RecipeError(
                    f"--model {name}={moved[name]}: the recipe has no model '{name}'",
                    hint=did_you_mean(name, names),
                )
        self._commits: dict[str, dict[str, str]]
        self._commits = {m["model"]: m.get("commits", {}) for m in record["models"]}
        # What adapters name as their bases stands in no recipe.
        self._all = {name: commit for commits in self._commits.values() for name, commit in commits.items()}
        self._models = models
        self._moved = {PurePath(name): place for name, place in moved.items()}

    def __call__(self, ref: ModelRef) -> ModelRef:
        commits = self._commits.get(str(ref), self._all)
        adapters = tuple(self._place(adapter, commits) for adapter in ref.adapters)
        return replace(self._place(ref, commits), adapters=adapters)

    def _place(self, named: P, commits: Mapping[str, str]) -> P:
        path = self._find(named.path)
        revision = named.revision
        if path == named.path and not _is_here(path):
            # A branch of the hub may have gone on.
            revision = next((c for name, c in commits.items() if _is_of(path, name)), revision)
        return replace(named, path=path, revision=revision)

    def _find(self, path: str) -> str:
        if (place := self._moved.get(PurePath(path))) is not None:
            return place
        if not _is_here(path):
            for folder in self._models:
                for below in (PurePath(path), PurePath(PurePath(path).name)):
                    if not below.is_absolute() and (folder / below).exists():
                        return str(folder / below)
        return path


def _is_of(path: str, repository: str) -> bool:
    """Whether a path names a repository of the hub, or a file in it."""
    return path == repository or path.startswith((f"{repository}/", f"{repository}:"))


def _is_here(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, or `~nobody`: whoever opens it says so
        return False
