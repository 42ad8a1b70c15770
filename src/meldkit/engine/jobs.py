"""Runs the jobs of a plan: what concerns the whole model first, then tensor by tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any

from meldkit.checkpoint import StoredTensor, TileSource
from meldkit.engine.buffers import TILE, Buffers, cut
from meldkit.engine.device import ON_CPU, Device, tile_for
from meldkit.engine.ends import Inputs, Observer, Sink
from meldkit.engine.fused import (
    FusedRun,
    fused_sources,
    made_without_torch,
    tile_factor,
    tile_of,
    without_torch,
)
from meldkit.engine.run import Progress, Runnable, run
from meldkit.engine.tensor_run import TensorRun, read_tile
from meldkit.kernels.tile import Failed
from meldkit.methods import Noise, Whole
from meldkit.methods.statistics import CHUNK, Range, Statistic
from meldkit.plan import TensorJob


def run_jobs(
    jobs: Sequence[TensorJob],
    inputs: Inputs,
    sink: Sink,
    *,
    finished: frozenset[str] = frozenset(),
    seed: int = 0,
    allow_nonfinite: bool = False,
    threads: int = 1,
    devices: Sequence[Device] = ON_CPU,
    tile: int = TILE,
    progress: Callable[[Progress], None] | None = None,
    observe: Observer | None = None,
) -> None:
    """Carry out the jobs of a model.

    Args:
        jobs: all of them, in the order of the output.
        inputs: where their inputs come from.
        sink: where results go.
        finished: names of output tensors that need not be made again; they still count for what is
            measured over the whole model.
        seed: of random methods.
        allow_nonfinite: let NaN and Inf through, in inputs and output.
        threads: worker threads.
        devices: that they compute on.
        tile: elements per tile, a multiple of `CHUNK`, where a device has no number of its own; changes
            nothing in the result.
        progress: called about ten times a second.
        observe: told of everything that is made.

    Raises:
        MeldError: whatever the first failing tile raised; the others are stopped.
    """
    before = 0

    def told(state: Progress) -> None:
        """Each run counts from 0; the sum of all is what is told."""
        if progress is not None:
            progress(Progress(before + state.elements, state.tensor))

    def run_all(tensors: Iterable[Runnable], *, with_torch: bool = True) -> None:
        nonlocal before
        before += run(tensors, threads=threads, devices=devices, with_torch=with_torch, progress=told)

    def sizes(job: TensorJob) -> dict[str, Any]:
        """Of its tiles and spans; results are written tile by tile where tiles are large."""
        large = tile_for(devices, job, threads)
        return {"tile": tile} if large is None else {"tile": large, "span": large}

    in_memory = devices[0].in_memory
    of_model = measure_model(
        jobs, inputs, run_all, seed=seed, size_of=lambda job: sizes(job)["tile"], in_memory=in_memory
    )
    options: dict[str, Any] = {
        "seed": seed,
        "of_model": of_model,
        "allow_nonfinite": allow_nonfinite,
        "observe": observe,
    }

    def run_of(job: TensorJob) -> TensorRun:
        """Opens its inputs: what is not stored as it is, such as factors, is in memory from then on."""
        fused = _fused(job, inputs, in_memory)
        if fused:
            return FusedRun(fused, job, inputs, sink, **options, **sizes(job))
        return TensorRun(job, inputs, sink, **options, **sizes(job))

    left = [job for job in jobs if job.name not in finished]
    plain = in_memory and all(made_without_torch(job, inputs) for job in left)
    run_all(map(run_of, left), with_torch=not plain)


def measure_model(
    jobs: Sequence[TensorJob],
    inputs: Inputs,
    run_all: Callable[..., object],
    *,
    seed: int,
    size_of: Callable[[TensorJob], int],
    in_memory: bool = True,
) -> Any:
    """What a method wants to know of all tensors together, one after the other in order; None if nothing."""
    merged = [job for job in jobs if job.method is not None]
    if not merged:
        return None
    first = merged[0]
    assert first.method is not None
    total = sum(job.numel for job in merged)
    whole = Whole(len(first.inputs), (total,), Noise(seed, ""))
    statistic = first.method.model_statistic(whole, first.values)
    if statistic is None:
        return None
    lock = Lock()
    with_torch = not (in_memory and all(made_without_torch(job, inputs) for job in merged))

    def part(job: TensorJob, own: Sequence[Range], offset: int) -> _Measuring:
        fused = _fused(job, inputs, in_memory)
        tile = size_of(job) * tile_factor(job, torch=not without_torch(job, fused))
        return _Measuring(job, inputs, fused, statistic, own, offset, lock, tile)

    while ranges := statistic.ranges():
        run_all(_pass(merged, ranges, part), with_torch=with_torch)
        statistic.finish_pass()
    return statistic.result


def _fused(job: TensorJob, inputs: Inputs, in_memory: bool) -> list[TileSource]:
    """What compiled loops work on, if they can."""
    return fused_sources(job, inputs) if in_memory else []


def _pass(
    jobs: Sequence[TensorJob],
    ranges: Sequence[Range],
    part: Callable[[TensorJob, Sequence[Range], int], _Measuring],
) -> Iterator[_Measuring]:
    offset = 0
    for job in jobs:
        own = [
            (max(start, offset) - offset, min(stop, offset + job.numel) - offset)
            for start, stop in ranges
            if start < offset + job.numel and stop > offset
        ]
        if own:
            yield part(job, own, offset)
        offset += job.numel


class _Measuring:
    """One tensor's part in a pass over the whole model; to the scheduler like a `TensorRun`."""

    def __init__(
        self,
        job: TensorJob,
        inputs: Inputs,
        fused: Sequence[TileSource],
        statistic: Statistic,
        ranges: Sequence[Range],
        offset: int,
        lock: Lock,
        tile: int,
    ) -> None:
        self.job = job
        self.spans = deque(cut(ranges, tile))
        self._tile = tile
        self.outstanding = 0
        self._sources = fused or [inputs.open(i) for i in job.all_inputs]
        self._fused = fused
        self._statistic = statistic
        self._offset = offset
        self._lock = lock

    def process(self, start: int, stop: int, buffers: Buffers) -> None:
        for source in self._sources:
            if isinstance(source, StoredTensor):
                source.will_read(start, stop)

        def measure(first: int, last: int) -> None:
            partial = self._partial(first, last, buffers)
            with self._lock:
                self._statistic.absorb(partial)

        buffers.each_tile(start, stop, self._tile, CHUNK, measure)

    def _partial(self, start: int, stop: int, buffers: Buffers) -> Any:
        if self._fused:
            room = buffers.measuring
            tile = tile_of(self.job, self._fused, start, stop, room, grain=CHUNK, check=False)
            with suppress(Failed):
                return self._statistic.update(tile, self._offset + start)
        models, _ = read_tile(self.job, self._sources, start, stop, buffers.measuring)
        return self._statistic.update(models, self._offset + start)

    def advance(self) -> bool:
        return False
