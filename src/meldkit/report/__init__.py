"""What models are made of, and whether they work."""

from __future__ import annotations

from meldkit.report.inspect import Inspection, PartSummary, inspect
from meldkit.report.smoke import ModelRun, SmokeTest, smoke
from meldkit.report.tokenizers import (
    PairDifference,
    TokenizerComparison,
    TokenizerSummary,
    compare_tokenizers,
)

__all__ = [
    "Inspection",
    "ModelRun",
    "PairDifference",
    "PartSummary",
    "SmokeTest",
    "TokenizerComparison",
    "TokenizerSummary",
    "compare_tokenizers",
    "inspect",
    "smoke",
]
