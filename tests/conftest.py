"""Shapes and dtypes in the annotations of the mathematics are checked in every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jaxtyping import install_import_hook

install_import_hook(["meldkit.methods", "meldkit.kernels"], "typecheck.checked")


@pytest.fixture(autouse=True)
def methods_of_plugins_are_forgotten() -> Iterator[None]:
    """A process knows the methods of every plugin that it has loaded; tests share one."""
    from meldkit.methods import METHODS

    known = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(known)
