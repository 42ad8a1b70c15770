"""What tiles are computed on: the CPU, or accelerators.

A plan is carried out the same way on all. The passes, spans and tiles of `TensorRun` know nothing of devices;
they ask the buffers of the worker for tiles, and hand results back to them:

    CPU            `Buffers`: tiles of 512 Ki elements in main memory, that stay in the processor's cache
    accelerator    `StagedBuffers`: tiles of up to 16 Mi elements in the device's memory, copied through
                   pinned memory by one queue and computed by another; `streams` has PyTorch's words for that

A worker is a thread and belongs to one device. With several devices, workers of all of them take spans from
the same queue, so that nobody waits for the slowest. This is possible because nothing a span gives depends on
who has worked on it: what statistics tell of a tile is in main memory, sums are formed in an order that is
the same on every device (`kernels.elsewhere`), and random numbers are drawn on the CPU.

A tile is as large as half of the free memory allows, shared by the workers of the device. Where that was too
much, it is cut in halves, and again, down to the smallest possible; then the merge fails, to be continued.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from meldkit.engine.buffers import TILE, Buffers
from meldkit.engine.staging import StagedBuffers
from meldkit.engine.streams import Backend, OneQueue
from meldkit.errors import RecipeError
from meldkit.kernels.elsewhere import has_float64
from meldkit.methods.statistics import CHUNK

if TYPE_CHECKING:
    from meldkit.plan import TensorJob

#: Elements of the largest tile. More would only take more memory: an operation takes far longer than it takes
#: to ask for it. PyTorch rounds pinned memory up to powers of two, so it is a chunk less than one.
_LARGEST = 255 * CHUNK
#: The same where numbers are drawn, which are in main memory.
_LARGEST_RANDOM = 31 * CHUNK
#: Bytes per element of a tile, for each input and for all: rows of float32, and what methods and statistics
#: set aside, above all numbers of float64 and of sorting.
_PER_INPUT, _ASIDE = 8, 64
#: Part of the free memory that is used. PyTorch keeps some of what was given back; so may other programs.
_SHARE = 0.5
#: Worker threads on the CPU beyond its processors.
_WAITING = 2
#: Workers of an accelerator if the user names no number: one reads while the other one's tile is computed.
_WORKERS = 2


class Device(Protocol):
    """What workers compute on."""

    @property
    def name(self) -> str:
        """As PyTorch spells it, such as "cuda:0"."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether tiles are in main memory, where results go."""
        ...

    @property
    def model(self) -> str:
        """What its maker calls it."""
        ...

    def tile(self, job: TensorJob, workers: int) -> int | None:
        """Elements of a job's tiles where that many workers share the device; None for the usual number."""
        ...

    def needed(self, job: TensorJob, workers: int) -> int:
        """Bytes of memory of its own that a job's tiles take, of all those workers."""
        ...

    def worker(self, writer: Executor) -> AbstractContextManager[Buffers]:
        """The buffers of a worker, which is the current thread."""
        ...


class Cpu:
    """The CPU."""

    name = model = "cpu"
    in_memory = True

    def tile(self, job: TensorJob, workers: int) -> int | None:
        del job, workers

    def needed(self, job: TensorJob, workers: int) -> int:
        del job, workers
        return 0

    def worker(self, writer: Executor) -> AbstractContextManager[Buffers]:
        return nullcontext(Buffers(writer))


CPU = Cpu()
#: Where merges run if nothing is asked for.
ON_CPU: tuple[Device, ...] = (CPU,)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A GPU.

    Attributes:
        device: as PyTorch has it.
        backend: its kind.
        model: what its maker calls it.
        free, total: bytes of its memory, when it was looked at.
    """

    device: torch.device
    backend: Backend
    model: str
    free: int
    total: int
    in_memory = False

    @property
    def name(self) -> str:
        return str(self.device)

    def tile(self, job: TensorJob, workers: int) -> int | None:
        # Copies need no device; without float64, measuring is done in main memory.
        if job.method is None or (job.num_passes > 1 and not has_float64(self.device)):
            return None
        most = _LARGEST_RANDOM if job.method.random else _LARGEST
        affordable = int(self.free * _SHARE) // workers // _per_element(job)
        return max(min(most, affordable) // CHUNK, 1) * CHUNK

    def needed(self, job: TensorJob, workers: int) -> int:
        """Bytes of its memory for a job's tiles, of all workers; whole rows that are longer aside."""
        n = min(self.tile(job, workers) or TILE, job.numel)
        return workers * n * _per_element(job)

    @contextmanager
    def worker(self, writer: Executor) -> Generator[Buffers]:
        buffers = StagedBuffers(self, writer)
        with self.backend.using(buffers.computing):
            try:
                yield buffers
            finally:
                buffers.forget()


def _per_element(job: TensorJob) -> int:
    return _PER_INPUT * len(job.all_inputs) + _ASIDE


#: In the order in which "auto" looks for them.
KINDS: dict[str, Callable[[str], Backend]] = {"cuda": Backend, "xpu": Backend, "mps": OneQueue}


def find_devices(wanted: str, *, all_of_kind: bool = False) -> tuple[Device, ...]:
    """The devices that somebody asked for.

    Args:
        wanted: "cpu", "cuda", "xpu", "mps", one of these with a number as in "cuda:1", or "auto" for the
            first kind that is there.
        all_of_kind: not only the first device of that kind.

    Raises:
        RecipeError: there is no such device.
    """
    if wanted == "cpu":
        return ON_CPU
    if wanted == "auto":
        wanted = next((kind for kind in KINDS if KINDS[kind](kind).count()), "cpu")
        return find_devices(wanted, all_of_kind=all_of_kind)
    kind, colon, number = wanted.partition(":")
    if kind not in KINDS or (colon and not number.isdecimal()):
        raise RecipeError(
            f"device: {wanted!r} is none that can merge",
            hint=f"known: auto, cpu, {', '.join(KINDS)}; with a number, such as cuda:1",
        )
    backend = KINDS[kind](kind)
    count = backend.count()
    if not count:
        raise RecipeError(
            f"device: there is no {kind} device that PyTorch {torch.__version__} can use",
            hint="leave out --cuda and --device: on the CPU, merging takes little longer than copying files; "
            "for GPUs, install a PyTorch that was built for them: pytorch.org/get-started/locally",
        )
    if number and int(number) >= count:
        raise RecipeError(
            f"device: there is no {wanted}", hint=f"there are {count}: {', '.join(_names(kind, count))}"
        )
    names = _names(kind, count) if all_of_kind else [wanted if number else f"{kind}:0"]
    return tuple(_look_at(torch.device(name), backend) for name in names)


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}:{i}" for i in range(count)]


def _look_at(device: torch.device, backend: Backend) -> Accelerator:
    return Accelerator(device, backend, backend.model(device), *backend.memory(device))


def num_workers(devices: Sequence[Device], threads: int | None, processors: int) -> int:
    """Worker threads: more than processors, as some of them always wait for the disk.

    Args:
        devices: what they compute on.
        threads: how many the user wants.
        processors: how many there are for this process.
    """
    if devices[0].in_memory:
        return threads or processors + _WAITING
    # Every device that was asked for is used.
    return max(threads or _WORKERS * len(devices), len(devices))


def share_of(devices: Sequence[Device], workers: int) -> int:
    """Of so many workers, the most that a device has."""
    return -(-workers // len(devices))


def tile_for(devices: Sequence[Device], job: TensorJob, workers: int) -> int | None:
    """Elements of a job's tiles, which all of the devices can hold; None for the usual number."""
    found = [device.tile(job, share_of(devices, workers)) for device in devices]
    known = [tile for tile in found if tile is not None]
    return min(known, default=None)
