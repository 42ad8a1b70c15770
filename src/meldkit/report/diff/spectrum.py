"""In how many directions a matrix changed, from a randomised singular value decomposition of the change.

Two passes over the rows, of which a few are in memory at a time (Halko, Martinsson & Tropp 2011, "Finding
structure with randomness", SIAM Review 53(2), algorithm 4.1 on the transpose):

    Z = Ω D        Ω: [k, rows], standard normal numbers
    Q: an orthonormal basis of the rows of Z
    σ²: the eigenvalues of (D Q)ᵀ (D Q)

With k = min(rows, columns) all singular values are found. With fewer, those found have together the
`captured` share of Σσ² = |D|², which is known exactly. The effective rank is that of Roy & Vetterli 2007,
"The effective rank: a measure of effective dimensionality", EUSIPCO.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from meldkit import kernels
from meldkit.checkpoint import TileSource
from meldkit.engine.buffers import Buffers
from meldkit.methods.statistics import exact_sum
from meldkit.report.diff.difference import Spectrum
from meldkit.shapes import Float32

if TYPE_CHECKING:
    from torch import Tensor

#: Most singular values that are looked for: adapters have rarely more than half as many directions.
MOST_DIRECTIONS = 256
#: Share of Σσ² that the energy rank stands for.
ENERGY = 0.9
#: Elements of the rows that are in memory at a time.
_BLOCK = 1 << 20
#: Any number will do; it is always the same one, and with it the result.
_SEED = 20070903


def spectra_of(
    sources: Sequence[TileSource], changed: Sequence[int], shape: tuple[int, ...], buffers: Buffers
) -> dict[int, Spectrum]:
    """The spectra of matrices' differences from the first one.

    Args:
        sources: of the matrices' values.
        changed: which of them to look at; they must differ from the first.
        shape: rows and columns of all of them.
        buffers: of the worker.
    """
    return {i: _spectrum(sources[0], sources[i], shape, buffers) for i in changed}


def _spectrum(one: TileSource, other: TileSource, shape: tuple[int, ...], buffers: Buffers) -> Spectrum:
    rows, columns = shape
    k = min(rows, columns, MOST_DIRECTIONS)
    generator = torch.Generator().manual_seed(_SEED)
    sketch = torch.zeros(k, columns)
    squares: list[float] = []
    for change in _changes(one, other, rows, columns, buffers):
        sketch.addmm_(torch.randn(k, len(change), generator=generator), change)
        squares += kernels.products(change.view(1, -1), change.numel())[0]
    basis = cast("Tensor", torch.linalg.qr(sketch.T).Q)
    gram = torch.zeros(k, k, dtype=torch.float64)
    for change in _changes(one, other, rows, columns, buffers):
        inside = (change @ basis).double()
        gram.addmm_(inside.T, inside)
    energies = cast("Tensor", torch.linalg.eigvalsh(gram)).flip(0).clamp_(min=0)
    return spectrum_from(energies.numpy(), exact_sum(squares), min(rows, columns))


def _changes(
    one: TileSource, other: TileSource, rows: int, columns: int, buffers: Buffers
) -> Iterator[Float32[Tensor, "r columns"]]:
    """The difference, some rows at a time; each is overwritten by the next."""
    step = max(1, _BLOCK // columns)
    for first in range(0, rows, step):
        start, stop = first * columns, min(first + step, rows) * columns
        values = buffers.rows(2, stop - start)
        one.read(start, stop, values[0], buffers.scratch)
        other.read(start, stop, values[1], buffers.scratch)
        yield values[1].sub_(values[0]).view(-1, columns)


def spectrum_from(energies: np.ndarray, total: float, full_rank: int) -> Spectrum:
    """What follows from squared singular values.

    Args:
        energies: σ², float64, the largest first; not all of them need be there.
        total: Σσ² of all, above 0.
        full_rank: how many there are.
    """
    sizes = np.sqrt(energies)
    shares = sizes[sizes > 0] / sizes.sum()
    cumulated = np.cumsum(energies) / total
    enough = np.flatnonzero(cumulated >= ENERGY)
    return Spectrum(
        effective_rank=float(np.exp(-(shares * np.log(shares)).sum())),
        energy_rank=int(enough[0]) + 1 if len(enough) else None,
        captured=min(1.0, float(cumulated[-1])),
        full_rank=full_rank,
    )
