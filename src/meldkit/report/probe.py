"""How fast this machine reads, computes and writes: measured for less than a second."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from meldkit.engine import Work
from meldkit.errors import MeldError
from meldkit.plan import Plan, stages_of

if TYPE_CHECKING:
    from meldkit.engine.probe import Reading

#: Seconds for which is written, and bytes that are written at most, into a file without a name.
_WRITING = 0.2
_MOST_WRITTEN = 128_000_000
_PIECE = 8_000_000


@dataclass(frozen=True, slots=True)
class Probe:
    """What was measured.

    Attributes:
        reading: bytes per second from the disk of the inputs, or from the system's cache if they are in it.
        rereading: bytes per second of what has just been read.
        writing: bytes per second to the disk of the current folder; None where nothing can be written.
        first, again: seconds per element and input for reading, on one thread: the first time, and again.
        computing: seconds per element and pass of the method, on one thread.
        of_stages: seconds on one thread for what the recipes give that others use.
        importing: seconds for importing torch, which merges wait for too; next to 0 where it is not needed,
            or was imported before.
        seconds: how long all this took.
    """

    reading: float
    rereading: float
    writing: float | None
    first: float
    again: float
    computing: float
    of_stages: float
    importing: float
    seconds: float

    def estimate(self, plan: Plan, works: Sequence[Work], threads: int, processors: int) -> float:
        """Seconds that a merge takes, if the machine is as busy as it was when this was measured.

        Args:
            plan: what will be run.
            works: of its jobs.
            threads: worker threads.
            processors: that there are for them.
        """
        first = again = computed = 0
        for job, work in zip(plan.jobs, works, strict=True):
            elements = job.numel * len(job.all_inputs)
            first += elements
            again += elements * (work.passes - 1)
            computed += job.numel * work.passes if job.method is not None else 0
        of_workers = first * self.first + again * self.again + computed * self.computing + self.of_stages
        # Threads do not make a disk faster, but they compute while it reads and writes.
        of_disk = first * (self.first - self.again)
        of_writing = plan.bytes_to_write / self.writing if self.writing else 0.0
        return self.importing + max(of_workers / min(threads, processors), of_disk, of_writing)


def probe(plan: Plan, works: Sequence[Work]) -> Probe | None:
    """Measure; None if there is nothing to measure with, such as inputs that cannot be read.

    Reads some of the inputs, and writes some zeros into a file without a name.

    Args:
        plan: what will be run.
        works: of its jobs.
    """
    from meldkit.engine.probe import measure_computing, measure_reading

    began = time.perf_counter()
    if any(work.torch for work in works):
        torch.get_num_threads()  # the command line imports torch when it is first asked for something
    importing = time.perf_counter() - began
    # What is wrong with an input is for the merge to say.
    with contextlib.suppress(MeldError):
        reading = measure_reading(plan)
        if reading is not None:
            times = max(work.passes for work in works)
            return Probe(
                reading=reading.bytes_per_element / reading.first,
                rereading=reading.bytes_per_element / reading.again,
                writing=_measure_writing(Path.cwd()),
                first=reading.first,
                again=reading.again,
                computing=measure_computing(plan, reading),
                of_stages=sum(_of_stage(stage.plan, reading, times) for stage in stages_of(plan)),
                importing=importing,
                seconds=time.perf_counter() - began,
            )
    return None


def _of_stage(plan: Plan, reading: Reading, times: int) -> float:
    """Seconds on one thread to compute a stage so often, after what it measures itself."""
    from meldkit.engine.probe import measure_computing

    computing = measure_computing(plan, reading)
    seconds = 0.0
    for job, passes in zip(plan.jobs, plan.passes(), strict=True):
        each = computing * (job.method is not None) + reading.again * len(job.all_inputs)
        seconds += (passes - 1 + times) * job.numel * each
    return seconds


def _measure_writing(folder: Path) -> float | None:
    """Bytes per second, written as merges write."""
    from meldkit.output.weight_file import WeightFile

    try:
        with tempfile.TemporaryDirectory(prefix=".meldkit-", dir=folder) as beside:
            path = Path(beside, "probe")
            file = WeightFile(path, _MOST_WRITTEN)
            path.unlink()
    except OSError:
        return None
    # Whole pages, as the engine's buffers lie, which go past the cache.
    data = memoryview(mmap.mmap(-1, _PIECE))
    done = 0
    began = time.perf_counter()
    try:
        while done < _MOST_WRITTEN and time.perf_counter() - began < _WRITING:
            file.write(done, data)
            done += _PIECE
        # What goes past the cache is on the disk; a sync would also wait for what other programs wrote.
        seconds = time.perf_counter() - began
    except OSError:
        return None
    finally:
        file.close()
    return done / seconds
