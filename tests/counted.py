"""What a merge takes, counted while it runs: bytes of files, calls, room. `test_costs_kept.py` bounds it.

Nothing is timed, so that the numbers are those of the code and not of the machine.
"""

from __future__ import annotations

import threading
import tracemalloc
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from meldkit.checkpoint.files import OpenFiles
from meldkit.engine import TensorRun, jobs
from meldkit.kernels import library
from meldkit.methods.statistics import CHUNK
from meldkit.output.weight_file import WeightFile

#: Bytes from which on room is as large as a tile of `CHUNK` elements: one byte for each. Bits are not.
LARGE = CHUNK


class Costs:
    """What a merge took.

    Attributes:
        reads, writes: by file, the ranges (start, stop) of its bytes that were read or written.
        torch_calls: operations of PyTorch, views of tensors too, while spans are worked on; by name.
        kernel_calls: calls of the compiled kernels, by name.
        tensors: operations of PyTorch that made room of a tile's size, by name.
        room: most bytes that Python and NumPy held while a span was worked on, beyond what they held before
            or after it.
        num_threads, num_descriptors: most there were while a span was worked on, beyond those before.
    """

    def __init__(self) -> None:
        self.reads: dict[Path, list[tuple[int, int]]] = {}
        self.writes: dict[Path, list[tuple[int, int]]] = {}
        self.torch_calls: Counter[str] = Counter()
        self.kernel_calls: Counter[str] = Counter()
        self.tensors: Counter[str] = Counter()
        self.room = 0
        self.num_threads = 0
        self.num_descriptors = 0
        self.lock = threading.Lock()

    def touched(self, of: dict[Path, list[tuple[int, int]]], path: Path, start: int, stop: int) -> None:
        """A range of a file's bytes was read or written."""
        with self.lock:
            of.setdefault(path, []).append((start, stop))


def times(ranges: Sequence[tuple[int, int]], size: int) -> np.ndarray:
    """How often each of the first `size` bytes of a file lies in one of the ranges."""
    counts = np.zeros(size, int)
    for start, stop in ranges:
        counts[start:stop] += 1
    return counts


class _Calls(TorchDispatchMode):
    """Counts operations of PyTorch in the thread that enters it."""

    def __init__(self, costs: Costs) -> None:
        super().__init__()
        self._costs = costs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        made = func(*args, **(kwargs or {}))
        all_made = made if isinstance(made, (tuple, list)) else (made,)
        # What is not an alias of an argument has room of its own.
        new = [returned.alias_info is None for returned in func._schema.returns]
        with self._costs.lock:
            self._costs.torch_calls[str(func)] += 1
            for tensor, own in zip(all_made, new, strict=False):
                if own and isinstance(tensor, torch.Tensor) and tensor.nbytes >= LARGE:
                    self._costs.tensors[str(func)] += 1
        return made


@contextmanager
def counted() -> Generator[Costs]:
    """Count what the merge in the block takes, whatever threads work on it."""
    costs = Costs()
    num_threads, num_descriptors = threading.active_count(), descriptors()
    with ExitStack() as patches:
        for cls in (TensorRun, jobs._Measuring):
            process = partial(_process, costs, cls.process, num_threads, num_descriptors)
            # A function, so that it becomes a method.
            patches.enter_context(mock.patch.object(cls, "process", lambda *a, _p=process: _p(*a)))
        patches.enter_context(mock.patch.object(OpenFiles, "account", _reader(costs)))
        for name, function in _writer(costs).items():
            patches.enter_context(mock.patch.object(WeightFile, name, function))
        if library.FUNCTIONS is not None:
            functions = {
                name: partial(_kernel, costs, name, function)
                for name, function in vars(library.FUNCTIONS).items()
            }
            patches.enter_context(mock.patch.object(library, "FUNCTIONS", SimpleNamespace(**functions)))
        tracemalloc.start()
        patches.callback(tracemalloc.stop)
        yield costs


def _process(
    costs: Costs,
    real: Any,
    num_threads: int,
    num_descriptors: int,
    run: Any,
    start: int,
    stop: int,
    *more: Any,
) -> Any:
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    with _Calls(costs):
        rest = real(run, start, stop, *more)
    after, peak = tracemalloc.get_traced_memory()
    with costs.lock:
        costs.room = max(costs.room, peak - max(before, after))
        costs.num_threads = max(costs.num_threads, threading.active_count() - num_threads)
        costs.num_descriptors = max(costs.num_descriptors, descriptors() - num_descriptors)
    return rest


def _reader(costs: Costs) -> Any:
    real = OpenFiles.account

    def account(self: OpenFiles, path: Path, offset: int, done: int, wanted: int) -> None:
        real(self, path, offset, done, wanted)
        costs.touched(costs.reads, path, offset, offset + done)

    return account


def _writer(costs: Costs) -> Mapping[str, Any]:
    opened: dict[int, Path] = {}
    real_init, real_write = WeightFile.__init__, WeightFile.write

    def init(self: WeightFile, path: Path, size: int) -> None:
        real_init(self, path, size)
        opened[id(self)] = path

    def write(self: WeightFile, offset: int, data: memoryview) -> None:
        real_write(self, offset, data)
        costs.touched(costs.writes, opened[id(self)], offset, offset + len(data))

    return {"__init__": init, "write": write}


def _kernel(costs: Costs, name: str, real: Any, *args: Any) -> Any:
    with costs.lock:
        costs.kernel_calls[name] += 1
    return real(*args)


def descriptors() -> int:
    """Open files of this process."""
    return sum(1 for _ in Path("/dev/fd").iterdir())


def bytes_asked_for() -> int:
    """Bytes that this process has read from files so far, where the system counts them (Linux); else 0."""
    if not Path("/proc/self/io").exists():
        return 0
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])
