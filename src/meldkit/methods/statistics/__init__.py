"""Statistics over a whole tensor, gathered tile by tile in any order on any thread.

A statistic asks for passes over ranges of the flattened tensor until it is finished. Each range arrives
in tiles; `update` may run in many threads at once and returns a partial result, `absorb` takes partial
results in any order, one at a time. Results do not depend on tile size, threads or order: sums are
formed per chunk and added exactly, and order statistics are exact.
"""

from __future__ import annotations

from meldkit.methods.statistics.base import CHUNK, Bits, Chain, Derived, Known, Range, Statistic
from meldkit.methods.statistics.order import KthMagnitude
from meldkit.methods.statistics.sums import ChunkSums, ColumnGram, Gram, L1Ratio, Sums, exact_sum, l1_ratio

__all__ = [
    "CHUNK",
    "Bits",
    "Chain",
    "ChunkSums",
    "ColumnGram",
    "Derived",
    "Gram",
    "Known",
    "KthMagnitude",
    "L1Ratio",
    "Range",
    "Statistic",
    "Sums",
    "exact_sum",
    "l1_ratio",
]
