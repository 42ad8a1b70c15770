"""What a merge will do, decided from the recipe and the checkpoints' headers alone."""

from __future__ import annotations

from meldkit.plan.adapters import adapter_folders, check_gives_model
from meldkit.plan.build import DEFAULT_SHARD_SIZE, build_plan
from meldkit.plan.explain import Decision, Decisions, decisions, why_copied
from meldkit.plan.model import NUMERIC_VERSION, OutputFile, Plan, TensorJob, Tool
from meldkit.plan.slots import Input, Slot
from meldkit.plan.stage import Composed, OtherVocabulary, Stage, stages_of, stored_inputs
from meldkit.plan.tables import embedding_rows

__all__ = [
    "DEFAULT_SHARD_SIZE",
    "NUMERIC_VERSION",
    "Composed",
    "Decision",
    "Decisions",
    "Input",
    "OtherVocabulary",
    "OutputFile",
    "Plan",
    "Slot",
    "Stage",
    "TensorJob",
    "Tool",
    "adapter_folders",
    "build_plan",
    "check_gives_model",
    "decisions",
    "embedding_rows",
    "stages_of",
    "stored_inputs",
    "why_copied",
]
