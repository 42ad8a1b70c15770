"""Models and adapters that are put together from tensors of others, and written by plans of their own."""

from __future__ import annotations

from meldkit.composed.adapters import plan_adapters
from meldkit.composed.factors import Factor, decompose, difference
from meldkit.composed.latest import Latest
from meldkit.composed.tensors import Altered, Held, altered, cast_to, held, normal
from meldkit.composed.write import plan_of, plan_of_adapter

__all__ = [
    "Altered",
    "Factor",
    "Held",
    "Latest",
    "altered",
    "cast_to",
    "decompose",
    "difference",
    "held",
    "normal",
    "plan_adapters",
    "plan_of",
    "plan_of_adapter",
]
