"""Recipe files and recipe data → Recipe, with every error carrying the line it stands on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TypeVar

from meldkit.errors import RecipeError, did_you_mean
from meldkit.recipe.canonical import to_recipe
from meldkit.recipe.model import Recipe
from meldkit.recipe.nested import by_name, join, take_apart
from meldkit.recipe.problem import Problem
from meldkit.recipe.sections import Configuration, Section, read_section
from meldkit.recipe.source import MAX_BYTES, Document, read_documents

_NO_RECIPE = "a recipe says what to do with models; 'meldkit new' writes one"
#: Keys of config.json and adapter_config.json; and of files that say how a mixture of experts is made.
_FOREIGN = {"architectures", "model_type", "peft_type"}
_MIXTURE = {"experts", "gate_mode"}

S = TypeVar("S", bound=Section)


def load_recipe(path: str | PathLike[str]) -> Recipe:
    """The recipe in a file, with those of the same file that it uses; `-` is standard input.

    Raises:
        RecipeError: the file cannot be read or is not a recipe, or its recipes do not add up to one; every
            problem is listed with its line.
    """
    return parse_recipe(*_read_text(path))


def load_recipes(path: str | PathLike[str]) -> tuple[Recipe, ...]:
    """The recipes of a file, which `---` separates, in file order, each after those that stand inside it."""
    return parse_recipes(*_read_text(path))


def parse_recipe(text: str, origin: str = "recipe.yml") -> Recipe:
    """The recipe in a YAML text, with its stages; `origin` is the file name for messages."""
    return join(parse_recipes(text, origin))


def parse_recipes(text: str, origin: str = "recipe.yml") -> tuple[Recipe, ...]:
    """The recipes in a YAML text, which `---` separates, and those inside them; their names must differ."""
    recipes = tuple(map(_recipe, take_apart(read_documents(text, origin))))
    by_name(recipes)
    return recipes


def recipe_from_data(data: Mapping[str, object], origin: str = "") -> Recipe:
    """The recipe in Python data, such as `yaml.safe_load` or `json.load` give; `origin` is for messages."""
    return join([_recipe(part) for part in take_apart([Document(data, origin=origin)])])


def read_plain(path: str | PathLike[str]) -> object:
    """The data of a YAML file that holds one document.

    Raises:
        RecipeError: the file cannot be read, or is no such.
    """
    text, origin = _read_text(path)
    documents = read_documents(text, origin)
    if len(documents) > 1:
        raise RecipeError(f"{origin} holds {len(documents)} documents", hint="keep one in the file")
    return documents[0].data


def read_as(kind: type[S], path: str | PathLike[str]) -> tuple[S, Document, str]:
    """The file of another program, whose form a section says; where its parts stand, and its text.

    Raises:
        RecipeError: the file cannot be read or has another form; every problem is listed with its line.
    """
    text, origin = _read_text(path)
    documents = read_documents(text, origin)
    if len(documents) > 1:
        raise RecipeError(f"{origin} holds {len(documents)} documents", hint="keep one in the file")
    return _read(kind, documents[0]), documents[0], text


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


def _recipe(document: Document) -> Recipe:
    if isinstance(document.data, dict) and "merge_method" not in document.data:
        origin = document.origin or "the data"
        if _FOREIGN & document.data.keys():
            raise RecipeError(f"{origin} is the configuration of a model, not a recipe", hint=_NO_RECIPE)
        if _MIXTURE & document.data.keys():
            raise RecipeError(
                f"{origin} says how a mixture of experts is made, not how models are merged",
                hint="'meldkit moe' reads such files",
            )
    return to_recipe(_read(Configuration, document), document)


def _read(kind: type[S], document: Document) -> S:
    """What a document holds, or all problems in it, in file order, each with its place."""
    problems: list[Problem] = []
    section = read_section(kind, document.data, problems)
    if section is not None:
        return section
    found: list[tuple[int, RecipeError]] = []
    for problem in problems:
        place = document.place(problem.path)
        message = f"{place}: {problem.message}" if place else problem.message
        found.append((document.lines.get(problem.path, 0), RecipeError(message, hint=problem.hint)))
    found.sort(key=lambda pair: pair[0])
    if len(found) == 1:
        raise found[0][1]
    raise RecipeError.of(each for _, each in found)
