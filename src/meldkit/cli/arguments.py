"""What stands on command lines, and how it is completed with the tab key: recipes, models, methods."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import click
from click.shell_completion import CompletionItem

import meldkit
from meldkit.errors import RecipeError
from meldkit.paths import output_path

#: Files that are models by themselves.
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
_RECIPES = (".yml", ".yaml")
#: How the hub's cache calls the folder of a model.
_CACHED = "models--"


class Recipe(click.Path):
    """The file of a recipe; `-` is standard input."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """YAML files and folders."""
        del ctx, param
        return [*_files(incomplete, lambda path: path.suffix in _RECIPES), _folders(incomplete)]


class Folder(click.Path):
    """A folder to write."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path; a recipe stands in the wrong place."""
        if not str(value):
            raise RecipeError("OUT is an empty text", hint="name a folder; is a variable not set?")
        if _is_recipe(value):
            command = ctx.command_path if ctx else "meldkit merge"
            raise RecipeError(
                f"'{value}' is a recipe, and OUT comes last",
                hint=f"{command} {value} {ctx.params.get('recipe', 'OUT') if ctx else 'OUT'}",
            )
        return output_path(cast(Path, super().convert(value, param, ctx)))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Folders."""
        del ctx, param
        return [_folders(incomplete)]


class Merged(Folder):
    """A folder that a merge has written."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path; a recipe is not what was made of it."""
        if _is_recipe(value):
            command = ctx.command_path if ctx else "meldkit verify"
            raise RecipeError(
                f"'{value}' is a recipe, not a merged model",
                hint=f"name the folder that the merge has written: {command} OUT",
            )
        return super().convert(value, param, ctx)


class Model(click.types.StringParamType):
    """A model as recipes name it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text; a recipe is no model."""
        del param, ctx
        if _is_recipe(value):
            raise RecipeError(
                f"'{value}' is a recipe, not a model", hint=f"meldkit plan {value} shows what it would do"
            )
        return cast(str, value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Folders, weight files, and models of the hub that have been downloaded."""
        del ctx, param
        return models(incomplete)


class Method(click.types.StringParamType):
    """The name of a merge method."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The methods that come with meldkit."""
        del ctx, param
        return methods(incomplete)


def _is_recipe(value: Any) -> bool:
    return str(value).endswith(_RECIPES) and Path(value).is_file()


def methods(incomplete: str) -> list[CompletionItem]:
    """Methods with what they do; read from a file, because importing them all takes too long."""
    schema = _schema()
    known = schema["properties"]["merge_method"]
    pairs = zip(known["enum"], known["enumDescriptions"], strict=True)
    # Nobody writes recipes for adapters alone by 'meldkit new'.
    of_models = {branch["if"]["properties"]["merge_method"]["const"] for branch in schema["allOf"]}
    return [
        CompletionItem(name, help=text)
        for name, text in pairs
        if name in of_models and name.startswith(incomplete)
    ]


def parameters() -> list[str]:
    """Names of all methods' parameters."""
    return _schema()["$defs"]["parameter-name"]["enum"]


def _schema() -> dict[str, Any]:
    path = Path(meldkit.__file__).parent / "recipe" / "recipe.schema.json"
    return json.loads(path.read_text("utf-8"))


def models(incomplete: str) -> list[CompletionItem]:
    """Folders, weight files, and models in the hub's cache."""
    files = _files(incomplete, lambda path: path.suffix in _WEIGHTS)
    cached = [CompletionItem(name) for name in _downloaded() if name.startswith(incomplete)]
    return [*files, *cached, _folders(incomplete)]


def _downloaded() -> list[str]:
    """Ids of the models in the hub's cache."""
    home = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    names = sorted(path.name for path in cache.iterdir()) if cache.is_dir() else []
    return [n.removeprefix(_CACHED).replace("--", "/", 1) for n in names if n.startswith(_CACHED)]


def _folders(incomplete: str) -> CompletionItem:
    """All folders; the shell, or the class for bash, lists them."""
    return CompletionItem(incomplete, type="dir")


def _files(incomplete: str, wanted: Callable[[Path], bool]) -> list[CompletionItem]:
    return [
        CompletionItem(text, path=True)
        for text, path in listed(incomplete)
        if wanted(path) and not path.is_dir()
    ]


def listed(incomplete: str) -> Iterator[tuple[str, Path]]:
    """What begins as the user wrote, in the user's words and as a path; hidden files only if asked for."""
    start = incomplete.rpartition("/")[2]
    head = incomplete.removesuffix(start)
    try:
        paths = sorted(Path(head or ".").expanduser().iterdir())
    except (OSError, RuntimeError):
        return
    for path in paths:
        if path.name.startswith(start) and (start or not path.name.startswith(".")):
            yield head + path.name, path
