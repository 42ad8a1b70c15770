"""Accelerators that are not there, for tests: they compute on the CPU, as late and as strictly as real ones.

- Tensors say that they are on `cuda:0`. They refuse numpy, and operations with tensors in main memory.
- What is copied is copied as late as the order between queues and threads allows, results are poison until
  then, and new memory is poison: whoever does not wait gets wrong numbers.
- Every access to a device's memory must be ordered with those before it by a queue, an event or a thread that
  waited, else `races` says which were not; so must the end of its life. The order is kept in vector clocks.
- Memory may be limited; it runs out with the words of PyTorch.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

Clock = dict[str, int]
_POISON = 0xFF


def merged(one: Clock, other: Clock) -> Clock:
    """The later of both, for each queue."""
    return {key: max(one.get(key, 0), other.get(key, 0)) for key in one | other}


class Event:
    def __init__(self, backend: FakeBackend, clock: Clock) -> None:
        self.backend, self.clock = backend, clock

    def synchronize(self) -> None:
        if (sys._getframe(1).f_code.co_name, "thread") not in self.backend.impatient:
            self.backend.thread_waits(self.clock)


class Stream:
    """A queue: its clock, and what was asked for and is not done."""

    def __init__(self, backend: FakeBackend, number: int, device: torch.device) -> None:
        self.backend, self.number, self.device = backend, number, device
        self.name = f"queue {number} of {device}"
        self.clock: Clock = {self.name: 0}
        self.pending: list[tuple[int, Any]] = []

    def record_event(self) -> Event:
        return Event(self.backend, dict(self.clock))

    def wait_event(self, event: Event) -> None:
        # Every worker makes its queues in this order.
        queue = ("copying", "computing")[self.number % 2]
        if (sys._getframe(1).f_code.co_name, queue) not in self.backend.impatient:
            self.clock = merged(self.clock, event.clock)


class Memory:
    """A piece of a device's memory: how large, and who used it when."""

    def __init__(self, backend: FakeBackend, nbytes: int, stream: Stream) -> None:
        self.backend, self.nbytes, self.stream = backend, 0, stream
        self.written: tuple[str, int] | None = None
        self.read: Clock = {}
        backend.take(nbytes)
        self.nbytes = nbytes

    def access(self, what: str, stream: str, clock: Clock, *, write: bool) -> None:
        before = [self.written] if self.written else []
        if write:
            before += list(self.read.items())
        for name, time in before:
            if clock.get(name, 0) < time:
                self.backend.races.append(f"{what} on {stream} does not wait for {name}")
        if write:
            self.written, self.read = (stream, clock[stream]), {}
        else:
            self.read[stream] = clock[stream]

    def __del__(self) -> None:
        # Whoever gets the memory next is ordered with the queue in which it was taken, and with threads that
        # waited; which one gives it back is chance.
        clock = merged(self.stream.clock, self.backend.waited)
        used = [*self.read.items(), *([self.written] if self.written else [])]
        if any(clock.get(name, 0) < time for name, time in used):
            self.backend.races.append("memory is given back while it is in use")
        self.backend.take(-self.nbytes)


class FakeTensor(torch.Tensor):
    inner: Tensor
    memory: Memory
    place: torch.device

    @staticmethod
    def __new__(cls: Any, inner: Tensor, memory: Memory, device: torch.device) -> FakeTensor:
        new = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            # The device that every PyTorch has and that has nothing behind it; `_Mode` calls it otherwise.
            device="meta",
        )
        new.inner, new.memory, new.place = inner, memory, device
        return new

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        fakes = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, FakeTensor)]
        return fakes[0].memory.backend.call(func, args, kwargs or {})


class _Mode(TorchFunctionMode):
    """What never comes to a tensor's own dispatch: new tensors, and those that are sent to a device."""

    def __init__(self, backend: FakeBackend) -> None:
        super().__init__()
        self.backend = backend

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func is torch.empty and device is not None and device.type != "cpu":
            return self.backend.empty(torch.empty(*args, **{**kwargs, "device": "cpu"}), device)
        target = args[1] if func is Tensor.to and len(args) == 2 else None
        if isinstance(target, torch.device) and target.type != "cpu":
            if isinstance(args[0], FakeTensor):
                assert args[0].place == target
                return args[0]
            new = torch.empty(args[0].shape, dtype=args[0].dtype)
            return self.backend.empty(new, target).copy_(args[0])
        if func == Tensor.device.__get__ and isinstance(args[0], FakeTensor):
            return args[0].place
        if func is Tensor.tolist and isinstance(args[0], FakeTensor):
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


class FakeBackend:
    """One kind of accelerator.

    Args:
        kind: what it calls itself.
        count: of devices.
        free: bytes that a device says are free.
        limit: bytes that there are; None for any number.
    """

    def __init__(
        self, kind: str = "cuda", count: int = 1, free: int = 1 << 30, limit: int | None = None
    ) -> None:
        self.kind = kind
        self.free, self.limit = free, limit
        self.races: list[str] = []
        self.waited: Clock = {}
        self.used = self.most_used = self.times_full = 0
        self.computed: set[str] = set()
        #: Waits to leave out, as (function that waits, queue or thread that waits): "copying", "computing" or
        #: "thread".
        self.impatient: set[tuple[str, str]] = set()
        self._count = count
        self._local = threading.local()
        self._streams: list[Stream] = []
        self._pinned: list[Tensor] = []
        self._lock = threading.RLock()

    # What the engine asks of a backend

    def count(self) -> int:
        return self._count

    def model(self, device: torch.device) -> str:
        return f"Fake {device.index}"

    def memory(self, device: torch.device) -> tuple[int, int]:
        del device
        return self.free, 2 * self.free

    def stream(self, device: torch.device) -> Stream:
        with self._lock:
            self._streams.append(Stream(self, len(self._streams), device))
            return self._streams[-1]

    @contextmanager
    def using(self, stream: Stream) -> Generator[None]:
        before = getattr(self._local, "stream", None)
        self._local.stream = stream
        try:
            if before is None:
                with _Mode(self):
                    yield
            else:
                yield
        finally:
            self._local.stream = before

    @property
    def num_pinned(self) -> int:
        """Bytes of pinned memory that were ever taken."""
        return sum(p.numel() for p in self._pinned)

    def pinned(self, nbytes: int) -> np.ndarray:
        new = torch.full((nbytes,), _POISON, dtype=torch.uint8)
        self._pinned.append(new)
        return new.numpy()

    def release(self) -> None:
        pass

    # How it works

    @property
    def clock(self) -> Clock:
        """What this thread has waited for."""
        return getattr(self._local, "clock", {})

    def take(self, nbytes: int) -> None:
        with self._lock:
            if self.limit is not None and nbytes > 0 and self.used + nbytes > self.limit:
                self.times_full += 1
                raise RuntimeError(f"CUDA out of memory. Tried to allocate {nbytes} bytes")
            self.used += nbytes
            self.most_used = max(self.most_used, self.used)

    def thread_waits(self, clock: Clock) -> None:
        self._local.clock = merged(self.clock, clock)
        with self._lock:
            self.waited = merged(self.waited, clock)
        self._catch_up(self.clock)

    def _catch_up(self, clock: Clock) -> None:
        """Do what was asked for before that time."""
        for stream in self._streams:
            while stream.pending and stream.pending[0][0] <= clock.get(stream.name, 0):
                stream.pending.pop(0)[1]()

    def empty(self, inner: Tensor, device: torch.device) -> FakeTensor:
        new = FakeTensor(inner, Memory(self, inner.nbytes, self._local.stream), device)
        inner.view(-1).view(torch.uint8).fill_(_POISON)
        return new

    def _is_pinned(self, x: Tensor) -> bool:
        return any(p.data_ptr() <= x.data_ptr() < p.data_ptr() + p.numel() for p in self._pinned if p.numel())

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation in this thread's queue."""
        stream: Stream = self._local.stream
        tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor)]
        fakes = [a for a in tensors if isinstance(a, FakeTensor)]
        plain = [a for a in tensors if not isinstance(a, FakeTensor)]
        if any(f.place != stream.device for f in fakes):
            raise RuntimeError(f"{func}: tensors are on several devices")
        is_copy = func is torch.ops.aten.copy_.default
        if not is_copy and any(p.dim() for p in plain):
            raise RuntimeError(f"{func}: tensors are on {stream.device} and in main memory")
        written = [
            value
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        written += [kwargs[a.name] for a in func._schema.arguments if a.is_out and a.name in kwargs]
        is_view = not written and any(r.alias_info is not None for r in func._schema.returns)
        inner = tree_map(lambda a: a.inner if isinstance(a, FakeTensor) else a, (args, kwargs))
        if not is_view:
            stream.clock = merged(stream.clock, self.clock)
            stream.clock[stream.name] += 1
            for fake in fakes:
                write = any(fake is w for w in written)
                fake.memory.access(str(func), stream.name, stream.clock, write=write)
        if is_copy:
            return self._copy(stream, args, inner[0], kwargs)
        self._catch_up(stream.clock)
        if not is_view:
            self.computed.add(str(stream.device))
        if func is torch.ops.aten._local_scalar_dense.default:
            self.thread_waits(stream.clock)
            return func(*inner[0])
        if func is torch.ops.aten._to_copy.default and str(kwargs.get("device")) == "cpu":
            self.thread_waits(stream.clock)
            return func(*inner[0], **inner[1])
        # Some operations ask how large their result is.
        if func is torch.ops.aten.nonzero.default or func is torch.ops.aten.index.Tensor:
            self.thread_waits(stream.clock)
        if "device" in kwargs:
            inner[1]["device"] = "cpu"
        result = func(*inner[0], **inner[1])
        if written:
            return written[0]

        def wrap(found: Any) -> Any:
            if not isinstance(found, Tensor):
                return found
            place = found.untyped_storage().data_ptr()
            for fake in fakes:
                if fake.inner.untyped_storage().data_ptr() == place:
                    return FakeTensor(found, fake.memory, stream.device)
            memory = Memory(self, found.nbytes, stream)
            memory.access(str(func), stream.name, stream.clock, write=True)
            return FakeTensor(found, memory, stream.device)

        return tree_map(wrap, result)

    def _copy(self, stream: Stream, args: Any, inner: Any, kwargs: Any) -> Any:
        target, source = inner[:2]
        later = (args[2:] and args[2]) or kwargs.get("non_blocking", False)
        outside = [a for a in args[:2] if not isinstance(a, FakeTensor)]
        if outside and not (later and self._is_pinned(outside[0])):
            # Memory that is not pinned is copied while the thread waits.
            self._catch_up(stream.clock)
            target.copy_(source)
            self.thread_waits(stream.clock)
            return args[0]
        if not isinstance(args[0], FakeTensor):
            target.view(torch.uint8).fill_(_POISON)
        stream.pending.append((stream.clock[stream.name], lambda: target.copy_(source)))
        return args[0]
