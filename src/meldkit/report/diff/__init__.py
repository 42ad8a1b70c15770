"""How the weights of models differ."""

from __future__ import annotations

from meldkit.report.diff.difference import Difference, Spectrum, TaskDifference, total
from meldkit.report.diff.model import (
    ComparedModel,
    Finding,
    ModelComparison,
    Pair,
    PairKey,
    Relation,
    TensorDifference,
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
