"""Shapes and dtypes in the annotations of the mathematics are checked in every test."""

from __future__ import annotations

from jaxtyping import install_import_hook

install_import_hook("meldkit.methods", "typecheck.checked")
