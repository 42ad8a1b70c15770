"""One output tensor on its way: which passes remain, and what a piece of each does."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Lock
from typing import Any, NoReturn

import numpy as np
import torch

from meldkit.checkpoint import DTYPES, HeldBytes, StoredTensor, TileSource
from meldkit.engine.blocks import elements_of_row, round_to, scales_of
from meldkit.engine.buffers import SPAN, TILE, Buffers, cut
from meldkit.engine.ends import Inputs, Observer, Sink
from meldkit.engine.finite import all_finite, count, fits, not_finite
from meldkit.errors import MeldError, RunError, is_full, out_of_memory
from meldkit.kernels import Row, stored
from meldkit.kernels.tile import Failed
from meldkit.methods import Method, Noise, Whole
from meldkit.methods.base import subtract_base
from meldkit.methods.statistics import CHUNK, Statistic
from meldkit.plan import Input, TensorJob
from meldkit.shapes import Float32, Tensor


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
    rows = buffers.read(sources, start, stop)
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
        sources: its inputs, the base first, if they are open.

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
        sources: Sequence[TileSource] = (),
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
        self._raw: StoredTensor | HeldBytes | None = None
        if copied:
            self._raw = inputs.open_raw(job.inputs[0], job.dtype)
        self._sources = [] if self._raw else list(sources) or [inputs.open(i) for i in job.all_inputs]
        if copied and self._sources and isinstance(exact := self._sources[0], HeldBytes):
            self._raw = exact if exact.dtype == job.dtype else None
        self._stored = [source for source in (self._raw, *self._sources) if isinstance(source, StoredTensor)]
        self._statistic: Statistic | None = None
        self._measured: Any = None
        self._lock = Lock()
        self._writing = False
        grain = CHUNK
        if job.method is not None:
            grain = job.method.grain(self._whole, job.values)
            self._statistic = job.method.statistic(self._whole, job.values)
        self._grain = grain
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

    @property
    def writing(self) -> bool:
        """Whether all that must be measured is."""
        return self._writing

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
        for source in self._stored:
            source.will_read(start, stop)
        rest = self._process(start, stop, buffers)
        if self._writing:
            for source in self._stored:
                source.let_go(start, stop)
        return rest

    def _process(self, start: int, stop: int, buffers: Buffers) -> Future[None] | None:
        if self._raw is not None:
            raw = buffers.output(self.job, start, stop)
            self._raw.read_bytes(start, raw.data)
            self._check_copy(start, raw)
            self._observe(self.job, start, raw)
            return buffers.write(self._sink, self.job, start, raw)
        if self._writing:
            write = self._write if self.job.scales is None else self._write_in_blocks
            return write(start, stop, buffers)
        self._measure(start, stop, buffers)
        return None

    def _measure(self, start: int, stop: int, buffers: Buffers) -> None:
        statistic = self._statistic
        assert statistic is not None

        def measure(first: int, last: int) -> None:
            partial = self._measure_tile(first, last, buffers)
            with self._method_failures(), self._lock:
                statistic.absorb(partial)

        buffers.each_tile(start, stop, self._tile, self._grain, measure)

    def _measure_tile(self, start: int, stop: int, buffers: Buffers) -> Any:
        """What the statistic makes of elements [start, stop)."""
        assert self._statistic is not None
        models, base = read_tile(self.job, self._sources, start, stop, buffers.measuring)
        self._check_inputs(start, models, base)
        with self._method_failures():
            return self._statistic.update(models, start)

    def _write(self, start: int, stop: int, buffers: Buffers) -> Future[None]:
        raw = buffers.output(self.job, start, stop)
        itemsize = DTYPES[self.job.dtype].itemsize

        def make(first: int, last: int) -> None:
            part = raw[(first - start) * itemsize : (last - start) * itemsize]
            self._make_tile(first, last, part, buffers)
            self._observe(self.job, first, part)

        buffers.each_tile(start, stop, self._tile, self._grain, make)
        return buffers.write(self._sink, self.job, start, raw)

    def _make_tile(self, start: int, stop: int, raw: np.ndarray, buffers: Buffers) -> None:
        """Put the bytes of elements [start, stop) of the output into `raw`."""
        output = torch.from_numpy(raw).view(getattr(torch, DTYPES[self.job.dtype].torch))
        values = self._values(start, stop, buffers)
        if not fits(values, buffers.round(values, output)):
            if not self._allow_nonfinite:
                self._refuse_output(start, stop, values, output.dtype, buffers)
            self._sink.let_through(self.job)
        buffers.land()

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
            self._hold(held[filled : filled + last - first], first, last, buffers)
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

    def _hold(self, room: Float32[Tensor, " n"], start: int, stop: int, buffers: Buffers) -> None:
        """Fill room in main memory with elements [start, stop) of the output."""

        def fill(first: int, last: int) -> None:
            room[first - start : last - start] = self._values(first, last, buffers)

        buffers.each_tile(start, stop, self._tile, self._grain, fill)

    def fill(self, start: int, stop: int, out: Float32[Tensor, " n"], buffers: Buffers) -> None:
        """Put elements [start, stop) of the output into `out`, not rounded; once all is measured."""
        grain = self._grain
        for source in self._stored:
            source.will_read(start, stop)
        for first, last in cut([(start // grain * grain, stop)], self._tile):
            whole = min(-(-last // grain) * grain, self.job.numel)
            values = self._values(first, whole, buffers)
            low = max(start, first)
            out[low - start : last - start] = values[low - first : last - first]

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
            assert not isinstance(merged, Row)
            if merged.shape != models.shape[1:]:
                raise ValueError(f"it returned {list(merged.shape)} for a tile of {list(models[0].shape)}")
        return merged if base is None else merged.add_(base)

    def _check_copy(self, start: int, raw: np.ndarray) -> None:
        """Refuse NaN among bytes that are copied; Inf is let through, for masks are stored as such."""
        dtype = DTYPES[self.job.dtype]
        if not dtype.floating or (stored.knows(dtype.name) and stored.finite(dtype.name, raw)):
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
        except (MeldError, Failed):
            raise
        except Exception as e:
            if (full := out_of_memory(e)) is not None:
                raise full from e
            if is_full(e):
                raise
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
