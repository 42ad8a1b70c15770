"""Where a worker's tiles lie on an accelerator, and how they get there and back.

Two queues of work per worker: one copies, the other computes. What is read goes through two pieces of
pinned memory in turn, so that one is filled while the other is copied, and results come back into pinned
output room. The order between the queues, and between them and this thread:

    before                                          waits for
    a piece is filled again                         its copy                            (this thread)
    the rows of a tile are overwritten              all that was computed before        (copying)
    a tile is computed                              the copies of its rows              (computing)
    a rounded result is copied                      its rounding                        (copying)
    a result is looked at, or written               its copy                            (this thread)
    a buffer is replaced by a larger one            everything                          (this thread)

The second queue is never far behind: whether a result is finite is asked tile by tile. What keeps disk, bus
and device busy at the same time is that there are several workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Protocol

import numpy as np
import torch

from meldkit.checkpoint import BY_TORCH_NAME, DTYPES, Scratch, StoredTensor, TileSource
from meldkit.engine.buffers import Buffers, cut, stride_of
from meldkit.engine.streams import Backend, Event, Stream
from meldkit.errors import RunError, is_full
from meldkit.kernels.elsewhere import has_float64
from meldkit.methods.statistics import CHUNK
from meldkit.shapes import Float32, Tensor

#: Elements that are copied at once: enough for the full speed of the bus, and little enough to have two.
PIECE = 32 * CHUNK
#: Types in which elements are copied as they are stored, and in which results come back; every accelerator
#: has them. Others are converted on the CPU.
_CARRIED = ("F32", "BF16", "F16")


class _Room:
    """Memory of the device, that grows to the largest need."""

    def __init__(self, device: torch.device, queues: Sequence[Stream]) -> None:
        self._device, self._queues = device, queues
        self._buffer: Tensor | None = None

    def take(self, nbytes: int) -> Tensor:
        """The first `nbytes`, uint8; valid until the next `take`."""
        if self._buffer is None or self._buffer.numel() < nbytes:
            # PyTorch may hand the memory of the old buffer to one queue while the other is not done with it.
            _settle(self._queues)
            # Given back first: there may not be room for both.
            self._buffer = None
            self._buffer = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        return self._buffer[:nbytes]


class _Piece:
    """Pinned memory, and the event after which it may be filled again."""

    def __init__(self, allocate: Callable[[int], np.ndarray]) -> None:
        self.room = Scratch(allocate)
        self.copied: Event | None = None


class Place(Protocol):
    """What buffers must know of the device that they lie on."""

    @property
    def device(self) -> torch.device: ...

    @property
    def name(self) -> str: ...

    @property
    def backend(self) -> Backend: ...


class StagedBuffers(Buffers):
    """What one worker on an accelerator needs.

    Args:
        place: the device.
        writer: as for `Buffers`.
    """

    def __init__(self, place: Place, writer: Executor | None = None) -> None:
        backend = place.backend
        super().__init__(writer, backend.pinned)
        self._place = place
        self._backend = backend
        self.copying, self.computing = backend.stream(place.device), backend.stream(place.device)
        self._pieces = [_Piece(backend.pinned), _Piece(backend.pinned)]
        self._rows, self._raw, self._rounded = self._rooms()
        self._landed: Event | None = None
        #: Elements of the largest tile to try; None as long as there was memory for all.
        self._most: int | None = None
        # Where there is no float64, tiles are measured on the CPU.
        self._on_cpu = None if has_float64(place.device) else Buffers(writer)

    @property
    def measuring(self) -> Buffers:
        return self._on_cpu or self

    def _rooms(self) -> tuple[_Room, _Room, _Room]:
        queues = (self.copying, self.computing)
        return (
            _Room(self._place.device, queues),
            _Room(self._place.device, queues),
            _Room(self._place.device, queues),
        )

    def forget(self) -> None:
        """Wait until everything is done, and give back all memory of the device."""
        _settle((self.copying, self.computing))
        self._rows, self._raw, self._rounded = self._rooms()
        self._backend.release()

    def rows(self, num_rows: int, n: int) -> Float32[Tensor, "num_rows n"]:
        stride = stride_of(n)
        room = self._rows.take(num_rows * stride * 4).view(torch.float32)
        return room.view(num_rows, stride)[:, :n]

    def read(self, sources: Sequence[TileSource], start: int, stop: int) -> Float32[Tensor, "k n"]:
        rows = self.rows(len(sources), stop - start)
        self.copying.wait_event(self.computing.record_event())
        for row, source in zip(rows, sources, strict=True):
            for first, last in cut([(start, stop)], PIECE):
                self._send(source, first, last, row[first - start : last - start])
        self.computing.wait_event(self.copying.record_event())
        return rows

    def _send(self, source: TileSource, start: int, stop: int, out: Float32[Tensor, " n"]) -> None:
        self._pieces.reverse()
        piece = self._pieces[0]
        if piece.copied is not None:
            piece.copied.synchronize()
        n = stop - start
        if isinstance(source, StoredTensor) and source.dtype in _CARRIED:
            dtype = DTYPES[source.dtype]
            raw = piece.room.array(n * dtype.itemsize)
            source.read_bytes(start, raw.data)
            data = torch.from_numpy(raw).view(getattr(torch, dtype.torch))
        else:
            data = piece.room.take(n * 4).view(torch.float32)
            source.read(start, stop, data, self.scratch)
        there = out
        if data.dtype is not torch.float32:
            there = self._raw.take(n * data.dtype.itemsize).view(data.dtype)
        with self._backend.using(self.copying):
            there.copy_(data, non_blocking=True)
            if there is not out:
                out.copy_(there)
        piece.copied = self.copying.record_event()

    def round(self, values: Float32[Tensor, " n"], part: Tensor) -> Tensor:
        if BY_TORCH_NAME[str(part.dtype).removeprefix("torch.")].name not in _CARRIED:
            return part.copy_(values.cpu())
        rounded = self._rounded.take(part.nbytes).view(part.dtype).copy_(values)
        self.copying.wait_event(self.computing.record_event())
        with self._backend.using(self.copying):
            part.copy_(rounded, non_blocking=True)
        self._landed = self.copying.record_event()
        return rounded

    def land(self) -> None:
        if self._landed is not None:
            self._landed.synchronize()

    def each_tile(
        self, start: int, stop: int, tile: int, grain: int, work: Callable[[int, int], object]
    ) -> None:
        if self._most is not None:
            tile = min(tile, max(self._most // grain, 1) * grain)
        tiles = deque(cut([(start, stop)], tile))
        while tiles:
            first, last = tiles.popleft()
            try:
                work(first, last)
                continue
            except RuntimeError as e:
                half = -(-(last - first) // (2 * grain)) * grain
                if not is_full(e):
                    raise
                if half >= last - first:
                    raise self._full(last - first) from e
            # Here, where the error holds no tensor of the failed work any more.
            self.forget()
            self._most = half
            tiles.extendleft([(first + half, last), (first, first + half)])

    def _full(self, n: int) -> RunError:
        return RunError(
            f"{self._place.name} has no memory for tiles of {n:,} elements",
            hint="close other programs that use it, take fewer workers (-j 1), or leave out --cuda and "
            "--device; the same command continues",
        )


def _settle(queues: Sequence[Stream]) -> None:
    """Wait until everything is done that was asked for."""
    for queue in queues:
        queue.record_event().synchronize()
