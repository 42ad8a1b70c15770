"""What models are made of, and what merges would do."""

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
from meldkit.report.explain import (
    Explanation,
    Grid,
    ModelValues,
    TensorExplanation,
    explain,
    explain_stages,
    grids,
    varying,
)
from meldkit.report.groups import Group, group_tensors
from meldkit.report.inspect import (
    AdapterFacts,
    Inspection,
    PartSummary,
    Quantisation,
    TokenizerFacts,
    inspect,
)
from meldkit.report.plan import (
    Cost,
    InputModel,
    Output,
    PlanSummary,
    StageSummary,
    Treatment,
    summarise_plan,
    with_time,
)
from meldkit.report.probe import Probe
from meldkit.report.relatives import Relative
from meldkit.report.smoke import ModelRun, SmokeTest, smoke
from meldkit.report.tokenizers import (
    PairDifference,
    TokenizerComparison,
    TokenizerSummary,
    compare_tokenizers,
)
from meldkit.report.verify import Damage, OutputCheck, verify_output

__all__ = [
    "AdapterFacts",
    "ComparedModel",
    "Cost",
    "Damage",
    "Difference",
    "Explanation",
    "Finding",
    "Grid",
    "Group",
    "InputModel",
    "Inspection",
    "ModelComparison",
    "ModelRun",
    "ModelValues",
    "Output",
    "OutputCheck",
    "Pair",
    "PairDifference",
    "PartSummary",
    "PlanSummary",
    "Probe",
    "Quantisation",
    "Relation",
    "Relative",
    "SmokeTest",
    "Spectrum",
    "StageSummary",
    "TaskDifference",
    "TensorDifference",
    "TensorExplanation",
    "TokenizerComparison",
    "TokenizerFacts",
    "TokenizerSummary",
    "Treatment",
    "compare_tokenizers",
    "diff",
    "explain",
    "explain_stages",
    "grids",
    "group_tensors",
    "inspect",
    "smoke",
    "summarise_plan",
    "varying",
    "verify_output",
    "with_time",
]
