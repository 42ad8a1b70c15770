"""Tensors that compiled loops make, from the files' bytes to the output's, without PyTorch.

Importing PyTorch takes longer than a small merge, and its operations go through main memory one after the
other. What is not finite, too large for the output's type or cannot be read is left to `TensorRun`, which
says what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from meldkit.checkpoint import DTYPES, StoredTensor, TensorInfo
from meldkit.engine.buffers import Buffers
from meldkit.engine.ends import Inputs
from meldkit.engine.tensor_run import TensorRun
from meldkit.kernels import Tile, stored
from meldkit.kernels.tile import Failed, Row, Source, in_file, in_memory
from meldkit.plan import TensorJob


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


def stored_sources(job: TensorJob, inputs: Inputs) -> list[StoredTensor]:
    """The inputs, the base first, as they lie in files; empty where it takes PyTorch to make the tensor."""
    found = [inputs.open_raw(tensor, None) for tensor in job.all_inputs]
    dtypes = [None if source is None else source.dtype for source in found]
    return [] if takes_torch(job, dtypes) else [source for source in found if source is not None]


def tile_of(
    job: TensorJob, sources: Sequence[StoredTensor], start: int, stop: int, *, grain: int, check: bool
) -> Tile:
    """Elements [start, stop) of a job's inputs, as task vectors if it has a base; read when needed."""
    places = [in_file(*source.place(start), source.dtype) for source in sources]
    return Tile(places, stop - start, grain=grain, has_base=job.base is not None, check=check)


def were_read(sources: Iterable[StoredTensor], start: int, stop: int) -> None:
    """Elements [start, stop) were read from their places."""
    for source in sources:
        source.was_read(start, stop - start)


class FusedRun(TensorRun):
    """As `TensorRun`, for what compiled loops can do.

    Args:
        sources: see `stored_sources`.
        args, options: as for `TensorRun`.
    """

    def __init__(self, sources: Sequence[StoredTensor], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stored = sources
        method = self.job.method
        # Where what is measured or made shows them, nobody has to look for them.
        self._looks = not (self._allow_nonfinite or method is None or method.shows_nonfinite)

    def _measure_tile(self, start: int, stop: int, buffers: Buffers) -> Any:
        assert self._statistic is not None
        tile = tile_of(self.job, self._stored, start, stop, grain=self._grain, check=self._looks)
        try:
            with self._method_failures():
                partial = self._statistic.update(tile, start)
        except Failed:
            return super()._measure_tile(start, stop, buffers)
        were_read(self._stored, start, stop)
        return partial

    def _make_tile(self, start: int, stop: int, raw: np.ndarray, buffers: Buffers) -> None:
        job, n = self.job, stop - start
        check = self._looks and self._statistic is None
        places: list[Source] = []
        from_file: list[StoredTensor] = []
        for i, source in enumerate(self._stored):
            nbytes = n * DTYPES[source.dtype].itemsize
            if source.cached(start, nbytes):
                places.append(in_file(*source.place(start), source.dtype))
                from_file.append(source)
            else:
                room = buffers.source(i, nbytes)
                source.read_bytes(start, room.data, once=True)
                places.append(in_memory(room, source.dtype))
        tile = Tile(places, n, grain=self._grain, has_base=job.base is not None, check=check)
        try:
            merged = tile[0]
            if job.method is not None:
                with self._method_failures():
                    merged = job.method.apply(tile, job.values, self._measured, self._whole, start)
            assert isinstance(merged, Row)
            tile.run(merged, job.dtype, raw)
        except Failed:
            super()._make_tile(start, stop, raw, buffers)
            return
        were_read(from_file, start, stop)
