"""How a model's tensors are organised."""

from __future__ import annotations

from meldkit.layout.depth import with_depth
from meldkit.layout.infer import Layout, Place, Stack, infer_layout

__all__ = ["Layout", "Place", "Stack", "infer_layout", "with_depth"]
