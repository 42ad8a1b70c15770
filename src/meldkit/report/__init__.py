"""What models are made of."""

from __future__ import annotations

from meldkit.report.inspect import (
    AdapterFacts,
    Inspection,
    PartSummary,
    Quantisation,
    TokenizerFacts,
    inspect,
)
from meldkit.report.relatives import Relative
from meldkit.report.tokenizers import (
    PairDifference,
    TokenizerComparison,
    TokenizerSummary,
    compare_tokenizers,
)

__all__ = [
    "AdapterFacts",
    "Inspection",
    "PairDifference",
    "PartSummary",
    "Quantisation",
    "Relative",
    "TokenizerComparison",
    "TokenizerFacts",
    "TokenizerSummary",
    "compare_tokenizers",
    "inspect",
]
