"""What a merge will do, decided from the recipe and the checkpoints' headers alone."""

from __future__ import annotations

from meldkit.plan.build import DEFAULT_SHARD_SIZE, build_plan
from meldkit.plan.model import Input, OutputFile, Plan, TensorJob
from meldkit.plan.tables import embedding_rows

__all__ = ["DEFAULT_SHARD_SIZE", "Input", "OutputFile", "Plan", "TensorJob", "build_plan", "embedding_rows"]
