"""One output tensor on its way: which passes remain, and what a tile of each does."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from threading import Lock
from typing import Any, Protocol

import torch
from jaxtyping import Float32
from torch import Tensor

from meldkit.checkpoint import DTYPES, Scratch, StoredTensor, TileSource
from meldkit.errors import RunError
from meldkit.methods import Method
from meldkit.methods.base import subtract_base
from meldkit.methods.statistics import CHUNK, Statistic
from meldkit.plan import Input, TensorJob

#: Elements of a tile. Small enough that a tile of each model stays in the cache while it is worked on,
#: large enough that the time of a call is nothing beside the time of its work.
TILE = 8 * CHUNK


class Sink(Protocol):
    """Where merged tensors go. Called from many threads."""

    def write(self, job: TensorJob, start: int, data: memoryview) -> None:
        """Take the bytes of a run of elements that begins at element `start`."""
        ...

    def finish(self, job: TensorJob) -> None:
        """All bytes of the tensor have been written."""
        ...


class Inputs(Protocol):
    """Where jobs' inputs come from. Called from many threads."""

    def open(self, tensor: Input) -> TileSource:
        """The tensor's values."""
        ...

    def open_raw(self, tensor: Input, dtype: str) -> StoredTensor | None:
        """The tensor's bytes, if they are its values in that dtype (safetensors spelling)."""
        ...


class Buffers:
    """What one worker needs to work on tiles, allocated once.

    Args:
        num_rows: most inputs of a job, its base counted.
        tile: elements of a tile.
    """

    def __init__(self, num_rows: int, tile: int) -> None:
        self.rows: Float32[Tensor, "rows tile"] = torch.empty(num_rows, tile)
        self.scratch = Scratch()
        self.cast = Scratch()


class TensorRun:
    """Carries out one job, tile by tile, in passes: measuring ones, then the one that writes.

    The tiles of a pass may be processed in any order and in any threads; `advance` is called once
    between passes.

    Attributes:
        tiles: tiles (start, stop) of the current pass that nobody has taken yet.
        outstanding: tiles taken and not yet processed. Both are the scheduler's to change.
    """

    def __init__(self, job: TensorJob, inputs: Inputs, sink: Sink, tile: int = TILE) -> None:
        self.job = job
        self._sink = sink
        self._tile = tile
        self._raw = inputs.open_raw(job.inputs[0], job.dtype) if job.method is None else None
        self._sources = [] if self._raw else [inputs.open(i) for i in job.all_inputs]
        self._statistic: Statistic | None = None
        self._measured: Any = None
        self._lock = Lock()
        self._writing = False
        if job.method is not None:
            self._statistic = job.method.statistic(len(job.inputs), job.numel, job.values)
        self.tiles = self._next_tiles()
        self.outstanding = 0

    def _next_tiles(self) -> deque[tuple[int, int]]:
        ranges: Sequence[tuple[int, int]] = self._statistic.ranges() if self._statistic else ()
        if not ranges:
            if self._statistic is not None:
                self._measured = self._statistic.result
            self._writing = True
            ranges = [(0, self.job.numel)]
        # A tensor without elements still has one tile, so that it comes to its end like any other.
        return deque(
            (start, min(stop, start + self._tile))
            for first, stop in ranges
            for start in range(first, max(stop, first + 1), self._tile)
        )

    def advance(self) -> bool:
        """Go on to the next pass; False when the tensor is finished."""
        if self._writing:
            self._sink.finish(self.job)
            return False
        assert self._statistic is not None
        self._statistic.finish_pass()
        self.tiles = self._next_tiles()
        return True

    def process(self, start: int, stop: int, buffers: Buffers) -> None:
        """Work on elements [start, stop) in the current pass."""
        if self._raw is not None:
            raw = buffers.scratch.take((stop - start) * DTYPES[self.job.dtype].itemsize)
            data = raw.numpy().data
            self._raw.read_bytes(start, data)
            self._sink.write(self.job, start, data)
            return
        rows = buffers.rows[: len(self._sources), : stop - start]
        for row, source in zip(rows, self._sources, strict=True):
            source.read(start, stop, row, buffers.scratch)
        method = self.job.method
        if method is None:
            self._write(start, rows[0], buffers)
            return
        base = None if self.job.base is None else rows[0]
        models = rows if base is None else rows[1:]
        if base is not None:
            subtract_base(models, base)
        if self._writing:
            self._write(start, self._merge(method, models, base), buffers)
            return
        assert self._statistic is not None
        partial = self._statistic.update(models, start)
        with self._lock:
            self._statistic.absorb(partial)

    def _merge(
        self, method: Method, models: Float32[Tensor, "m n"], base: Float32[Tensor, " n"] | None
    ) -> Float32[Tensor, " n"]:
        merged = method.apply(models, self.job.values, self._measured)
        return merged if base is None else merged.add_(base)

    def _write(self, start: int, values: Float32[Tensor, " n"], buffers: Buffers) -> None:
        dtype = DTYPES[self.job.dtype]
        torch_dtype: torch.dtype = getattr(torch, dtype.torch)
        low, high = (v.item() for v in torch.aminmax(values))
        limit = torch.finfo(torch_dtype).max
        if not -limit <= low <= high <= limit:
            raise RunError(
                f"tensor '{self.job.name}' of the output has values from {low:g} to {high:g} near element "
                f"{start:,}, which {dtype.torch} cannot hold",
                hint="look for NaN or Inf in the inputs, or choose a wider dtype such as bfloat16",
            )
        if torch_dtype is not torch.float32:
            raw = buffers.cast.take(values.numel() * dtype.itemsize)
            raw.view(torch_dtype).copy_(values)
            values = raw
        self._sink.write(self.job, start, values.view(torch.uint8).numpy().data)
