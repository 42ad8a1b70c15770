"""The merge methods, one file each. `METHODS` is the index, in the order in which they are listed."""

from __future__ import annotations

from meldkit.errors import RecipeError, did_you_mean
from meldkit.methods import linear, passthrough, slerp, task_arithmetic, ties
from meldkit.methods.base import Base, Method, Parameter, Value, Values

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD for module in (linear, passthrough, slerp, task_arithmetic, ties)
}


def get_method(name: str, where: str = "") -> Method:
    """The method of that name.

    Raises:
        RecipeError: unknown; names the nearest one.
    """
    try:
        return METHODS[name]
    except KeyError:
        raise RecipeError(
            f"{where + ': ' if where else ''}unknown merge_method '{name}'", hint=did_you_mean(name, METHODS)
        ) from None


__all__ = ["METHODS", "Base", "Method", "Parameter", "Value", "Values", "get_method"]
