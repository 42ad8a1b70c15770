"""Recipes: what a user writes, in mergekit's dialect of YAML, and the one canonical form of it."""

from meldkit.recipe.load import load_recipe, load_recipes, parse_recipe, parse_recipes, recipe_from_data
from meldkit.recipe.model import (
    ModelToken,
    Module,
    Parameters,
    Recipe,
    Setting,
    Slice,
    Source,
    TokenEntry,
    TokenizerSpec,
)
from meldkit.recipe.nested import by_name, join, mentions, order, relocated
from meldkit.recipe.refs import AdapterRef, ModelRef
from meldkit.recipe.resolve import Resolved, resolve
from meldkit.recipe.values import (
    Filtered,
    Gradient,
    Scalar,
    Value,
    choices,
    evaluate,
    filter_matches,
    filters_of,
    parse_value,
    reaches,
    to_plain,
    unreached_by,
)

__all__ = [
    "AdapterRef",
    "Filtered",
    "Gradient",
    "ModelRef",
    "ModelToken",
    "Module",
    "Parameters",
    "Recipe",
    "Resolved",
    "Scalar",
    "Setting",
    "Slice",
    "Source",
    "TokenEntry",
    "TokenizerSpec",
    "Value",
    "by_name",
    "choices",
    "evaluate",
    "filter_matches",
    "filters_of",
    "join",
    "load_recipe",
    "load_recipes",
    "mentions",
    "order",
    "parse_recipe",
    "parse_recipes",
    "parse_value",
    "reaches",
    "recipe_from_data",
    "relocated",
    "resolve",
    "to_plain",
    "unreached_by",
]
