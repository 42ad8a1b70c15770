"""Runs the jobs of a plan: what concerns the whole model first, then tensor by tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock
from typing import Any

from meldkit.engine.combination import CombinationRun, stored_sources
from meldkit.engine.ends import Inputs, Observer, Sink
from meldkit.engine.run import Progress, Runnable, run
from meldkit.engine.tensor_run import TILE, Buffers, TensorRun, cut, read_tile
from meldkit.methods import Noise, Whole
from meldkit.methods.statistics import Range, Statistic
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
        tile: elements per tile, a multiple of `CHUNK`; changes nothing in the result.
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
        before += run(tensors, threads=threads, with_torch=with_torch, progress=told)

    of_model = measure_model(jobs, inputs, run_all, seed=seed, tile=tile)
    options: dict[str, Any] = {
        "seed": seed,
        "tile": tile,
        "of_model": of_model,
        "allow_nonfinite": allow_nonfinite,
        "observe": observe,
    }

    left = [(job, stored_sources(job, inputs)) for job in jobs if job.name not in finished]
    tensors = (
        CombinationRun(stored, job, inputs, sink, **options)
        if stored
        else TensorRun(job, inputs, sink, **options)
        for job, stored in left
    )
    run_all(tensors, with_torch=not all(stored for _, stored in left))


def measure_model(
    jobs: Sequence[TensorJob],
    inputs: Inputs,
    run_all: Callable[[Iterable[Runnable]], object],
    *,
    seed: int,
    tile: int,
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
    while ranges := statistic.ranges():
        run_all(_pass(merged, inputs, statistic, ranges, lock, tile))
        statistic.finish_pass()
    return statistic.result


def _pass(
    jobs: Sequence[TensorJob],
    inputs: Inputs,
    statistic: Statistic,
    ranges: Sequence[Range],
    lock: Lock,
    tile: int,
) -> Iterator[_Measuring]:
    offset = 0
    for job in jobs:
        own = [
            (max(start, offset) - offset, min(stop, offset + job.numel) - offset)
            for start, stop in ranges
            if start < offset + job.numel and stop > offset
        ]
        if own:
            yield _Measuring(job, inputs, statistic, own, offset, lock, tile)
        offset += job.numel


class _Measuring:
    """One tensor's part in a pass over the whole model; to the scheduler like a `TensorRun`."""

    def __init__(
        self,
        job: TensorJob,
        inputs: Inputs,
        statistic: Statistic,
        ranges: Sequence[Range],
        offset: int,
        lock: Lock,
        tile: int,
    ) -> None:
        self.job = job
        self.spans = deque(cut(ranges, tile))
        self.outstanding = 0
        self._sources = [inputs.open(i) for i in job.all_inputs]
        self._statistic = statistic
        self._offset = offset
        self._lock = lock

    def process(self, start: int, stop: int, buffers: Buffers) -> None:
        models, _ = read_tile(self.job, self._sources, start, stop, buffers)
        partial = self._statistic.update(models, self._offset + start)
        with self._lock:
            self._statistic.absorb(partial)

    def advance(self) -> bool:
        return False
