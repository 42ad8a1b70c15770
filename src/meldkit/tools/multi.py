"""Several recipes of one file, each of which may merge what others give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from meldkit.api import plan
from meldkit.errors import RecipeError
from meldkit.options import MergeOptions
from meldkit.output import RECORD
from meldkit.plan import Plan
from meldkit.recipe import Recipe, by_name, load_recipes, order, relocated
from meldkit.report.reproduce import is_of_plan

#: Who made the model that is in a folder.
_OURS, _FOREIGN = "meldkit", "another program"


@dataclass(frozen=True, slots=True)
class Step:
    """One recipe.

    Attributes:
        name: of the recipe; None for the one without.
        path: the folder of its result.
        plan: what is to be merged into it; None if what is there is used.
        options: for that.
        stranger: whether what is there was made by another program, so that nobody knows of what.
    """

    name: str | None
    path: Path
    plan: Plan | None
    options: MergeOptions
    stranger: bool = False


def steps(
    recipe: Path,
    folder: Path,
    out: Path | None,
    options: MergeOptions | None = None,
    *,
    lazy: bool = True,
) -> Iterator[Step]:
    """What is to be done for several recipes, one after the other; the caller does it before the next.

    Args:
        recipe: file of the recipes; `-` is standard input.
        folder: where the results of recipes with a name go, to folders of these names.
        out: where that of the one without goes.
        options: as for `merge`.
        lazy: use what is in the folder already, if it is what would be made, or another program made it.

    Yields:
        Each recipe after those that it uses.

    Raises:
        RecipeError: recipes use each other in a circle, or there is no place for the one without a name.
        MeldError: as for `plan`.
    """
    options = options or MergeOptions()
    ordered = _in_order(load_recipes(recipe))
    if out is None and any(each.name is None for each in ordered):
        raise RecipeError(
            "OUT is missing: a recipe has no name, and its result needs a folder",
            hint="name a folder after the recipe's file, or give it by --out-path",
        )
    places = {name: folder / name for each in ordered if (name := _folder_name(each)) is not None}
    stored = {name: str(place) for name, place in places.items()}
    for current in ordered:
        path = out if current.name is None else places[current.name]
        assert path is not None
        there = _there(path)
        if there == _FOREIGN and lazy and current.name is not None:
            yield Step(current.name, path, None, options, stranger=True)
            continue
        chosen = plan(relocated(current, stored), options, headers_only=True)
        if there == _OURS and lazy and is_of_plan(path, chosen):
            yield Step(current.name, path, None, options)
        else:
            # What an earlier run made of another recipe of this name is of no use to anybody.
            useless = current.name is not None and (there == _OURS or not lazy)
            yield Step(current.name, path, chosen, replace(options, overwrite=options.overwrite or useless))


def _in_order(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes, each after those that it uses."""
    named = by_name(recipes)
    done: dict[str | None, Recipe] = {}
    for recipe in recipes:
        if recipe.name in done and recipe.name is None:
            place = recipe.lines.get("merge_method", recipe.origin)
            raise RecipeError(
                f"{place}: a second recipe without a name", hint="give all but one of them a 'name'"
            )
        done |= {name: stage for name, stage in order(recipe, named).items() if name not in done}
        done.setdefault(recipe.name, recipe)
    return list(done.values())


def _folder_name(recipe: Recipe) -> str | None:
    """The name of a recipe, which is that of a folder too."""
    name = recipe.name
    parts = Path(name or "x").parts
    if not parts or ".." in parts or Path(*parts).is_absolute() or "\0" in parts[-1]:
        raise RecipeError(
            f"{recipe.lines.get('name', recipe.origin)}: name '{name}' cannot be that of a folder",
            hint="give the recipe another name",
        )
    return name


def _there(path: Path) -> str | None:
    """Whose model is there already; None if there is none."""
    if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
        return None
    return _OURS if (path / RECORD).is_file() else _FOREIGN
