"""Runs jobs on worker threads.

Workers pull tiles. The tiles of the earliest unfinished tensor come first, so that a tensor's passes
follow each other closely while its bytes are still in the page cache, and few tensors are open at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Thread

import torch

from meldkit.engine.tensor_run import TILE, Buffers, TensorRun
from meldkit.methods.statistics import CHUNK


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
    """Worker threads if the user names no number: the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    tensors: Iterable[TensorRun],
    *,
    num_rows: int,
    threads: int = 1,
    tile: int = TILE,
    progress: Callable[[Progress], None] | None = None,
    interval: float = 0.1,
) -> None:
    """Carry out all tensors; returns when the last one is finished.

    Args:
        tensors: opened one after the other as workers become free.
        num_rows: most inputs of any of them, bases counted.
        threads: worker threads.
        tile: elements per tile, a multiple of `CHUNK`.
        progress: called from this thread every `interval` seconds, and once at the end.

    Raises:
        MeldError: whatever the first failing tile raised; the others are stopped.
    """
    assert tile % CHUNK == 0
    queue = _Queue(iter(tensors))
    workers = [
        Thread(target=_work, args=(queue, num_rows, tile), name=f"tile-{i}", daemon=True)
        for i in range(threads)
    ]
    with _single_threaded_torch():
        for worker in workers:
            worker.start()
        try:
            while any(worker.is_alive() for worker in workers):
                for worker in workers:
                    worker.join(interval / threads)
                if progress is not None:
                    progress(queue.progress)
        finally:
            # Reached early by Ctrl-C: workers finish the tile in hand and nothing more.
            queue.stop()
            for worker in workers:
                worker.join()
    if queue.error is not None:
        raise queue.error


@contextmanager
def _single_threaded_torch() -> Generator[None]:
    """One thread per operation: workers are the parallelism, and sums must not depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _work(queue: _Queue, num_rows: int, tile: int) -> None:
    try:
        buffers = Buffers(num_rows, tile)
        while (task := queue.take()) is not None:
            tensor, start, stop = task
            if stop > start:
                tensor.process(start, stop, buffers)
            queue.done(tensor, stop - start)
    except BaseException as e:  # noqa: BLE001 - carried to the caller's thread, which raises it
        queue.stop(e)


class _Queue:
    """Hands out tiles, and takes tensors from pass to pass."""

    def __init__(self, pending: Iterator[TensorRun]) -> None:
        self._pending = pending
        self._ready: list[TensorRun] = []
        self._num_open = 0
        self._changed = Condition()
        self._stopped = False
        self.error: BaseException | None = None
        self.progress = Progress()

    def take(self) -> tuple[TensorRun, int, int] | None:
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
                tile = tensor.tiles.popleft()
                tensor.outstanding += 1
                if not tensor.tiles:
                    self._ready.pop(0)
                return tensor, *tile
            return None

    def done(self, tensor: TensorRun, elements: int) -> None:
        """A tile is processed; after the last one of a pass the tensor goes on."""
        with self._changed:
            self.progress.elements += elements
            self.progress.tensor = tensor.job.name
            tensor.outstanding -= 1
            if tensor.outstanding or tensor.tiles:
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
