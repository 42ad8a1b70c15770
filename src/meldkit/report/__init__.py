"""What models are made of, and what merges would do."""

from __future__ import annotations

from meldkit.report.inspect import Inspection, PartSummary, inspect
from meldkit.report.plan import Cost, InputModel, Output, PlanSummary, Treatment, summarise_plan
from meldkit.report.probe import Probe
from meldkit.report.tokenizers import (
    PairDifference,
    TokenizerComparison,
    TokenizerSummary,
    compare_tokenizers,
)

__all__ = [
    "Cost",
    "InputModel",
    "Inspection",
    "Output",
    "PairDifference",
    "PartSummary",
    "PlanSummary",
    "Probe",
    "TokenizerComparison",
    "TokenizerSummary",
    "Treatment",
    "compare_tokenizers",
    "inspect",
    "summarise_plan",
]
