"""Runs a plan: tiles, passes, threads."""

from __future__ import annotations

from meldkit.engine.jobs import run_jobs
from meldkit.engine.run import Progress, default_threads, run
from meldkit.engine.tensor_run import PAGE, TILE, Inputs, Sink, TensorRun

__all__ = ["PAGE", "TILE", "Inputs", "Progress", "Sink", "TensorRun", "default_threads", "run", "run_jobs"]
