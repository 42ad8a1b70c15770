"""Runs a plan: tiles, passes, threads."""

from __future__ import annotations

from meldkit.engine.buffers import PAGE, TILE
from meldkit.engine.cost import Memory, Work, memory_of, work_of
from meldkit.engine.device import ON_CPU, Device, find_devices, num_workers
from meldkit.engine.ends import Inputs, Nowhere, Observer, PlanInputs, Sink
from meldkit.engine.jobs import run_jobs
from meldkit.engine.run import Progress, default_threads, run
from meldkit.engine.stages import as_stage, let_through
from meldkit.engine.tensor_run import TensorRun

__all__ = [
    "ON_CPU",
    "PAGE",
    "TILE",
    "Device",
    "Inputs",
    "Memory",
    "Nowhere",
    "Observer",
    "PlanInputs",
    "Progress",
    "Sink",
    "TensorRun",
    "Work",
    "as_stage",
    "default_threads",
    "find_devices",
    "let_through",
    "memory_of",
    "num_workers",
    "run",
    "run_jobs",
    "work_of",
]
