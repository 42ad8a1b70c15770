"""What running a plan takes, known before it runs: passes over the data, and memory."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meldkit.checkpoint import DTYPES, TensorInfo
from meldkit.engine.blocks import elements_of_row
from meldkit.engine.run import WRITERS
from meldkit.engine.tensor_run import PAGE, SPAN, TILE
from meldkit.methods import Noise, Whole
from meldkit.methods.statistics import CHUNK
from meldkit.plan import Plan, TensorJob

_FLOAT = 4
#: Bytes per element of a tile for what methods set aside: two numbers, and where they draw random ones, those
#: and what is compared with them, besides a flag per model.
_ASIDE, _ASIDE_RANDOM = 2 * _FLOAT, 24
#: Bytes per element of a tile while a tensor is decoded that is not stored as an array of its type.
_DECODING = 4 * _FLOAT
#: Bytes of a thread: its stack, and what its allocator keeps back.
_THREAD = 2_000_000
#: Bytes of PyTorch and of what is imported with it (2.13 for CPUs: 224 MB); of all of a process that has it.
_TORCH = 225_000_000
_PROCESS = 260_000_000
#: Bytes that libraries take when they are first used: linear algebra, sums, threads (at most 7 MB were seen).
_FIRST_USE = 8_000_000


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
        bytes_to_read: of its inputs, each pass counted; adapters not.
        held: bytes that its statistic holds.
        buffers: bytes that it needs of each buffer of a worker: those of inputs, of output, for decoding, and
            what the method sets aside.
    """

    passes: int
    bytes_to_read: int
    held: int
    buffers: tuple[int, int, int, int]


def work_of(plan: Plan) -> list[Work]:
    """What each job takes; jobs that are alike are looked at once."""
    known: dict[Hashable, Work] = {}
    tensors = [checkpoint.tensors for checkpoint in plan.checkpoints]
    found: list[Work] = []
    for job in plan.jobs:
        infos = [tensors[i.checkpoint][i.tensor] for i in job.all_inputs]
        stored = [(info.dtype, info.nbytes, info.encoding is None) for info in infos]
        key = (job.shape, job.dtype, job.method is None, job.scales is None, id(job.values), *stored)
        work = known.get(key)
        if work is None:
            work = known[key] = _work(job, infos)
        found.append(work)
    return found


def _work(job: TensorJob, infos: Sequence[TensorInfo]) -> Work:
    grain, statistic = CHUNK, None
    if job.method is not None:
        grain = job.method.grain(job.whole, job.values)
        statistic = job.method.statistic(job.whole, job.values)
    tile = max(TILE // grain, 1) * grain
    span = min(max(SPAN // tile, 1) * tile, job.numel)
    n = min(tile, job.numel)
    rows = decoding = aside = 0
    if job.method is not None or job.scales is not None or infos[0].encoding is not None:
        rows = len(infos) * n * _FLOAT
        decoding = max(n * (i.nbytes // max(1, i.numel) if i.encoding is None else _DECODING) for i in infos)
    if job.scales is not None:
        decoding = max(decoding, 2 * min(tile + elements_of_row(job), job.numel) * _FLOAT)
    if job.method is not None:
        aside = n * (len(infos) + _ASIDE_RANDOM if job.method.random else _ASIDE)
    passes = job.num_passes
    return Work(
        passes=passes,
        bytes_to_read=passes * sum(info.nbytes for info in infos),
        held=0 if statistic is None else statistic.held,
        # Two buffers of output: one is written while the other is filled.
        buffers=(rows, 2 * (span * DTYPES[job.dtype].itemsize + PAGE), decoding, aside),
    )


def memory_of(plan: Plan, works: Sequence[Work], threads: int) -> Memory:
    """The memory that a plan takes.

    Args:
        plan: what will be run, in this process or one like it.
        works: of its jobs.
        threads: worker threads.
    """
    # Buffers grow to the largest need and stay.
    buffers = [max(sizes) for sizes in zip(*{work.buffers for work in works}, strict=True)]
    process, planning = _process()
    return Memory(
        process=process,
        workers=threads * sum(buffers) + (threads + WRITERS) * _THREAD,
        statistics=_statistics(plan, works, threads),
        planning=planning,
    )


def _statistics(plan: Plan, works: Sequence[Work], threads: int) -> int:
    # A worker that finds all of a pass handed out begins the next tensor, and that of a tensor whose last
    # bytes are still being written too.
    at_once = threads + 1
    held = [work.held for work in works]
    together = sum(held[:at_once])
    most = together
    for i in range(at_once, len(held)):
        together += held[i] - held[i - at_once]
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
    """Bytes of this process once PyTorch is loaded, and the most it has used; usual ones where unknown."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now, most = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    except (OSError, KeyError, ValueError, IndexError):
        return _PROCESS, _PROCESS
    return now + _FIRST_USE + (0 if "torch._C" in sys.modules else _TORCH), most
