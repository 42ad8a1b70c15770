"""One output tensor on its way: which passes remain, and what a piece of each does."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager
from threading import Lock
from typing import Any, NoReturn

import numpy as np
import torch

from meldkit import kernels
from meldkit.checkpoint import DTYPES, Scratch, TileSource
from meldkit.engine.blocks import elements_of_row, round_to, scales_of
from meldkit.engine.ends import Inputs, Observer, Sink
from meldkit.engine.finite import all_finite, count, fits, not_finite
from meldkit.errors import MeldError, RunError, out_of_memory
from meldkit.methods import Method, Noise, Whole
from meldkit.methods.base import subtract_base
from meldkit.methods.statistics import CHUNK, Statistic
from meldkit.plan import Input, TensorJob
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
    """

    def __init__(self, writer: Executor | None = None) -> None:
        self._values = Scratch()
        self._held = Scratch()
        self._sources: list[Scratch] = []
        self._scales = Scratch()
        self.scratch = Scratch()
        self._writer = writer
        #: Two, so that one can be filled while the other is written; and what is being done with them.
        self._outputs = [_Output(), _Output()]

    def rows(self, num_rows: int, n: int) -> Float32[Tensor, "num_rows n"]:
        """Room for one tile of each input."""
        return torch.from_numpy(self.row_arrays(num_rows, n))

    def row_arrays(self, num_rows: int, n: int) -> np.ndarray:
        """The same, as a float32 array `[num_rows, n]`; rows are aligned alike whatever n is."""
        stride = -(-n // _ALIGNMENT) * _ALIGNMENT
        room = self._values.array(num_rows * stride * 4).view(np.float32)
        return room.reshape(num_rows, stride)[:, :n]

    def source(self, index: int, nbytes: int) -> np.ndarray:
        """Room for bytes of one of a job's inputs, uint8."""
        while len(self._sources) <= index:
            self._sources.append(Scratch())
        return self._sources[index].array(nbytes)

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
    def __init__(self) -> None:
        self.scratch = Scratch()
        self.written: Future[None] = Future()
        self.written.set_result(None)


def cut(ranges: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Pieces (start, stop) of at most `size` elements.

    A range without elements still gives one, so that a tensor without any comes to its end like others.
    """
    for first, stop in ranges:
        for start in range(first, max(stop, first + 1), size):
            yield start, min(stop, start + size)


def read_tile(
    job: TensorJob, sources: Sequence[TileSource], start: int, stop: int, buffers: Buffers
) -> tuple[Float32[Tensor, "m n"], Float32[Tensor, " n"] | None]:
    """Elements [start, stop) of the models, as task vectors if the job has a base; and of the base.

    Args:
        job: says whether there is a base.
        sources: of its inputs, the base first.
        start, stop: elements of the flattened tensor.
        buffers: of the worker; what is returned lies in them.
    """
    rows = buffers.rows(len(sources), stop - start)
    for row, source in zip(rows, sources, strict=True):
        source.read(start, stop, row, buffers.scratch)
    if job.base is None:
        return rows, None
    subtract_base(rows[1:], rows[0])
    return rows[1:], rows[0]


class TensorRun:
    """Carries out one job in passes over its elements: measuring ones, then the one that writes.

    The spans of a pass may be processed in any order and in any threads; `advance` is called once
    between passes.

    Args:
        job: what to do.
        inputs: where its inputs come from.
        sink: where the result goes.
        seed: of random methods.
        tile: elements per tile, a multiple of `CHUNK`; changes nothing in the result.
        span: elements per span, nor does this.
        of_model: what the method measured over the whole model.
        allow_nonfinite: let NaN and Inf through.
        observe: told of everything that is made.

    Attributes:
        job: the job.
        spans: spans (start, stop) of the current pass that nobody has taken yet.
        outstanding: spans taken and not yet processed. Both are the scheduler's to change.
    """

    def __init__(
        self,
        job: TensorJob,
        inputs: Inputs,
        sink: Sink,
        *,
        seed: int = 0,
        tile: int = TILE,
        span: int = SPAN,
        of_model: Any = None,
        allow_nonfinite: bool = False,
        observe: Observer | None = None,
    ) -> None:
        if tile < CHUNK or tile % CHUNK:
            raise ValueError(f"tile is {tile}; it must be a multiple of {CHUNK}")
        self.job = job
        self.outstanding = 0
        self._inputs = inputs
        self._sink = sink
        self._allow_nonfinite = allow_nonfinite
        self._observer = observe
        self._whole = Whole(len(job.inputs), job.shape, Noise(seed, job.name), of_model)
        copied = job.method is None and job.scales is None
        self._raw = inputs.open_raw(job.inputs[0], job.dtype) if copied else None
        self._sources = [] if self._raw else [inputs.open(i) for i in job.all_inputs]
        self._statistic: Statistic | None = None
        self._measured: Any = None
        self._lock = Lock()
        self._writing = False
        grain = CHUNK
        if job.method is not None:
            grain = job.method.grain(self._whole, job.values)
            self._statistic = job.method.statistic(self._whole, job.values)
        self._tile = max(tile // grain, 1) * grain
        # A span begins where a tile may, and holds whole rows of blocks.
        unit = self._tile if job.scales is None else math.lcm(grain, elements_of_row(job))
        self._span = max(span // unit, 1) * unit
        self.spans = self._next_spans()

    def _next_spans(self) -> deque[tuple[int, int]]:
        ranges: Sequence[tuple[int, int]] = self._statistic.ranges() if self._statistic else ()
        if not ranges:
            if self._statistic is not None:
                self._measured = self._statistic.result
            self._writing = True
            ranges = [(0, self.job.numel)]
        return deque(cut(ranges, self._span))

    def advance(self) -> bool:
        """Go on to the next pass; False when the tensor is finished."""
        if self._writing:
            self._sink.finish(self.job)
            return False
        assert self._statistic is not None
        with self._method_failures():
            self._statistic.finish_pass()
            self.spans = self._next_spans()
        return True

    def process(self, start: int, stop: int, buffers: Buffers) -> Future[None] | None:
        """Work on elements [start, stop), a span of the current pass."""
        if self._raw is not None:
            raw = buffers.output(self.job, start, stop)
            self._raw.read_bytes(start, raw.data, once=True)
            self._check_copy(start, raw)
            self._observe(self.job, start, raw)
            return buffers.write(self._sink, self.job, start, raw)
        if self._writing:
            write = self._write if self.job.scales is None else self._write_in_blocks
            return write(start, stop, buffers)
        self._measure(start, stop, buffers)
        return None

    def _measure(self, start: int, stop: int, buffers: Buffers) -> None:
        assert self._statistic is not None
        for first, last in cut([(start, stop)], self._tile):
            partial = self._measure_tile(first, last, buffers)
            with self._method_failures(), self._lock:
                self._statistic.absorb(partial)

    def _measure_tile(self, start: int, stop: int, buffers: Buffers) -> Any:
        """What the statistic makes of elements [start, stop)."""
        assert self._statistic is not None
        models, base = read_tile(self.job, self._sources, start, stop, buffers)
        self._check_inputs(start, models, base)
        with self._method_failures():
            return self._statistic.update(models, start)

    def _write(self, start: int, stop: int, buffers: Buffers) -> Future[None]:
        raw = buffers.output(self.job, start, stop)
        itemsize = DTYPES[self.job.dtype].itemsize
        for first, last in cut([(start, stop)], self._tile):
            part = raw[(first - start) * itemsize : (last - start) * itemsize]
            self._make_tile(first, last, part, buffers)
            self._observe(self.job, first, part)
        return buffers.write(self._sink, self.job, start, raw)

    def _make_tile(self, start: int, stop: int, raw: np.ndarray, buffers: Buffers) -> None:
        """Put the bytes of elements [start, stop) of the output into `raw`."""
        output = torch.from_numpy(raw).view(getattr(torch, DTYPES[self.job.dtype].torch))
        values = self._values(start, stop, buffers)
        output.copy_(values)
        if not fits(values, output):
            if not self._allow_nonfinite:
                self._refuse_output(start, stop, values, output.dtype, buffers)
            self._sink.let_through(self.job)

    def _write_in_blocks(self, start: int, stop: int, buffers: Buffers) -> Future[None]:
        """Write whole rows of blocks, with their scales; tiles may end within one."""
        job = self.job
        assert job.scales is not None
        row, block = elements_of_row(job), math.prod(job.block)
        raw = buffers.output(job, start, stop)
        codes = torch.from_numpy(raw).view(getattr(torch, DTYPES[job.dtype].torch))
        raw_scales = buffers.scales(job.scales, start // block, stop // block)
        all_scales = torch.from_numpy(raw_scales).view(torch.float32)
        held = buffers.held(min(self._tile + row, stop - start))
        done, filled = start, 0
        for first, last in cut([(start, stop)], self._tile):
            held[filled : filled + last - first] = self._values(first, last, buffers)
            filled += last - first
            complete = filled // row * row
            if not complete:
                continue
            values = held[:complete]
            scales = scales_of(job, values, buffers.scratch, allow_nonfinite=self._allow_nonfinite)
            # Scales are finite where NaN is allowed; the values then say whether there was any.
            if not all_finite(values if self._allow_nonfinite else scales):
                if not self._allow_nonfinite:
                    self._refuse_output(done, done + complete, values, codes.dtype, buffers)
                self._sink.let_through(job)
            round_to(codes[done - start :][:complete], values, scales, job)
            all_scales[(done - start) // block :][: scales.numel()] = scales.view(-1)
            # What is left is less than a row of blocks, so that it does not lie over its new place.
            filled -= complete
            held[:filled] = held[complete : complete + filled]
            done += complete
        self._observe(job.scales, start // block, raw_scales)
        self._observe(job, start, raw)
        self._sink.write(job.scales, start // block, raw_scales.data)
        return buffers.write(self._sink, job, start, raw)

    def _observe(self, job: TensorJob, start: int, raw: np.ndarray) -> None:
        if self._observer is not None:
            self._observer(job, start, raw.data)

    def _values(self, start: int, stop: int, buffers: Buffers) -> Float32[Tensor, " n"]:
        """Elements [start, stop) of the output."""
        models, base = read_tile(self.job, self._sources, start, stop, buffers)
        return models[0] if self.job.method is None else self._merge(self.job.method, start, models, base)

    def _merge(
        self, method: Method, start: int, models: Float32[Tensor, "m n"], base: Float32[Tensor, " n"] | None
    ) -> Float32[Tensor, " n"]:
        if self._statistic is None and not method.shows_nonfinite:
            self._check_inputs(start, models, base)
        with self._method_failures():
            merged = method.apply(models, self.job.values, self._measured, self._whole, start)
            if merged.shape != models.shape[1:]:
                raise ValueError(f"it returned {list(merged.shape)} for a tile of {list(models[0].shape)}")
        return merged if base is None else merged.add_(base)

    def _check_copy(self, start: int, raw: np.ndarray) -> None:
        """Refuse NaN among bytes that are copied; Inf is let through, for masks are stored as such."""
        dtype = DTYPES[self.job.dtype]
        if not dtype.floating or (dtype.name in kernels.TYPES and kernels.finite(dtype.name, raw)):
            return
        values = torch.from_numpy(raw).view(getattr(torch, dtype.torch))
        if dtype.itemsize == 1:
            values = values.float()  # types of one byte have no sums
        if all_finite(values):
            return
        if not self._allow_nonfinite and values.isnan().any():
            self._refuse_input(self.job.inputs[0], start, values, torch.isnan)
        self._sink.let_through(self.job)

    @contextmanager
    def _method_failures(self) -> Generator[None]:
        """Methods may come from outside and raise anything; say which one failed, and on what."""
        try:
            yield
        except MeldError:
            raise
        except Exception as e:
            if (full := out_of_memory(e)) is not None:
                raise full from e
            assert self.job.method is not None
            raise RunError(
                f"{self.job.method.name} failed on tensor '{self.job.name}': {type(e).__name__}: {e}",
                hint="look at the parameters of this tensor with 'meldkit plan -v'",
            ) from e

    def _check_inputs(
        self, start: int, models: Float32[Tensor, "m n"], base: Float32[Tensor, " n"] | None
    ) -> None:
        """Refuse NaN and Inf, which methods may turn into sound-looking numbers; in the first pass."""
        if self._allow_nonfinite:
            return
        rows = list(models) if base is None else [base, *models]
        for row, tensor in zip(rows, self.job.all_inputs, strict=True):
            if not all_finite(row):
                self._refuse_input(tensor, start, row, not_finite)

    def _refuse_input(
        self, tensor: Input, start: int, values: Tensor, bad: Callable[[Tensor], Tensor]
    ) -> NoReturn:
        """Say which of an input's values, that begin at element `start`, is the first bad one."""
        first = int(torch.nonzero(bad(values))[0])
        value, others = values[first].item(), count(bad, self._inputs.open(tensor), self.job.numel) - 1
        raise RunError(
            f"tensor '{tensor.tensor}' of '{self._inputs.label(tensor)}' has the value {value} at element "
            f"{start + first:,}" + f", and {others:,} more that are no finite numbers" * (others > 0),
            hint="repair the model, or let it through with --allow-nonfinite",
        )

    def _refuse_output(
        self, start: int, stop: int, values: Float32[Tensor, " n"], dtype: torch.dtype, buffers: Buffers
    ) -> NoReturn:
        """Say where NaN and Inf in a tile of the output come from."""
        low, high = (v.item() for v in torch.aminmax(values))
        self._check_inputs(start, *read_tile(self.job, self._sources, start, stop, buffers))
        name = str(dtype).removeprefix("torch.")
        # NaN and Inf that come in were refused above; what is left was too large, or made by the method.
        hint = "choose a wider dtype such as bfloat16 or float32"
        if not math.isfinite(low) or not math.isfinite(high):
            hint = "the inputs are finite, but not what the method makes of them; look at its parameters"
        raise RunError(
            f"tensor '{self.job.name}' of the output has values from {low:g} to {high:g} near element "
            f"{start:,}, which {name} cannot hold (it ends at {torch.finfo(dtype).max:g})",
            hint=hint,
        )
