"""Runs jobs on worker threads.

Workers pull tiles. The tiles of the earliest unfinished tensor come first, so that a tensor's passes
follow each other closely while its bytes are still in the page cache, and few tensors are open at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from threading import Condition, Lock
from typing import Protocol

import torch

from meldkit.engine.buffers import Buffers
from meldkit.engine.device import ON_CPU, Device
from meldkit.plan import TensorJob

#: Threads that write while workers compute: each mostly waits for the disk.
WRITERS = 2


class Runnable(Protocol):
    """Something that is done tile by tile, perhaps in several passes.

    Attributes:
        job: what it is about.
        spans: spans (start, stop) of the current pass that nobody has taken yet; at least one.
        outstanding: spans taken and not yet processed.
    """

    job: TensorJob
    spans: deque[tuple[int, int]]
    outstanding: int

    def process(self, start: int, stop: int, buffers: Buffers) -> Future[None] | None:
        """Work on elements [start, stop); called in any thread. What it returns is still being done."""
        ...

    def advance(self) -> bool:
        """Go on to the next pass, of which no tile has been taken; False when there is none."""
        ...


@dataclass(slots=True)
class Progress:
    """How far a run has come.

    Attributes:
        elements: elements of output tensors processed, counted once per pass.
        tensor: name of the tensor that was worked on last.
    """

    elements: int = 0
    tensor: str = ""


def default_threads() -> int:
    """As many threads as there are processors for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    tensors: Iterable[Runnable],
    *,
    threads: int = 1,
    devices: Sequence[Device] = ON_CPU,
    with_torch: bool = True,
    progress: Callable[[Progress], None] | None = None,
    interval: float = 0.1,
) -> int:
    """Carry out all tensors; returns when the last one is finished.

    Args:
        tensors: opened one after the other as workers become free.
        threads: worker threads.
        devices: that they compute on, each on one of them in turn.
        with_torch: whether any of them takes PyTorch.
        progress: called from this thread every `interval` seconds, and once at the end.

    Returns:
        Elements processed, counted once per pass.

    Raises:
        MeldError: whatever the first failing tile raised; the others are stopped.
        ValueError: no thread.
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}; it must be 1 or more")
    queue = _Queue(iter(tensors))
    with (
        single_threaded_torch if with_torch else nullcontext(),
        ThreadPoolExecutor(WRITERS, "write") as writer,
        ThreadPoolExecutor(threads, "work") as pool,
    ):
        try:
            workers = [pool.submit(_work, queue, writer, devices[i % len(devices)]) for i in range(threads)]
            # Not Thread.join: interrupted by Ctrl-C it takes a thread that runs for one that has ended.
            while wait(workers, timeout=interval).not_done:
                if progress is not None:
                    progress(queue.progress)
            if progress is not None:
                progress(queue.progress)
        finally:
            # Reached early by Ctrl-C: workers finish the span in hand and nothing more.
            queue.stop()
    if queue.error is not None:
        raise queue.error
    return queue.progress.elements


class _TorchThreads:
    """One thread per operation while anything runs, then what there was before.

    Workers are the parallelism, and sums must not depend on the machine.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._num_runs = 0
        self._before = 1

    def __enter__(self) -> None:
        with self._lock:
            if self._num_runs == 0:
                self._before = torch.get_num_threads()
                torch.set_num_threads(1)
            self._num_runs += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_runs -= 1
            if self._num_runs == 0:
                torch.set_num_threads(self._before)


single_threaded_torch = _TorchThreads()


def _work(queue: _Queue, writer: Executor, device: Device) -> None:
    try:
        with device.worker(writer) as buffers:
            while (task := queue.take()) is not None:
                tensor, start, stop = task
                rest = tensor.process(start, stop, buffers) if stop > start else None
                if rest is None:
                    queue.done(tensor, stop - start)
                else:
                    rest.add_done_callback(partial(_finish, queue, tensor, stop - start))
    except BaseException as e:  # noqa: BLE001 - carried to the caller's thread, which raises it
        queue.stop(e)


def _finish(queue: _Queue, tensor: Runnable, elements: int, rest: Future[None]) -> None:
    """After what was left of a span's work is done, in whatever thread that was."""
    try:
        rest.result()
        queue.done(tensor, elements)
    except BaseException as e:  # noqa: BLE001 - as in a worker
        queue.stop(e)


class _Queue:
    """Hands out tiles, and takes tensors from pass to pass."""

    def __init__(self, pending: Iterator[Runnable]) -> None:
        self._pending = pending
        self._ready: list[Runnable] = []
        self._num_open = 0
        self._changed = Condition()
        self._stopped = False
        self.error: BaseException | None = None
        self.progress = Progress()

    def take(self) -> tuple[Runnable, int, int] | None:
        """The next tile, waiting for one if tensors are between passes; None when there is no more."""
        with self._changed:
            while not self._stopped:
                if not self._ready:
                    tensor = next(self._pending, None)
                    if tensor is not None:
                        self._num_open += 1
                        self._ready.append(tensor)
                    elif self._num_open == 0:
                        return None
                    else:
                        self._changed.wait()
                        continue
                tensor = self._ready[0]
                tile = tensor.spans.popleft()
                tensor.outstanding += 1
                if not tensor.spans:
                    self._ready.pop(0)
                return tensor, *tile
            return None

    def done(self, tensor: Runnable, elements: int) -> None:
        """A tile is processed; after the last one of a pass the tensor goes on."""
        with self._changed:
            self.progress.elements += elements
            self.progress.tensor = tensor.job.name
            tensor.outstanding -= 1
            if tensor.outstanding or tensor.spans:
                return
        # No tile of this pass is left and none is in hand: nobody else touches the tensor now.
        more = tensor.advance()
        with self._changed:
            if more:
                self._ready.insert(0, tensor)
            else:
                self._num_open -= 1
            self._changed.notify_all()

    def stop(self, error: BaseException | None = None) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._stopped = True
            self.error = self.error or error
            self._changed.notify_all()
