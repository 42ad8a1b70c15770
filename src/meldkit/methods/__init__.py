"""The merge methods, one file each. `METHODS` is the index, in the order in which they are listed."""

from __future__ import annotations

import runpy
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from meldkit.errors import RecipeError, did_you_mean
from meldkit.methods import (
    arcee_fusion,
    breadcrumbs,
    breadcrumbs_ties,
    dare_linear,
    dare_ties,
    della,
    della_linear,
    karcher,
    linear,
    model_stock,
    multislerp,
    nearswap,
    nuslerp,
    passthrough,
    ram,
    ramplus_tl,
    sce,
    slerp,
    task_arithmetic,
    ties,
)
from meldkit.methods.base import Base, Method, Whole
from meldkit.methods.noise import Noise
from meldkit.methods.parameter import Parameter, Value, Values

#: Group under which packages declare methods of their own: name = "package.module:METHOD".
ENTRY_POINTS = "meldkit.methods"

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (
        # averages
        linear,
        slerp,
        nuslerp,
        multislerp,
        karcher,
        # task vectors
        task_arithmetic,
        ties,
        dare_linear,
        dare_ties,
        della,
        della_linear,
        breadcrumbs,
        breadcrumbs_ties,
        sce,
        ram,
        ramplus_tl,
        model_stock,
        # two models
        nearswap,
        arcee_fusion,
        # one model
        passthrough,
    )
}


def get_method(name: str, where: str = "", *, others: Iterable[str] = ()) -> Method:
    """The method of that name, ours or one that an installed package declares.

    Args:
        name: as in `merge_method`.
        where: place in the recipe, for messages.
        others: what else could have stood there.

    Raises:
        RecipeError: unknown; names the nearest one.
    """
    if name not in METHODS:
        from importlib.metadata import entry_points

        for entry in entry_points(group=ENTRY_POINTS, name=name):
            method = entry.load()
            register(method)
            _sources[method.name] = f"{entry.value} {entry.dist.version if entry.dist else ''}"
    try:
        return METHODS[name]
    except KeyError:
        raise RecipeError(
            f"{where + ': ' if where else ''}unknown merge_method '{name}'",
            hint=did_you_mean(name, [*METHODS, *others]),
        ) from None


_loaded: set[Path] = set()
_sources: dict[str, str] = {}


def source_of(method: Method) -> str | None:
    """What tells a method that is not ours from an earlier version of it; None for ours."""
    return _sources.get(method.name)


def register(method: Method) -> None:
    """Make a method known by its name.

    Raises:
        RecipeError: another method has that name.
    """
    if not isinstance(method, Method):  # pyright: ignore[reportUnnecessaryIsInstance] - comes from outside
        raise RecipeError(
            f"{method!r} is not a merge method", hint="it must be a meldkit.methods.base.Method"
        )
    if METHODS.setdefault(method.name, method) is not method:
        raise RecipeError(f"there is already a merge_method '{method.name}'", hint="give yours another name")


def load_plugin(path: Path) -> None:
    """Register the `METHOD` of a Python file. The file is run: load only what you trust.

    Raises:
        RecipeError: no such file, it fails, or it has no METHOD.
    """
    if path.resolve() in _loaded:
        return
    try:
        content = runpy.run_path(str(path))
    except OSError as e:
        raise RecipeError(f"cannot read plugin {path}: {e.strerror}") from e
    except (Exception, SystemExit) as e:
        raise RecipeError(f"plugin {path} cannot be loaded: {type(e).__name__}: {e}") from e
    if "METHOD" not in content:
        raise RecipeError(f"plugin {path} has no METHOD", hint="see docs/extending.md")
    method = content["METHOD"]
    register(method)
    _sources[method.name] = sha256(path.read_bytes()).hexdigest()
    _loaded.add(path.resolve())


__all__ = [
    "METHODS",
    "Base",
    "Method",
    "Noise",
    "Parameter",
    "Value",
    "Values",
    "Whole",
    "get_method",
    "load_plugin",
    "register",
    "source_of",
]
