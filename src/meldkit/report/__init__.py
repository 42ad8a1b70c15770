"""What models are made of."""

from __future__ import annotations

from meldkit.report.diff import (
    ComparedModel,
    Difference,
    Finding,
    ModelComparison,
    Pair,
    Relation,
    Spectrum,
    TaskDifference,
    TensorDifference,
    diff,
)
from meldkit.report.inspect import Inspection, PartSummary, inspect
from meldkit.report.tokenizers import (
    PairDifference,
    TokenizerComparison,
    TokenizerSummary,
    compare_tokenizers,
)

__all__ = [
    "ComparedModel",
    "Difference",
    "Finding",
    "Inspection",
    "ModelComparison",
    "Pair",
    "PairDifference",
    "PartSummary",
    "Relation",
    "Spectrum",
    "TaskDifference",
    "TensorDifference",
    "TokenizerComparison",
    "TokenizerSummary",
    "compare_tokenizers",
    "diff",
    "inspect",
]
