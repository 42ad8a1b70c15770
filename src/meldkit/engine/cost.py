"""What running a plan takes, known before it runs: passes over the data, and memory."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meldkit.checkpoint import DTYPES, TensorInfo
from meldkit.engine.blocks import elements_of_row
from meldkit.engine.buffers import PAGE, SPAN, TILE
from meldkit.engine.device import ON_CPU, Device, share_of, tile_for
from meldkit.engine.fused import stored_dtype, takes_torch, tile_factor
from meldkit.engine.run import WRITERS
from meldkit.engine.staging import PIECE
from meldkit.kernels.tile import WINDOW
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
_THREAD = 3_000_000
#: Bytes of PyTorch and of what is imported with it (2.13 for CPUs: 224 MB).
_TORCH = 225_000_000
#: Bytes of a process without it, where the system does not tell.
_PROCESS = 60_000_000
#: Bytes that libraries take when they are first used: linear algebra, sums, threads (at most 7 MB were seen).
_FIRST_USE = 8_000_000
#: Bytes of main memory that PyTorch and the driver take for an accelerator: a guess, not measured.
_DRIVER = 800_000_000


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that running a plan takes at most, an estimate that is meant to be a little high.

    Attributes:
        process: the program and its libraries, and the plan.
        workers: buffers of all worker threads.
        statistics: what is measured over whole tensors, of those that are worked on at the same time.
        planning: the most that has been in use up to now.
        on_device: in the memory of each accelerator; not part of the peak.
    """

    process: int
    workers: int
    statistics: int
    planning: int
    on_device: int = 0

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
        torch: whether it takes PyTorch.
    """

    passes: int
    bytes_to_read: int
    held: int
    buffers: tuple[int, int, int, int]
    torch: bool


def work_of(plan: Plan, threads: int = 1, devices: Sequence[Device] = ON_CPU) -> list[Work]:
    """What each job takes; jobs that are alike are looked at once.

    Args:
        plan: of the jobs.
        threads: worker threads.
        devices: that they compute on.
    """
    known: dict[Hashable, Work] = {}
    tensors = [checkpoint.tensors for checkpoint in plan.checkpoints]
    found: list[Work] = []
    for job in plan.jobs:
        infos = [tensors[i.checkpoint][i.tensor] for i in job.all_inputs]
        stored = [(info.dtype, info.nbytes, info.encoding is None) for info in infos]
        key = (job.shape, job.dtype, job.method is None, job.scales is None, id(job.values), *stored)
        work = known.get(key)
        if work is None:
            large = tile_for(devices, job, threads)
            work = known[key] = _work(job, infos, large, in_memory=devices[0].in_memory)
        found.append(work)
    return found


def _work(job: TensorJob, infos: Sequence[TensorInfo], large: int | None, *, in_memory: bool) -> Work:
    grain, statistic = CHUNK, None
    if job.method is not None:
        grain = job.method.grain(job.whole, job.values)
        statistic = job.method.statistic(job.whole, job.values)
    torch = not in_memory or takes_torch(job, [*map(stored_dtype, infos)])
    small = max((large or TILE) // grain, 1) * grain
    tile = max(tile_factor(job, torch=torch) * (large or TILE) // grain, 1) * grain
    span = min(max((large or SPAN) // tile, 1) * tile, job.numel)
    n = min(tile, job.numel)
    rows = decoding = aside = 0
    if not torch:
        # Of large tiles, only what is taken out of them is there as numbers: in room of the thread's own, and
        # in copies, whose room the allocator keeps.
        if statistic is not None:
            rows = len(infos) * min(small, n) * _FLOAT + 2 * statistic.held * n // max(1, job.numel)
        decoding = sum(min(n, WINDOW) * (info.nbytes // max(1, info.numel)) for info in infos)
    elif job.method is not None or job.scales is not None or infos[0].encoding is not None:
        rows = len(infos) * n * _FLOAT
        decoding = max(n * (i.nbytes // max(1, i.numel) if i.encoding is None else _DECODING) for i in infos)
    if not in_memory:
        # Rows are on the device. What is not stored as it is copied is decoded piece by piece.
        rows, decoding = 0, min(decoding, decoding // max(n, 1) * PIECE)
    if job.scales is not None:
        decoding = max(decoding, 2 * min(tile + elements_of_row(job), job.numel) * _FLOAT)
    if job.method is not None and torch:
        # On accelerators, what is drawn is in main memory, and nothing else.
        usual = _ASIDE * in_memory
        aside = n * (len(infos) + _ASIDE_RANDOM if job.method.random else usual)
    passes = job.num_passes
    output = span * DTYPES[job.dtype].itemsize + PAGE
    if not in_memory:
        output = _pinned(output)
    return Work(
        passes=passes,
        bytes_to_read=passes * sum(info.nbytes for info in infos),
        held=0 if statistic is None else statistic.held,
        # Two buffers of output: one is written while the other is filled.
        buffers=(rows, 2 * output, decoding, aside),
        torch=torch,
    )


def _pinned(nbytes: int) -> int:
    """PyTorch takes pinned memory in powers of two."""
    return 1 << max(nbytes - 1, 0).bit_length()


def memory_of(plan: Plan, works: Sequence[Work], threads: int, devices: Sequence[Device] = ON_CPU) -> Memory:
    """The memory that a plan takes.

    Args:
        plan: what will be run, in this process or one like it.
        works: of its jobs.
        threads: worker threads.
        devices: that they compute on.
    """
    # Buffers grow to the largest need and stay.
    buffers = [max(sizes) for sizes in zip(*{work.buffers for work in works}, strict=True)]
    process, planning = _process(with_torch=any(work.torch for work in works))
    driver = pieces = 0
    if not devices[0].in_memory:
        driver, pieces = _DRIVER, 2 * _pinned(PIECE * _FLOAT)
    share = share_of(devices, threads)
    return Memory(
        process=process + driver,
        workers=threads * (sum(buffers) + pieces) + (threads + WRITERS) * _THREAD,
        statistics=_statistics(plan, works, threads),
        planning=planning,
        on_device=max((device.needed(job, share) for device in devices for job in plan.jobs), default=0),
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


def _process(*, with_torch: bool) -> tuple[int, int]:
    """Bytes of this process once all that is needed is loaded, and the most it has used."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now, most = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    except (OSError, KeyError, ValueError, IndexError):
        now = most = _PROCESS
    return now + _FIRST_USE + (_TORCH if with_torch and "torch._C" not in sys.modules else 0), most
