"""Measures, in a fraction of a second, how fast this machine would carry out a plan."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from meldkit.checkpoint import (
    DTYPES,
    HeldTensor,
    Scratch,
    StoredTensor,
    TensorInfo,
    TileSource,
    open_files,
)
from meldkit.engine.buffers import SPAN, TILE, Buffers, cut
from meldkit.engine.ends import Nowhere, PlanInputs
from meldkit.engine.fused import FusedRun, fused_sources, stored_dtype, takes_torch
from meldkit.engine.jobs import measure_model
from meldkit.engine.run import run, single_threaded_torch
from meldkit.engine.stages import Computed
from meldkit.engine.tensor_run import TensorRun
from meldkit.kernels import stored
from meldkit.plan import Input, Plan, TensorJob, stages_of

#: Seconds for which is read, read again, and computed, if there is so much to do.
_READING, _AGAIN, _COMPUTING = 0.3, 0.05, 0.2
#: Bytes that are read at most: on fast disks more would only push other files out of the cache.
_MOST_READ = 256_000_000
#: Into how many parts the plan is cut, of each of which a tensor is read.
_PLACES = 8
#: Difference between models, relative to their weights, as between fine-tunes of one base.
_DIFFERENCE = 0.01


@dataclass(frozen=True, slots=True)
class Reading:
    """How fast inputs are read, on one thread.

    Attributes:
        bytes: how many were read.
        first: seconds per element, reading and decoding what may or may not be in the system's cache.
        again: the same for what has just been read.
        bytes_per_element: as they are stored.
    """

    bytes: int
    first: float
    again: float
    bytes_per_element: float


def measure_reading(plan: Plan) -> Reading | None:
    """Read a little of inputs from all over the plan, as a merge would; None if there are none."""
    infos = _some_inputs(plan)
    for stage in stages_of(plan):
        infos += _some_inputs(stage.plan)
    if not infos:
        return None
    out, scratch = np.empty(TILE, np.float32), Scratch()
    with open_files() as files:
        opened = [(info.open(files), info) for info in infos]
        elements = 0
        began = time.perf_counter()
        done: list[tuple[TileSource, int, int]] = []
        for source, start, stop in _tiles(opened):
            _read(source, start, stop, out, scratch)
            elements += stop - start
            done.append((source, start, stop))
            if time.perf_counter() - began > _READING or elements * 2 > _MOST_READ:
                break
        first = time.perf_counter() - began
        num_bytes = files.bytes_read
        repeated = 0
        began = time.perf_counter()
        # The latest first: the earliest may have left the cache again.
        for source, start, stop in reversed(done):
            _read(source, start, stop, out, scratch)
            repeated += stop - start
            if time.perf_counter() - began > _AGAIN:
                break
        again = time.perf_counter() - began
    return Reading(num_bytes, first / elements, again / repeated, num_bytes / elements)


def _some_inputs(plan: Plan) -> list[TensorInfo]:
    """Stored inputs of large tensors from all over a plan."""
    jobs = sorted((job for job in plan.jobs if job.numel), key=lambda job: -job.numel)[: 4 * _PLACES]
    jobs = jobs[:: max(1, len(jobs) // _PLACES)]
    infos = [plan.checkpoints[i.checkpoint][i.tensor] for job in jobs for i in job.all_inputs]
    return [info for info in infos if not isinstance(info.encoding, Computed)]


def _read(source: TileSource, start: int, stop: int, out: np.ndarray, scratch: Scratch) -> None:
    if isinstance(source, StoredTensor) and stored.knows(source.dtype):
        source.read_floats(start, out[: stop - start])
    else:
        with single_threaded_torch:
            source.read(start, stop, torch.from_numpy(out[: stop - start]), scratch)


def _tiles(sources: Sequence[tuple[TileSource, TensorInfo]]) -> Iterator[tuple[TileSource, int, int]]:
    """The first span of each, tile by tile."""
    for source, info in sources:
        for start, stop in cut([(0, min(info.numel, SPAN))], TILE):
            yield source, start, stop


def measure_computing(plan: Plan, reading: Reading) -> float:
    """Seconds per element and pass of the method, on one thread; 0 if all is copied.

    The largest tensor that is merged stands for all: a tile goes the way of its elements. Where it takes
    PyTorch, that is one of random numbers; else the tensor's own, less the time for reading them.
    """
    merged = [job for job in plan.jobs if job.method is not None]
    if not merged:
        return 0.0
    largest = max(merged, key=lambda job: job.numel)
    job = replace(largest, shape=_tile_of(largest.shape), file=0, offset=0, scales=None)
    if DTYPES[job.dtype].itemsize == 1:
        job = replace(job, dtype="BF16")
    infos = [plan.checkpoints[i.checkpoint][i.tensor] for i in job.all_inputs]
    with ExitStack() as stack:
        reads = 0.0
        if takes_torch(job, [*map(stored_dtype, infos)]):
            stack.enter_context(single_threaded_torch)
            inputs, run_of = _Random(job), TensorRun
        else:
            inputs = PlanInputs(plan, stack.enter_context(open_files()))
            run_of = partial(FusedRun, fused_sources(job, inputs))
            reads = reading.again * len(infos)
        buffers, sink = Buffers(), Nowhere()
        began = time.perf_counter()
        of_model = measure_model([job], inputs, run, seed=0, size_of=lambda _: TILE)
        in_advance = time.perf_counter() - began if of_model is not None else 0.0
        times: list[float] = []
        until = time.perf_counter() + _COMPUTING
        while True:
            began = time.perf_counter()
            _carry_out(run_of(job, inputs, sink, of_model=of_model), buffers)
            times.append(time.perf_counter() - began)
            if time.perf_counter() > until:
                break
    # The first time takes longer, for memory that is new; it counts only where there is no other.
    usual = sorted(times[1:] or times)[len(times[1:]) // 2]
    return max(0.0, (usual + in_advance) / (job.numel * job.num_passes) - reads)


def _carry_out(run: TensorRun, buffers: Buffers) -> None:
    more = True
    while more:
        while run.spans:
            run.process(*run.spans.popleft(), buffers)
        more = run.advance()


def _tile_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A matrix with rows of that length and about the elements of a tile; a small tensor's own shape."""
    if math.prod(shape) <= TILE:
        return shape
    columns = shape[-1] if len(shape) > 1 and shape[-1] <= TILE else TILE
    return (-(-TILE // columns), columns)


class _Random:
    """Inputs that are random numbers, in memory: what a fine-tune is to its base, each is to the first."""

    def __init__(self, job: TensorJob) -> None:
        generator = torch.Generator().manual_seed(0)
        first = torch.randn(job.numel, generator=generator)
        self._held: list[HeldTensor] = []
        for _ in job.all_inputs:
            change = torch.randn(job.numel, generator=generator).mul_(_DIFFERENCE)
            self._held.append(HeldTensor(change.add_(first)))
        self._next = 0

    def open(self, tensor: Input) -> TileSource:
        del tensor
        self._next += 1
        return self._held[self._next % len(self._held)]

    def open_raw(self, tensor: Input, dtype: str | None) -> StoredTensor | None:
        del tensor, dtype

    def label(self, tensor: Input) -> str:
        del tensor
        return "random numbers"
