"""How a model's tensors are organised."""

from __future__ import annotations

from meldkit.layout.depth import Origin, with_depth
from meldkit.layout.infer import Layout, Place, Stack, infer_layout
from meldkit.layout.parts import Part, all_parts, find_part, part_of

__all__ = [
    "Layout",
    "Origin",
    "Part",
    "Place",
    "Stack",
    "all_parts",
    "find_part",
    "infer_layout",
    "part_of",
    "with_depth",
]
