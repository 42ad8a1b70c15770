"""Linear combinations, carried out by compiled kernels from files' bytes to the output's, without PyTorch.

Most merges are nothing else, and importing PyTorch takes longer than a small one. NaN, Inf, and what is too
large for the output's type are left to `TensorRun`, which says what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from meldkit.checkpoint import DTYPES, StoredTensor, TensorInfo
from meldkit.engine.buffers import Buffers
from meldkit.engine.ends import Inputs
from meldkit.engine.tensor_run import TensorRun
from meldkit.kernels import stored
from meldkit.methods import Combination
from meldkit.methods.statistics import Gram
from meldkit.plan import TensorJob


def stored_dtype(info: TensorInfo) -> str | None:
    """How a tensor's values are stored one after the other; None if they are stored otherwise."""
    return info.dtype if info.encoding is None else None


def takes_torch(job: TensorJob, dtypes: Sequence[str | None]) -> bool:
    """Whether it takes PyTorch to make a tensor; if not, it is copied, or kernels combine it.

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
    if job.method is None:
        return False
    if not job.method.combines(job.values):
        return True
    # NaN in an input must show, in what is measured or in the result.
    measures = isinstance(job.method.statistic(job.whole, job.values), Gram)
    return not (measures or job.method.shows_nonfinite)


def stored_sources(job: TensorJob, inputs: Inputs) -> list[StoredTensor]:
    """The inputs, the base first, as they lie in files; empty where it takes PyTorch to make the tensor."""
    found = [inputs.open_raw(tensor, None) for tensor in job.all_inputs]
    dtypes = [None if source is None else source.dtype for source in found]
    return [] if takes_torch(job, dtypes) else [source for source in found if source is not None]


class CombinationRun(TensorRun):
    """As `TensorRun`, for linear combinations.

    Args:
        sources: see `stored_sources`.
        args, options: as for `TensorRun`.
    """

    def __init__(self, sources: Sequence[StoredTensor], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stored = sources

    def _measure_tile(self, start: int, stop: int, buffers: Buffers) -> Any:
        assert isinstance(self._statistic, Gram)
        rows = buffers.row_arrays(len(self._stored), stop - start)
        for row, source in zip(rows, self._stored, strict=True):
            source.read_floats(start, row)
        if self.job.base is not None:
            rows = np.subtract(rows[1:], rows[0], out=rows[1:])
        partial = self._statistic.update(rows, start)
        # Products of finite numbers are finite, and a square shows what is not.
        finite = all(math.isfinite(number) for numbers in partial for number in numbers)
        return partial if finite else super()._measure_tile(start, stop, buffers)

    def _make_tile(self, start: int, stop: int, raw: np.ndarray, buffers: Buffers) -> None:
        job = self.job
        combination = Combination([1.0])
        if job.method is not None:
            with self._method_failures():
                combination = job.method.combined(job.values, self._measured, len(job.inputs))
        sources: list[tuple[np.ndarray, str]] = []
        for i, source in enumerate(self._stored):
            room = buffers.source(i, (stop - start) * DTYPES[source.dtype].itemsize)
            source.read_bytes(start, room.data, once=True)
            sources.append((room, source.dtype))
        c, has_base = combination, job.base is not None
        if not stored.combine(sources, c.coefficients, c.factor, job.dtype, raw, has_base=has_base):
            super()._make_tile(start, stop, raw, buffers)
