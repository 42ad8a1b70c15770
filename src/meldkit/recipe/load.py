"""Recipe files and recipe data → Recipe, with every error carrying the line it stands on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from meldkit.errors import NotSupportedError, RecipeError, did_you_mean
from meldkit.recipe.model import Recipe
from meldkit.recipe.problem import Problem
from meldkit.recipe.source import MAX_BYTES, Document, read_documents

_NO_RECIPE = "a recipe says what to do with models; 'meldkit new' writes one"
#: Keys of config.json and adapter_config.json.
_FOREIGN = {"architectures", "model_type", "peft_type"}

if TYPE_CHECKING:
    from pydantic import ValidationError


def load_recipe(path: str | PathLike[str]) -> Recipe:
    """The recipe in a file; `-` is standard input.

    Raises:
        RecipeError: the file cannot be read or is not a recipe; every problem is listed with its line.
        NotSupportedError: the file holds several recipes.
    """
    return parse_recipe(*_read_text(path))


def load_recipes(path: str | PathLike[str]) -> tuple[Recipe, ...]:
    """The recipes of a file, which `---` separates, in file order."""
    return parse_recipes(*_read_text(path))


def parse_recipe(text: str, origin: str = "recipe.yml") -> Recipe:
    """The recipe in a YAML text; `origin` is the file name for messages."""
    documents = read_documents(text, origin)
    if len(documents) > 1:
        labels = [_label(document, number) for number, document in enumerate(documents, start=1)]
        raise NotSupportedError(
            f"{origin} holds {len(documents)} recipes: {', '.join(labels)}",
            hint="keep one in the file; several at once are not supported yet",
        )
    return _recipe(documents[0])


def parse_recipes(text: str, origin: str = "recipe.yml") -> tuple[Recipe, ...]:
    """The recipes in a YAML text, which `---` separates; their names must differ."""
    documents = read_documents(text, origin)
    recipes = tuple(map(_recipe, documents))
    places: dict[str, str] = {}
    for recipe in recipes:
        if recipe.name is None:
            continue
        if recipe.name in places:
            message = f"{recipe.lines['name']}: name '{recipe.name}' is taken; see {places[recipe.name]}"
            raise RecipeError(message, hint="give every recipe of a file a name of its own")
        places[recipe.name] = recipe.lines["name"]
    return recipes


def recipe_from_data(data: Mapping[str, object]) -> Recipe:
    """The recipe in Python data, such as `yaml.safe_load` or `json.load` give."""
    return _recipe(Document(data))


def _read_text(path: str | PathLike[str]) -> tuple[str, str]:
    """The text of a recipe's file, and what messages call the file."""
    piped = str(path) == "-"
    origin = "<stdin>" if piped else str(path)
    try:
        with os.fdopen(0, "rb", closefd=False) if piped else Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        hint = "" if piped else _where_to_look(Path(path))
        raise RecipeError(f"cannot read recipe '{origin}': {reason}", hint=hint) from None
    if raw[:4] == b"GGUF" or raw[8:9] == b"{" or raw[:4] == b"PK\x03\x04":
        raise RecipeError(f"{origin} is a weight file, not a recipe", hint=_NO_RECIPE)
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{origin}: more than {MAX_BYTES // 2**20} MiB is too much for a recipe")
    try:
        return raw.decode("utf-8-sig"), origin
    except UnicodeDecodeError as error:
        message = f"{origin}: not UTF-8 text: byte {raw[error.start]:#04x} at position {error.start}"
        raise RecipeError(message, hint="save the file as UTF-8") from None


def _where_to_look(path: Path) -> str:
    """What to do about a recipe that cannot be read, by what is there instead."""
    try:
        if path.is_dir():
            recipes = sorted(p.name for p in path.iterdir() if p.suffix in (".yml", ".yaml"))
            if (path / "config.json").exists():
                return "it is a model; " + _NO_RECIPE
            return f"name a file, such as {path / recipes[0]}" if recipes else "name a file"
        if path.exists():
            return ""
        names = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".yml", ".yaml"))
    except (OSError, ValueError):
        names = []
    near = did_you_mean(path.name, names) if names else ""
    return near if near.startswith("did") else "check the path; 'meldkit new' writes a recipe"


def _label(document: Document, number: int) -> str:
    """How a message names one of several documents."""
    data = document.data
    name = data.get("name") if isinstance(data, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return f"'{name}'" if name else f"document {number} (line {document.lines[()]})"


def _recipe(document: Document) -> Recipe:
    # pydantic takes most of the time of importing this package; those who only need its types go without.
    from pydantic import ValidationError

    from meldkit.recipe.schema import MergeConfiguration

    if (
        isinstance(document.data, dict)
        and "merge_method" not in document.data
        and _FOREIGN & document.data.keys()
    ):
        raise RecipeError(
            f"{document.origin or 'the data'} is the configuration of a model, not a recipe",
            hint=_NO_RECIPE,
        )
    try:
        return MergeConfiguration.model_validate(document.data, context=document).recipe()
    except ValidationError as error:
        raise _plain_error(error, document) from None


def _plain_error(error: ValidationError, document: Document) -> RecipeError:
    """All problems that pydantic collected, in file order, each with its place."""
    found: list[tuple[int, RecipeError]] = []
    for details in error.errors(include_url=False, include_input=False):
        cause = details.get("ctx", {}).get("error")
        path = tuple(details["loc"])
        if isinstance(cause, RecipeError) and not isinstance(cause, Problem):
            found.append((0, cause))
            continue
        message, hint = (cause.message, cause.hint) if isinstance(cause, Problem) else (details["msg"], "")
        if isinstance(cause, Problem):
            path += cause.path
        place = document.place(path)
        line = document.lines.get(path, 0)
        found.append((line, RecipeError(f"{place}: {message}" if place else message, hint=hint)))
    found.sort(key=lambda pair: pair[0])
    if len(found) == 1:
        return found[0][1]
    return RecipeError.of(each for _, each in found)
