"""Recipes that merge adapters, without the model that they were trained on."""

from __future__ import annotations

from pathlib import Path

from meldkit.checkpoint import Locate, lone_adapters
from meldkit.errors import RecipeError
from meldkit.recipe import ADAPTER_METHODS, Recipe


def adapter_folders(recipe: Recipe, cache: Path | None, locate: Locate | None = None) -> list[Path] | None:
    """The folders of the adapters that a recipe merges; None if it names a model under them, or other models.

    Args:
        recipe: its models.
        cache: where downloads are kept; None for the hub's own cache.
        locate: where models are now that lay elsewhere.

    Raises:
        RecipeError: a method of adapters, and models that are none.
    """
    method, where = recipe.merge_method, recipe.lines.get("merge_method", recipe.origin)
    plain = len(recipe.modules) == 1 and recipe.modules[0].from_models and not recipe.stages
    if method not in ADAPTER_METHODS and (not plain or method == "passthrough"):
        return None
    # Methods of adapters alone say what is meant; for others, nothing is downloaded to find it out.
    anywhere = method in ADAPTER_METHODS
    folders = lone_adapters(recipe.models(), cache=cache, anywhere=anywhere, locate=locate) if plain else None
    base = recipe.base_model
    if folders is None and plain and base is not None and method in ADAPTER_METHODS:
        others = [ref for ref in recipe.models() if ref != base]
        if others and lone_adapters(others, cache=cache, anywhere=True, locate=locate) is not None:
            place = recipe.lines.get("base_model", recipe.origin)
            raise RecipeError(
                f"{place + ': ' if place else ''}merge_method '{method}' merges adapters without the model "
                f"under them, and base_model names one: '{base}'",
                hint=f"leave out base_model; what comes out is then laid over the model as {base}+OUT",
            )
    if folders is None and method in ADAPTER_METHODS:
        raise RecipeError(
            f"{where + ': ' if where else ''}merge_method '{method}' merges adapters, and not all models are",
            hint="name folders of LoRA adapters under 'models:', without the model that they were trained on",
        )
    return folders


def check_gives_model(name: str, recipe: Recipe) -> None:
    """Refuse a recipe of adapters where others use what it gives as a model.

    Raises:
        RecipeError: it gives an adapter.
    """
    if recipe.merge_method in ADAPTER_METHODS:
        raise RecipeError(
            f"the recipe '{name}' gives an adapter ({recipe.merge_method}), not a model",
            hint="carry it out by itself first, and name its folder as BASE_MODEL+FOLDER",
        )
