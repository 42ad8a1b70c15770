"""Runs a plan: tiles, passes, threads."""

from __future__ import annotations

from meldkit.engine.cost import Memory, Work, memory_of, work_of
from meldkit.engine.ends import Inputs, Observer, PlanInputs, Sink
from meldkit.engine.jobs import run_jobs
from meldkit.engine.run import Progress, default_threads, run
from meldkit.engine.tensor_run import PAGE, TILE, TensorRun

__all__ = [
    "PAGE",
    "TILE",
    "Inputs",
    "Memory",
    "Observer",
    "PlanInputs",
    "Progress",
    "Sink",
    "TensorRun",
    "Work",
    "default_threads",
    "memory_of",
    "run",
    "run_jobs",
    "work_of",
]
