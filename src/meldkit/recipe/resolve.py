"""Which of several places decides a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meldkit.recipe.model import Parameters, Setting
from meldkit.recipe.values import Scalar, evaluate


@dataclass(frozen=True, slots=True)
class Resolved:
    """A parameter's value for one tensor: from which scope, and as what it was written there."""

    value: Scalar
    setting: Setting
    scope: str

    @property
    def where(self) -> str:
        """Where that is written: "recipe.yml:12"; "" for Python data."""
        return self.setting.where


def resolve(
    key: str, tensor_name: str, t: float, scopes: Sequence[tuple[str, Parameters]]
) -> Resolved | None:
    """The value of a parameter for one tensor; the first scope that has one decides.

    A scope whose filters match nothing is passed over.

    Args:
        key: the parameter's name.
        tensor_name: the name that filters look at.
        t: depth inside the slice, 0 to 1.
        scopes: (name, parameters), the narrowest first: "source", "slice", "module", "recipe".

    Returns:
        None when no scope decides.
    """
    for scope, parameters in scopes:
        setting = parameters.get(key)
        if setting is None:
            continue
        value = evaluate(setting.value, tensor_name, t)
        if value is not None:
            return Resolved(value, setting, scope)
    return None
