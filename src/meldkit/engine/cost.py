"""What running a plan takes, known before it runs: passes over the data, and memory."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meldkit.checkpoint import DTYPES
from meldkit.engine.blocks import elements_of_row
from meldkit.engine.tensor_run import PAGE, SPAN, TILE
from meldkit.methods import Noise, Whole
from meldkit.methods.statistics import CHUNK
from meldkit.plan import Plan, TensorJob

_FLOAT = 4
#: Bytes per element of a tile for what methods set aside: two numbers, and where they draw random ones, those
#: and what is compared with them, besides a flag per model.
_ASIDE, _ASIDE_RANDOM = 2 * _FLOAT, 16
#: Bytes per element of a tile while a tensor is decoded that is not stored as an array of its type.
_DECODING = 4 * _FLOAT
#: Bytes of a thread: its stack, and what its allocator keeps back.
_THREAD = 2_000_000
#: Bytes of PyTorch and of what is imported with it (2.13 for CPUs: 224 MB); of all of a process that has it.
_TORCH = 225_000_000
_PROCESS = 260_000_000


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that running a plan takes at most, an estimate that is meant to be a little high.

    Attributes:
        process: the program and its libraries, and the plan.
        workers: buffers of all worker threads.
        statistics: what is measured over whole tensors, of those that are worked on at the same time.
        planning: the most that has been in use up to now.
    """

    process: int
    workers: int
    statistics: int
    planning: int

    @property
    def peak(self) -> int:
        """All together."""
        return max(self.planning, self.process + self.workers + self.statistics)


@dataclass(frozen=True, slots=True)
class Work:
    """What one job takes.

    Attributes:
        passes: how often its inputs are read, in the usual case.
        grain: starts and lengths of its tiles are multiples of this.
        held: bytes that its statistic holds.
    """

    passes: int = 1
    grain: int = CHUNK
    held: int = 0


def work_of(plan: Plan) -> list[Work]:
    """What each job takes; jobs that are alike are looked at once."""
    known: dict[Hashable, Work] = {}
    return [_work(job, known) for job in plan.jobs]


def _work(job: TensorJob, known: dict[Hashable, Work]) -> Work:
    if job.method is None:
        return _COPY
    key = (job.shape, len(job.inputs), *job.values.items())
    found = known.get(key)
    if found is None:
        statistic = job.method.statistic(job.whole, job.values)
        held = 0 if statistic is None else statistic.held
        found = known[key] = Work(job.num_passes, job.method.grain(job.whole, job.values), held)
    return found


_COPY = Work()


def memory_of(plan: Plan, works: Sequence[Work], threads: int) -> Memory:
    """The memory that a plan takes.

    Args:
        plan: what will be run, in this process or one like it.
        works: of its jobs.
        threads: worker threads.
    """
    # Buffers grow to the largest need and stay.
    rows = output = scratch = aside = 0
    for job, work in zip(plan.jobs, works, strict=True):
        tile = max(TILE // work.grain, 1) * work.grain
        span = min(max(SPAN // tile, 1) * tile, job.numel)
        n = min(tile, job.numel)
        output = max(output, span * DTYPES[job.dtype].itemsize + PAGE)
        infos = [plan.checkpoints[i.checkpoint][i.tensor] for i in job.all_inputs]
        if job.method is None and job.scales is None and infos[0].encoding is None:
            continue
        rows = max(rows, len(infos) * n * _FLOAT)
        if job.scales is not None:
            scratch = max(scratch, 2 * min(tile + elements_of_row(job), job.numel) * _FLOAT)
        for info in infos:
            scratch = max(scratch, n * (DTYPES[info.dtype].itemsize if info.encoding is None else _DECODING))
        if job.method is not None:
            own = len(infos) + _ASIDE_RANDOM if job.method.random else _ASIDE
            aside = max(aside, n * own)
    process, planning = _process()
    workers = threads * (rows + 2 * output + scratch + aside + _THREAD)
    return Memory(process, workers, _statistics(plan, works, threads), planning)


def _statistics(plan: Plan, works: Sequence[Work], threads: int) -> int:
    # A worker that finds all of a pass handed out begins the next tensor: one each may be under way.
    held = [work.held for work in works]
    together = sum(held[:threads])
    most = together
    for i in range(threads, len(held)):
        together += held[i] - held[i - threads]
        most = max(most, together)
    merged = [job for job in plan.jobs if job.method is not None]
    if merged:
        first = merged[0]
        assert first.method is not None
        whole = Whole(len(first.inputs), (sum(job.numel for job in merged),), Noise(0, ""))
        of_model = first.method.model_statistic(whole, first.values)
        most = max(most, 0 if of_model is None else of_model.held)
    return most


def _process() -> tuple[int, int]:
    """Bytes of this process once PyTorch is loaded, and the most that it has used; usual ones where unknown."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now, most = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    except (OSError, KeyError, ValueError, IndexError):
        return _PROCESS, _PROCESS
    return now + (0 if "torch._C" in sys.modules else _TORCH), most
