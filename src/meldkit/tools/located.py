"""Where the models of a recipe are now that lay elsewhere when it was carried out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from meldkit.errors import RecipeError, did_you_mean
from meldkit.recipe import ModelRef, Recipe, mentions


class Located:
    """Says where a model of a recipe is now.

    Args:
        recipe: the recipe.
        record: of its merge; models of the hub are taken at the commits that it names.
        models: folders in which models are looked for that are not where the recipe says.
        moved: where single models and adapters are now, by their paths in the recipe.

    Raises:
        RecipeError: one of these folders is none, or something is said of a model that the recipe has not.
    """

    def __init__(
        self, recipe: Recipe, record: Mapping[str, Any], models: Sequence[Path], moved: Mapping[str, str]
    ) -> None:
        for folder in models:
            if not folder.is_dir():
                raise RecipeError(f"--models {folder} is no folder", hint="name one that holds models")
        names = dict.fromkeys(_paths(recipe))
        # Of "./a", "a/" and "a" each may be written for the other.
        known = {PurePath(name) for name in names}
        for name in moved:
            if PurePath(name) not in known:
                raise RecipeError(
                    f"--model {name}={moved[name]}: the recipe has no model '{name}'",
                    hint=did_you_mean(name, names),
                )
        self._commits = {str(m["model"]): m.get("commit") for m in record["models"]}
        self._models = models
        self._moved = {PurePath(name): place for name, place in moved.items()}

    def __call__(self, ref: ModelRef) -> ModelRef:
        path = self._find(ref.path)
        adapters = tuple(replace(adapter, path=self._find(adapter.path)) for adapter in ref.adapters)
        revision = ref.revision
        if path == ref.path and not Path(path).expanduser().exists():
            # A branch of the hub may have gone on.
            revision = self._commits.get(str(ref)) or revision
        return replace(ref, path=path, revision=revision, adapters=adapters)

    def _find(self, path: str) -> str:
        if (place := self._moved.get(PurePath(path))) is not None:
            return place
        if not Path(path).expanduser().exists():
            for folder in self._models:
                for below in (PurePath(path), PurePath(PurePath(path).name)):
                    if not below.is_absolute() and (folder / below).exists():
                        return str(folder / below)
        return path


def _paths(recipe: Recipe) -> Iterator[str]:
    """What a recipe and its stages call models and adapters, those that only give tokens included."""
    for part in (recipe, *recipe.stages.values()):
        for ref in mentions(part):
            if recipe.stage_of(ref) is None:
                yield ref.path
            yield from (adapter.path for adapter in ref.adapters)
