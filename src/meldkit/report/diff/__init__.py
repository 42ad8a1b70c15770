"""How the weights of models differ."""

from __future__ import annotations

from meldkit.report.diff.model import (
    ComparedModel,
    Difference,
    Finding,
    ModelComparison,
    Pair,
    PairKey,
    Relation,
    Spectrum,
    TaskDifference,
    TensorDifference,
    total,
)

__all__ = [
    "ComparedModel",
    "Difference",
    "Finding",
    "ModelComparison",
    "Pair",
    "PairKey",
    "Relation",
    "Spectrum",
    "TaskDifference",
    "TensorDifference",
    "total",
]
