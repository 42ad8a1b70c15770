"""Recipes that merge what other recipes give: documents of one file that name each other, and recipes that
stand where a model may."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import cast

from meldkit.errors import RecipeError
from meldkit.recipe.model import ModelToken, Recipe, TokenEntry
from meldkit.recipe.problem import DataPath
from meldkit.recipe.refs import ModelRef
from meldkit.recipe.sections import UNUSED
from meldkit.recipe.source import MAX_DEPTH, Document

#: Keys whose values are models, and the key that tells a recipe from the mapping form of a model.
_MODELS, _RECIPE = ("model", "base_model"), "merge_method"
#: Below these, names are those of parameters, or nothing is read.
_NO_MODELS = {"parameters", *UNUSED}


def take_apart(documents: Sequence[Document]) -> list[Document]:
    """The documents, and each recipe that stands inside one in place of a model as a document before it.

    Such a recipe goes by its name; one without is called inline-1, inline-2, … The same recipe in several
    places, as an alias in YAML makes it, is one.
    """
    taken = {name for document in documents for name in _names(document.data)}
    free = (name for number in count(1) if (name := f"inline-{number}") not in taken)
    apart = _Apart(documents, free)
    return [part for document in documents for part in apart.parts(document)]


def _names(data: object, depth: int = 0) -> Iterator[str]:
    if depth > MAX_DEPTH:
        return
    if isinstance(data, Mapping):
        for key, value in cast("Mapping[object, object]", data).items():
            if key == "name" and isinstance(value, str):
                yield value
            if key not in _NO_MODELS:
                yield from _names(value, depth + 1)
    elif isinstance(data, list):
        for value in cast("list[object]", data):
            yield from _names(value, depth + 1)


class _Apart:
    def __init__(self, documents: Sequence[Document], free: Iterator[str]) -> None:
        self._free = free
        self._known: list[tuple[Mapping[object, object], str]] = []
        for document in documents:
            if isinstance(document.data, Mapping):
                data = cast("Mapping[object, object]", document.data)
                if isinstance(name := data.get("name"), str):
                    self._known.append((data, name))

    def parts(self, document: Document) -> list[Document]:
        """A document, after the recipes that stand inside it and not in one before."""
        found: list[Document] = []

        def without(data: object, path: DataPath) -> object:
            if len(path) > MAX_DEPTH:
                return data  # Python data may hold itself; what is wrong with it is for others to say
            if isinstance(data, list):
                return [without(value, (*path, i)) for i, value in enumerate(cast("list[object]", data))]
            if not isinstance(data, Mapping):
                return data
            mapping = cast("Mapping[object, object]", data)
            return {key: replaced(key, value, path) for key, value in mapping.items()}

        def replaced(key: object, value: object, path: DataPath) -> object:
            if not isinstance(key, str) or key in _NO_MODELS:
                return value
            if key in _MODELS and isinstance(value, Mapping):
                mapping = cast("Mapping[object, object]", value)
                return named(mapping, (*path, key)) if _RECIPE in mapping else without(mapping, (*path, key))
            return without(value, (*path, key))

        def named(data: Mapping[object, object], path: DataPath) -> str:
            for known, name in self._known:
                if known is data or known == data:
                    return name
            name = data.get("name")
            if not isinstance(name, str):
                # One that is no text is left where it is, for the reader of the recipe to complain of.
                name = next(self._free)
            self._known.append((data, name))
            depth = len(path)
            lines = {place[depth:]: line for place, line in document.lines.items() if place[:depth] == path}
            found.extend(self.parts(Document({"name": name} | dict(data), lines, document.origin)))
            return name

        data = without(document.data, ())
        return [*found, replace(document, data=data)]


#: What else can be done with several recipes.
_ALL = "'meldkit multi' with --intermediate-dir carries out all of them"


def join(recipes: Sequence[Recipe]) -> Recipe:
    """The one of the recipes that no other uses, with those that it uses as its stages.

    Raises:
        RecipeError: there is no such recipe or more than one, a name is taken twice, or recipes use each
            other in a circle.
    """
    if len(recipes) == 1:
        return recipes[0]  # a name of its own says nothing then
    named = by_name(recipes)
    finals = [recipe for recipe in recipes if recipe.name is None]
    if len(finals) > 1:
        raise RecipeError(
            f"{_place(finals[1])}: a second recipe without a name; the first is at {_place(finals[0])}",
            hint="give all but the last a 'name', by which others use what they give",
        )
    if not finals:
        used = {name for recipe in recipes for name in uses(recipe, named)}
        finals = [recipe for recipe in recipes if recipe.name not in used]
        if len(finals) != 1:
            order(recipes[0], named)  # says so where the reason is a circle
            listed = ", ".join(f"'{recipe.name}'" for recipe in finals)
            raise RecipeError(
                f"{recipes[0].origin}: {len(finals)} recipes are used by no other: {listed}",
                hint=f"keep one of them, or let one without a name be what is to be merged; {_ALL}",
            )
    final = finals[0]
    stages = order(final, named)
    for name, recipe in named.items():
        if name not in stages and recipe is not final:
            order(recipe, named)
            raise RecipeError(
                f"{recipe.lines.get('name', recipe.origin)}: no recipe uses '{name}'",
                hint=f"remove it, or write its name as a model of another recipe; {_ALL}",
            )
    return replace(final, stages=stages, warnings=(*final.warnings, *_hidden(stages)))


def _hidden(stages: Mapping[str, Recipe]) -> Iterator[str]:
    """Warnings about models that recipes take the names of."""
    for name, recipe in stages.items():
        if Path(name).is_dir():
            place = recipe.lines.get("name", recipe.origin)
            yield (
                f"{place + ': ' if place else ''}'{name}' means what this recipe gives, not the folder of "
                f"that name; './{name}' means the folder"
            )


def by_name(recipes: Sequence[Recipe]) -> dict[str, Recipe]:
    """Recipes that have a name, by it.

    Raises:
        RecipeError: two have the same.
    """
    named: dict[str, Recipe] = {}
    for recipe in recipes:
        if recipe.name is None:
            continue
        if recipe.name in named:
            place, other = (each.lines.get("name", each.origin) for each in (recipe, named[recipe.name]))
            raise RecipeError(
                f"{place}: name '{recipe.name}' is taken; see {other}",
                hint="give every recipe of a file a name of its own",
            )
        named[recipe.name] = recipe
    return named


def uses(recipe: Recipe, named: Mapping[str, Recipe]) -> list[str]:
    """Names of the recipes that a recipe mentions, in the order in which it does."""
    return list(
        dict.fromkeys(ref.path for ref in mentions(recipe) if ref.revision is None and ref.path in named)
    )


def mentions(recipe: Recipe) -> Iterator[ModelRef]:
    """Every reference of a recipe, its stages aside: to models, to those that only give tokens, to stages."""
    yield from recipe.models()
    if recipe.tokenizer is None:
        return
    if isinstance(recipe.tokenizer.source, ModelRef):
        yield recipe.tokenizer.source
    for entry in recipe.tokenizer.tokens.values():
        if isinstance(entry.source, ModelRef):
            yield entry.source
        elif isinstance(entry.source, ModelToken):
            yield entry.source.model


def order(recipe: Recipe, named: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """The recipes that a recipe uses, and those that these use, each after what it uses itself.

    Raises:
        RecipeError: some use each other in a circle.
    """
    done: dict[str, Recipe] = {}
    way: list[str] = [] if recipe.name is None else [recipe.name]

    def visit(current: Recipe) -> None:
        for name in uses(current, named):
            if name in way:
                circle = " → ".join(f"'{each}'" for each in (*way[way.index(name) :], name))
                place = named[name].lines.get("name", named[name].origin)
                raise RecipeError(
                    f"{place}: recipes use each other in a circle: {circle}",
                    hint="a recipe can only merge what others give without it",
                )
            if name in done:
                continue
            way.append(name)
            visit(named[name])
            way.pop()
            done[name] = named[name]

    visit(recipe)
    return done


def relocated(recipe: Recipe, places: Mapping[str, str]) -> Recipe:
    """A recipe that reads the results of others from where they are stored.

    Args:
        recipe: with or without stages, which it has none of afterwards.
        places: by the names that it uses.
    """

    def at(ref: ModelRef) -> ModelRef:
        return replace(ref, path=places[ref.path]) if ref.revision is None and ref.path in places else ref

    def source(entry: TokenEntry) -> TokenEntry:
        if isinstance(entry.source, ModelRef):
            return replace(entry, source=at(entry.source))
        if isinstance(entry.source, ModelToken):
            return replace(entry, source=replace(entry.source, model=at(entry.source.model)))
        return entry

    tokenizer = recipe.tokenizer
    if tokenizer is not None:
        whose = tokenizer.source
        tokenizer = replace(
            tokenizer,
            source=at(whose) if isinstance(whose, ModelRef) else whose,
            tokens={token: source(entry) for token, entry in tokenizer.tokens.items()},
        )
    modules = tuple(
        replace(
            module,
            slices=tuple(
                replace(
                    part,
                    sources=tuple(replace(each, model=at(each.model)) for each in part.sources),
                    base_model=None if part.base_model is None else at(part.base_model),
                )
                for part in module.slices
            ),
        )
        for module in recipe.modules
    )
    base = None if recipe.base_model is None else at(recipe.base_model)
    return replace(recipe, modules=modules, base_model=base, tokenizer=tokenizer, stages={})


def _place(recipe: Recipe) -> str:
    return recipe.lines.get("merge_method", recipe.origin)
