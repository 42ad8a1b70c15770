"""What models are made of."""

from __future__ import annotations

from meldkit.report.inspect import Inspection, PartSummary, inspect
from meldkit.report.tokenizers import (
    PairDifference,
    TokenizerComparison,
    TokenizerSummary,
    compare_tokenizers,
)

__all__ = [
    "Inspection",
    "PairDifference",
    "PartSummary",
    "TokenizerComparison",
    "TokenizerSummary",
    "compare_tokenizers",
    "inspect",
]
