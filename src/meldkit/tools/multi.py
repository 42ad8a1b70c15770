"""Several recipes of one file, each of which may merge what others give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from meldkit.api import plan
from meldkit.errors import OutputError, RecipeError
from meldkit.options import MergeOptions
from meldkit.output import RECORD, check_free, check_space, lacking
from meldkit.plan import Plan, adapter_folders
from meldkit.recipe import Recipe, by_name, load_recipes, order, relocated
from meldkit.report.changed import is_of_plan

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
    strangers = {name for name, place in places.items() if lazy and _there(place) == _FOREIGN}
    if out is not None:
        _check_apart(out, places)
    _foresee(
        [recipe for recipe in ordered if recipe.name not in strangers], strangers, places, out, options, lazy
    )
    for current in ordered:
        path = out if current.name is None else places[current.name]
        assert path is not None
        there = _there(path)
        if current.name in strangers:
            yield Step(current.name, path, None, options, stranger=True)
            continue
        chosen = plan(relocated(current, stored), options, headers_only=True)
        if there == _OURS and lazy and is_of_plan(path, chosen):
            yield Step(current.name, path, None, options)
        else:
            overwrite = _may_replace(current, there, options, lazy)
            yield Step(current.name, path, chosen, replace(options, overwrite=overwrite))


def _foresee(
    recipes: Sequence[Recipe],
    strangers: Iterable[str],
    places: Mapping[str, Path],
    out: Path | None,
    options: MergeOptions,
    lazy: bool,
) -> None:
    """Find out what the last recipe would fail for before the first one is carried out.

    Args:
        recipes: those to be carried out, each after those that it uses.
        strangers: names of those that are not, as what is in their places is used.
        places: the folders of those that have a name.
        out: the folder of the one without.
        options, lazy: as for `steps`.

    Raises:
        MeldError: as for `plan` and `merge`.
    """
    known = {name: str(places[name]) for name in strangers}
    named: dict[str, Recipe] = {}
    needed: dict[Path, int] = {}
    for recipe in recipes:
        path = out if recipe.name is None else places[recipe.name]
        assert path is not None
        current, there = relocated(recipe, known), _there(path)
        stages = order(current, named)
        if recipe.name is not None:
            named[recipe.name] = current
        # What an adapter can be used for is seen when it is there.
        if any(_gives_adapter(stage, options) for stage in stages.values()):
            continue
        foreseen = plan(replace(current, stages=stages), options, headers_only=True)
        if not stages and there == _OURS and lazy and is_of_plan(path, foreseen):
            known |= {} if recipe.name is None else {recipe.name: str(path)}
            continue
        check_free(path, overwrite=_may_replace(recipe, there, options, lazy))
        if there is None:
            needed[path] = lacking(path, foreseen)
    check_space(needed)


def _may_replace(recipe: Recipe, there: str | None, options: MergeOptions, lazy: bool) -> bool:
    """Whether what is in a recipe's place may go; what was stored on the way is of no other use."""
    return options.overwrite or (recipe.name is not None and (there == _OURS or not lazy))


def _gives_adapter(recipe: Recipe, options: MergeOptions) -> bool:
    cache = Path(options.transformers_cache) if options.transformers_cache else None
    return adapter_folders(recipe, cache) is not None


def _check_apart(out: Path, places: Mapping[str, Path]) -> None:
    """Refuse to write one result into the folder of another."""
    own = out.resolve()
    for name, place in places.items():
        other = place.resolve()
        if own == other or own in other.parents or other in own.parents:
            raise OutputError(
                f"{out} and {place}, the folder of recipe '{name}', are not apart",
                hint="name an output folder outside the folder of intermediate results",
            )


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
