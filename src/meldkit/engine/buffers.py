"""Where a worker's tiles lie while it works on them, in main memory; for accelerators see `staging`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, wait

import numpy as np
import torch

from meldkit.checkpoint import DTYPES, Scratch, TileSource
from meldkit.engine.ends import Sink
from meldkit.methods.statistics import CHUNK
from meldkit.plan import TensorJob
from meldkit.shapes import Float32, Tensor

#: Elements of a tile, on which methods work: small enough that a tile of each model stays in the cache,
#: large enough that the time of a call is little beside the time of its work.
TILE = 8 * CHUNK
#: Elements of a span, the run of tiles that one worker takes and writes at once: disks want long writes.
SPAN = 32 * CHUNK
#: Elements: no sum may depend on where in memory a row begins.
_ALIGNMENT = 64
#: Bytes: a page, and at least a block of any usual disk.
PAGE = 4096


class Buffers:
    """What one worker needs; each buffer grows to the largest need and stays.

    Args:
        writer: carries out writes while the worker goes on; None to write at once.
        allocate: room for output, as for `Scratch`.
    """

    def __init__(
        self, writer: Executor | None = None, allocate: Callable[[int], np.ndarray] | None = None
    ) -> None:
        self._values = Scratch()
        self._held = Scratch()
        self._scales = Scratch()
        self.scratch = Scratch()
        self._writer = writer
        # Two, so that one can be filled while the other is written; and what is being done with them.
        self._outputs = [_Output(allocate), _Output(allocate)]

    def rows(self, num_rows: int, n: int) -> Float32[Tensor, "num_rows n"]:
        """Room for one tile of each input."""
        stride = stride_of(n)
        room = self._values.array(num_rows * stride * 4).view(np.float32)
        return torch.from_numpy(room.reshape(num_rows, stride)[:, :n])

    @property
    def measuring(self) -> Buffers:
        """Where tiles lie that are only measured."""
        return self

    def read(self, sources: Sequence[TileSource], start: int, stop: int) -> Float32[Tensor, "k n"]:
        """Elements [start, stop) of k tensors; they lie in these buffers."""
        rows = self.rows(len(sources), stop - start)
        for row, source in zip(rows, sources, strict=True):
            source.read(start, stop, row, self.scratch)
        return rows

    def each_tile(
        self, start: int, stop: int, tile: int, grain: int, work: Callable[[int, int], object]
    ) -> None:
        """Call `work(first, last)` for the tiles of elements [start, stop), one after the other.

        Args:
            start, stop: elements of the flattened tensor.
            tile: elements of a tile, a multiple of `grain`.
            grain: tiles may be cut further at multiples of it.
            work: changes nothing if it fails for want of memory, and may then be called again.
        """
        del grain
        for first, last in cut([(start, stop)], tile):
            work(first, last)

    def round(self, values: Float32[Tensor, " n"], part: Tensor) -> Tensor:
        """Fill a part [n] of the output's room with values in its dtype; gives it, or the same elsewhere."""
        return part.copy_(values)

    def land(self) -> None:
        """Wait until the part that was filled last is in main memory."""

    def output(self, job: TensorJob, start: int, stop: int) -> np.ndarray:
        """Room for the bytes of elements [start, stop), which lies within a page as they do in the file."""
        self._outputs.reverse()
        output = self._outputs[0]
        wait([output.written])
        return _within_page(output.scratch, job, start, stop)

    def held(self, n: int) -> Float32[Tensor, " n"]:
        """Room for elements that wait until a row of blocks is complete."""
        return self._held.take(n * 4).view(torch.float32)

    def scales(self, job: TensorJob, start: int, stop: int) -> np.ndarray:
        """As `output`, for scales [start, stop); they are to be written at once."""
        return _within_page(self._scales, job, start, stop)

    def write(self, sink: Sink, job: TensorJob, start: int, raw: np.ndarray) -> Future[None]:
        """Hand over what has been put into the latest output room, which is in use until it is written."""
        if self._writer is None:
            sink.write(job, start, raw.data)
        else:
            self._outputs[0].written = self._writer.submit(sink.write, job, start, raw.data)
        return self._outputs[0].written


def _within_page(scratch: Scratch, job: TensorJob, start: int, stop: int) -> np.ndarray:
    itemsize = DTYPES[job.dtype].itemsize
    nbytes = (stop - start) * itemsize
    room = scratch.array(nbytes + PAGE)
    skip = (job.offset + start * itemsize - room.ctypes.data) % PAGE
    return room[skip : skip + nbytes]


class _Output:
    def __init__(self, allocate: Callable[[int], np.ndarray] | None) -> None:
        self.scratch = Scratch(allocate)
        self.written: Future[None] = Future()
        self.written.set_result(None)


def stride_of(n: int) -> int:
    """Elements from one row to the next."""
    return -(-n // _ALIGNMENT) * _ALIGNMENT


def cut(ranges: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Pieces (start, stop) of at most `size` elements.

    A range without elements still gives one, so that a tensor without any comes to its end like others.
    """
    for first, stop in ranges:
        for start in range(first, max(stop, first + 1), size):
            yield start, min(stop, start + size)
