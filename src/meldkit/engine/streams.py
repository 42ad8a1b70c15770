"""Queues, events and memory of accelerators, by PyTorch's names for them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

import numpy as np
import torch


class Event(Protocol):
    """A point in a queue of work."""

    def synchronize(self) -> None:
        """Wait until the work before it is done."""
        ...


class Stream(Protocol):
    """A queue of work of a device, which is done in order, and later than it is asked for."""

    def record_event(self) -> Any:
        """A point after all work that has been asked for."""
        ...

    def wait_event(self, event: Any) -> None:
        """Let what is asked for from now on wait for an event."""
        ...


class Backend:
    """One kind of accelerator: torch.cuda, or torch.xpu, which calls everything the same.

    Args:
        kind: PyTorch's name.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._module: Any = getattr(torch, kind)

    def count(self) -> int:
        """Devices of the kind that can be used; 0 also where PyTorch was built without it."""
        return self._module.device_count() if self._module.is_available() else 0

    def model(self, device: torch.device) -> str:
        """What its maker calls a device."""
        return self._module.get_device_name(device)

    def memory(self, device: torch.device) -> tuple[int, int]:
        """Bytes that are free, and of all."""
        try:
            return self._module.mem_get_info(device)
        except (AttributeError, RuntimeError):
            # Not every version and driver tells.
            total = cast("int", self._module.get_device_properties(device).total_memory)
            return total - cast("int", self._module.memory_reserved(device)), total

    def stream(self, device: torch.device) -> Stream:
        """A new queue."""
        return self._module.Stream(device)

    def using(self, stream: Stream) -> AbstractContextManager[object]:
        """What this thread asks of the device meanwhile is put into that queue."""
        return self._module.stream(stream)

    def pinned(self, nbytes: int) -> np.ndarray:
        """Main memory that the device reads and writes by itself, uint8."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()

    def release(self) -> None:
        """Give memory back that PyTorch keeps for later."""
        self._module.empty_cache()


class OneQueue(Backend):
    """torch.mps: one queue for all, and memory that CPU and GPU share."""

    def count(self) -> int:
        return int(torch.backends.mps.is_available())

    def model(self, device: torch.device) -> str:
        del device
        return "Apple GPU"

    def memory(self, device: torch.device) -> tuple[int, int]:
        del device
        total = torch.mps.recommended_max_memory()
        return total - torch.mps.driver_allocated_memory(), total

    def stream(self, device: torch.device) -> Stream:
        del device
        return _TheQueue()

    def using(self, stream: Stream) -> AbstractContextManager[object]:
        del stream
        return nullcontext()

    def pinned(self, nbytes: int) -> np.ndarray:
        return np.empty(nbytes, np.uint8)


class _TheQueue:
    """Work is done in the order in which it was asked for, so that only this thread ever has to wait."""

    def record_event(self) -> Any:
        return self

    def wait_event(self, event: Any) -> None:
        pass

    def synchronize(self) -> None:
        torch.mps.synchronize()
