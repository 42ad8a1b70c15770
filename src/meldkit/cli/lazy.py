"""Modules that are imported when they are first used."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any


def import_when_used(name: str) -> None:
    """Make `import name` give a module that is run when it is first asked for something that it defines.

    Importing torch takes a second and more, and what works on headers alone never asks for a tensor. The
    standard library's LazyLoader does not do: it runs the module when a second file imports it.
    """
    spec = None if name in sys.modules else find_spec(name)
    if spec is None:
        return
    module = module_from_spec(spec)
    # Without it, importing a module inside this one asks for it, and so runs this one first.
    vars(module).pop("__path__", None)
    module.__class__ = _WhenUsed
    sys.modules[name] = module


class _WhenUsed(ModuleType):
    """A module whose code has not been run."""

    def __getattr__(self, attribute: str) -> Any:
        with _lock:
            if self not in _running and type(self) is _WhenUsed:
                spec = self.__spec__
                assert spec is not None
                assert spec.loader is not None
                self.__path__ = spec.submodule_search_locations or []
                _running.append(self)
                try:
                    spec.loader.exec_module(self)
                finally:
                    _running.remove(self)
                    object.__setattr__(self, "__class__", ModuleType)
            return ModuleType.__getattribute__(self, attribute)


#: Whoever asks while another thread runs the module waits until it is whole.
_lock = RLock()
_running: list[ModuleType] = []
