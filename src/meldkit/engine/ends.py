"""What stands at both ends of a run: where tensors come from, where they go, and who looks on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from meldkit.checkpoint import OpenFiles, StoredTensor, TileSource
from meldkit.plan import Input, Plan, TensorJob


class Sink(Protocol):
    """Where merged tensors go. Called from many threads."""

    def write(self, job: TensorJob, start: int, data: memoryview) -> None:
        """Take the bytes of a run of elements that begins at element `start`.

        Within a page of memory they lie as within a page of the file in which `job.offset` counts.
        Scales come as elements of `job.scales`, before their job is finished.
        """
        ...

    def let_through(self, job: TensorJob) -> None:
        """The tensor holds NaN or Inf, which was not refused; told before its job is finished."""
        ...

    def finish(self, job: TensorJob) -> None:
        """All bytes of the tensor have been written."""
        ...


class Nowhere:
    """A sink for tensors that are only looked at."""

    def write(self, job: TensorJob, start: int, data: memoryview) -> None:
        del job, start, data

    def let_through(self, job: TensorJob) -> None:
        del job

    def finish(self, job: TensorJob) -> None:
        del job


#: Told of a run of elements of an output tensor, by its first element and its bytes, when it has just been
#: made and is still in the processor's cache. Called from many threads.
Observer = Callable[[TensorJob, int, memoryview], None]


class Inputs(Protocol):
    """Where jobs' inputs come from. Called from many threads."""

    def open(self, tensor: Input) -> TileSource:
        """The tensor's values."""
        ...

    def open_raw(self, tensor: Input, dtype: str | None) -> StoredTensor | None:
        """The tensor's bytes, if they are its values in that dtype (safetensors spelling), or in any."""
        ...

    def label(self, tensor: Input) -> str:
        """What messages call the model it is of."""
        ...


class PlanInputs:
    """The tensors of a plan's checkpoints.

    Args:
        plan: the plan.
        files: from which they are read.
    """

    def __init__(self, plan: Plan, files: OpenFiles) -> None:
        self._checkpoints = plan.checkpoints
        self._files = files

    def open(self, tensor: Input) -> TileSource:
        return self._checkpoints[tensor.checkpoint].source(self._files, tensor.tensor)

    def label(self, tensor: Input) -> str:
        return self._checkpoints[tensor.checkpoint].label

    def open_raw(self, tensor: Input, dtype: str | None) -> StoredTensor | None:
        checkpoint = self._checkpoints[tensor.checkpoint]
        if dtype not in (None, checkpoint[tensor.tensor].dtype) or not checkpoint.plain(tensor.tensor):
            return None
        return checkpoint.stored(self._files, tensor.tensor)
