"""Tensors that compiled loops make, from the files' bytes to the output's, without PyTorch.

Importing PyTorch takes longer than a small merge, and its operations go through main memory one after the
other. What is not finite, too large for the output's type or cannot be read is left to `TensorRun`, which
says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from meldkit.checkpoint import DTYPES, StoredTensor, TensorInfo, TileSource
from meldkit.engine.buffers import TILE, Buffers
from meldkit.engine.ends import Inputs
from meldkit.engine.tensor_run import TensorRun
from meldkit.kernels import Tile, stored
from meldkit.kernels.library import compiled, rooms
from meldkit.kernels.tile import Failed, Row, Source, in_file, in_memory
from meldkit.plan import TensorJob
from meldkit.shapes import Float32, Tensor


def stored_dtype(info: TensorInfo) -> str | None:
    """How a tensor's values are stored one after the other; None if they are stored otherwise."""
    return info.dtype if info.encoding is None else None


def takes_torch(job: TensorJob, dtypes: Sequence[str | None]) -> bool:
    """Whether it takes PyTorch to make a tensor; if not, it is copied, or compiled loops make it.

    Args:
        job: how it is made.
        dtypes: of its inputs, the base first, as they are stored; None for those that are stored otherwise.
    """
    if job.scales is not None:
        return True
    if job.method is None and dtypes == [job.dtype] and not DTYPES[job.dtype].floating:
        return False
    if not all(map(stored.knows, (job.dtype, *dtypes))):
        return True
    return job.method is not None and not job.method.works_on_tiles(job.values)


def fused_sources(job: TensorJob, inputs: Inputs) -> list[TileSource]:
    """The inputs, the base first, as they lie in files where they can; none if no compiled loops are used."""
    raw = [inputs.open_raw(tensor, None) for tensor in job.all_inputs]
    if takes_torch(job, [None if source is None else source.dtype for source in raw]):
        if job.method is None or not compiled() or not job.method.works_on_tiles(job.values):
            return []
        raw = [source if source is not None and stored.knows(source.dtype) else None for source in raw]
    return [source or inputs.open(tensor) for source, tensor in zip(raw, job.all_inputs, strict=True)]


def made_without_torch(job: TensorJob, inputs: Inputs) -> bool:
    """Whether a tensor in main memory is made without PyTorch, as far as what is stored tells."""
    raw = [inputs.open_raw(tensor, None) for tensor in job.all_inputs]
    return not takes_torch(job, [None if source is None else source.dtype for source in raw])


def without_torch(job: TensorJob, sources: Sequence[TileSource]) -> bool:
    """Whether a tensor is made of these sources without PyTorch."""
    dtypes = [source.dtype if isinstance(source, StoredTensor) else None for source in sources]
    return bool(sources) and not takes_torch(job, dtypes)


def tile_factor(job: TensorJob, *, torch: bool) -> int:
    """How many times as large as others tiles are that are made without PyTorch.

    Of these, only a few blocks are in memory at once, and what is done with a tile takes some calls that keep
    other threads waiting for the interpreter.

    Args:
        job: how they are made.
        torch: whether it takes PyTorch.
    """
    return 1 if torch or (job.method is not None and job.method.takes_arrays) else 4


def tile_of(
    job: TensorJob,
    sources: Sequence[TileSource],
    start: int,
    stop: int,
    buffers: Buffers,
    *,
    grain: int,
    check: bool,
) -> Tile:
    """Elements [start, stop) of a job's inputs, as task vectors if it has a base.

    What lies in files as the loops know it is read when they need it, all else at once.
    """
    n = stop - start
    places: list[Source] = []
    rows: Tensor | None = None
    for i, source in enumerate(sources):
        if not (isinstance(source, StoredTensor) and stored.knows(source.dtype)):
            rows = buffers.rows(len(sources), n) if rows is None else rows
            source.read(start, stop, rows[i], buffers.scratch)
            places.append(in_memory(rows[i].numpy(), "F32"))
        else:
            places.append(in_file(*source.place(start), source.dtype))
            source.was_read(start, n)
    return Tile(places, n, grain=grain, has_base=job.base is not None, check=check, keep=rows)


class FusedRun(TensorRun):
    """As `TensorRun`, for what compiled loops can do.

    Args:
        sources: see `fused_sources`.
        job: what to do.
        tile: elements per tile where PyTorch is used.
        args, options: as for `TensorRun`.
    """

    def __init__(
        self, sources: Sequence[TileSource], job: TensorJob, *args: Any, tile: int = TILE, **options: Any
    ) -> None:
        factor = tile_factor(job, torch=not without_torch(job, sources))
        super().__init__(job, *args, tile=factor * tile, sources=sources, **options)
        self._fused = sources
        method = self.job.method
        # Where what is made shows them, nobody has to look for them.
        self._looks = not (self._allow_nonfinite or method is None or method.shows_nonfinite)

    def _measure_tile(self, start: int, stop: int, buffers: Buffers) -> Any:
        assert self._statistic is not None
        room = buffers.measuring
        tile = tile_of(self.job, self._fused, start, stop, room, grain=self._grain, check=self._looks)
        try:
            with self._method_failures():
                return self._statistic.update(tile, start)
        except Failed:
            return super()._measure_tile(start, stop, buffers)

    def _make_tile(self, start: int, stop: int, raw: np.ndarray, buffers: Buffers) -> None:
        made = stored.knows(self.job.dtype) and self._make(start, stop, self.job.dtype, raw, buffers)
        if not made:
            super()._make_tile(start, stop, raw, buffers)

    def _values(self, start: int, stop: int, buffers: Buffers) -> Float32[Tensor, " n"]:
        values = rooms.take("values", np.float32, stop - start)[: stop - start]
        if self._make(start, stop, "F32", values, buffers):
            return torch.from_numpy(values)
        return super()._values(start, stop, buffers)

    def _make(self, start: int, stop: int, dtype: str, out: np.ndarray, buffers: Buffers) -> bool:
        """Put elements [start, stop) of the output, in a type, into `out`; whether all are finite."""
        job, check = self.job, self._looks and self._statistic is None
        tile = tile_of(job, self._fused, start, stop, buffers, grain=self._grain, check=check)
        try:
            merged = tile[0]
            if job.method is not None:
                with self._method_failures():
                    merged = job.method.apply(tile, job.values, self._measured, self._whole, start)
            assert isinstance(merged, Row)
            tile.run(merged, dtype, out)
        except Failed:
            return False
        return True
