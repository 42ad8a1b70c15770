"""A matrix, or the difference of two, as a product of two thin ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from meldkit.checkpoint import HeldTensor, OpenFiles, Scratch, TensorInfo, TileSource, read_all
from meldkit.composed.latest import Latest
from meldkit.errors import RunError
from meldkit.shapes import Float32, Tensor

#: Up to this size of the smaller side all singular values are found; beyond it, the largest ones.
EXACT = 512
#: Columns beyond the rank in which the largest singular values are looked for (arXiv:0909.4061, 4.2).
_OVERSAMPLING = 10
#: Iterations end when the next one would lessen the square of the error by less than this share of it.
_GAIN = 2e-3
_MOST_ITERATIONS = 16
#: Numbers in factors that are kept until both sides have been written; of so many matrices at least, as
#: threads are at work on several at once.
_KEPT, _KEPT_AT_LEAST = 1 << 25, 8


@dataclass(frozen=True, slots=True)
class Decomposition:
    """The largest singular values of a matrix.

    Attributes:
        u: left singular vectors `[rows, rank]`.
        s: singular values, falling `[rank]`.
        vt: right singular vectors `[rank, columns]`.
        energy: sum of the squares of all singular values.
    """

    u: Float32[Tensor, "rows rank"]
    s: Float32[Tensor, " rank"]
    vt: Float32[Tensor, "rank columns"]
    energy: float

    def rank_for(self, keep: float) -> int:
        """The fewest singular values whose squares are this share of all, or as many as there are."""
        sums = self.s.double().square().cumsum(0)
        return min(int((sums < keep * self.energy).sum()) + 1, len(self.s))


def decompose(
    delta: Float32[Tensor, "rows columns"], rank: int, *, exact: bool | None = None
) -> Decomposition:
    """The largest singular values of a matrix and their vectors.

    By subspace iteration from random vectors (Halko, Martinsson, Tropp: arXiv:0909.4061, algorithm 4.4),
    until the error hardly changes any more; small matrices by LAPACK.

    Args:
        delta: the matrix.
        rank: how many, at most.
        exact: use LAPACK whatever the size; None for small matrices only.
    """
    linalg: Any = torch.linalg  # whose annotations say nothing of what comes out
    rank = min(rank, *delta.shape)
    energy = float(torch.sum(delta * delta, dtype=torch.float64))
    if exact or (exact is None and min(delta.shape) <= max(EXACT, 2 * rank)):
        u, s, vt = linalg.svd(delta, full_matrices=False)
        return Decomposition(u[:, :rank], s[:rank], vt[:rank], energy)
    wide = delta.shape[0] < delta.shape[1]
    matrix = delta.T if wide else delta
    width = min(rank + _OVERSAMPLING, matrix.shape[1])
    start = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0))
    basis = linalg.qr(matrix @ start).Q
    before = -1.0
    for _ in range(_MOST_ITERATIONS):
        small = basis.T @ matrix
        found = float(linalg.svdvals(small.double() @ small.double().T)[:rank].sum())
        if found - before <= _GAIN * max(energy - found, 0.0) or found >= energy * (1 - 1e-12):
            break
        before = found
        basis = linalg.qr(matrix @ linalg.qr(small.T).Q).Q
    small = basis.T @ matrix
    inner, s, vt = linalg.svd(small, full_matrices=False)
    u = basis @ inner
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    return Decomposition(vt.T, s, u.T, energy) if wide else Decomposition(u, s, vt, energy)


def difference(
    files: OpenFiles, base: TensorInfo | None, model: TensorInfo
) -> Float32[Tensor, "rows columns"]:
    """What a fine-tune has changed in a matrix; the matrix itself, where there is no base.

    Raises:
        RunError: it is not finite.
    """
    matrix = read_all(files, model)
    if base is not None:
        matrix.sub_(read_all(files, base))
    if not matrix.isfinite().all():
        raise RunError(
            f"{model.name} of {model.file} "
            + ("has" if base is None else "differs from the base's by")
            + " NaN or Inf, of which there are no factors",
            hint="look at the models with 'meldkit diff'; a damaged download is a common cause",
        )
    return matrix


@dataclass(frozen=True, slots=True)
class Factor:
    """One of the two thin matrices, computed when it is read.

    Attributes:
        base, model: of which the difference is factored; of the model alone, where there is no base.
        rank: of the product.
        first: whether it is A, else B.
        distributed: whether both carry the root of the singular values, else A carries them.
        turned: factor the transpose of the difference.
        exact: as for `decompose`.
    """

    base: TensorInfo | None
    model: TensorInfo
    rank: int
    first: bool
    distributed: bool
    turned: bool
    exact: bool | None

    @property
    def files(self) -> Sequence[Path]:
        return (*(self.base.files if self.base else ()), *self.model.files)

    def open(self, files: OpenFiles, info: TensorInfo) -> TileSource:
        """The factor's values."""
        del info
        latest = files.kept("factors", lambda: Latest[Decomposition](_KEPT_AT_LEAST, _KEPT, _numel))
        key = (self.base, self.model, self.rank)
        return _FactorTensor(lambda: latest.get(key, lambda: self._made(files)), self)

    def _made(self, files: OpenFiles) -> Decomposition:
        delta = difference(files, self.base, self.model)
        return decompose(delta.T if self.turned else delta, self.rank, exact=self.exact)

    def of(self, made: Decomposition) -> Tensor:
        """The factor: A `[rank, in]` or B `[out, rank]`."""
        scale = made.s.sqrt() if self.distributed else made.s if self.first else torch.ones_like(made.s)
        return scale[:, None] * made.vt if self.first else made.u * scale


def _numel(made: Decomposition) -> int:
    return made.u.numel() + made.vt.numel()


class _FactorTensor:
    def __init__(self, made: Callable[[], Decomposition], factor: Factor) -> None:
        self._made = made
        self._factor = factor

    def read(self, start: int, stop: int, out: Float32[Tensor, " n"], scratch: Scratch) -> None:
        """Fill `out` with elements [start, stop)."""
        values = self._factor.of(self._made()).contiguous()
        HeldTensor(values).read(start, stop, out, scratch)
