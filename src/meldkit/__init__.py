"""Merge LLM checkpoints at the speed of copying them, in bounded memory."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from meldkit.api import merge, methods, plan
    from meldkit.memory import merge_state_dicts, merge_tensors

__all__ = ["__version__", "merge", "merge_state_dicts", "merge_tensors", "methods", "plan"]

# Looked up on first use: they import torch, which `meldkit --help` must not wait for.
_HOME = {
    "merge": "meldkit.api",
    "methods": "meldkit.api",
    "plan": "meldkit.api",
    "merge_tensors": "meldkit.memory",
    "merge_state_dicts": "meldkit.memory",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        function = getattr(import_module(_HOME[name]), name)
        module = sys.modules.get(f"meldkit.{name}")
        if module is not None:
            # `import meldkit.plan.build as …` looks for an attribute `build` of what this returns.
            function.__dict__ = module.__dict__
        return function
    raise AttributeError(f"module 'meldkit' has no attribute '{name}'")


class _Package(ModuleType):
    """Keeps `meldkit.merge` and `meldkit.plan` the functions.

    There are modules of the same names (`meldkit.merge` is where mergekit's notebooks import `run_merge`
    from), which importing them would put in the functions' place.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
