"""Vectors as sums of few others: orthogonal matching pursuit, on all processors or on an accelerator.

Pati, Rezaiifar, Krishnaprasad (1993); for vocabularies: arXiv:2506.06607.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from meldkit.checkpoint import main_memory
from meldkit.kernels import pursuit
from meldkit.shapes import Float32, Tensor
from meldkit.tools.transplant.rows import lengths

#: Whose annotations say nothing of what comes out.
_linalg: Any = torch.linalg
#: Bytes that inner products of all atoms may take: of 40,000.
_MOST_PRODUCTS = 6_400_000_000
#: Vectors that a thread takes at once where there are inner products.
_BATCH = 64
#: Bytes of what is kept of a batch on an accelerator.
_BATCH_BYTES = 1 << 30

#: Called with how many vectors are done.
Progress = Callable[[int], None]


def pursue(
    targets: Float32[Tensor, "m columns"],
    atoms: Float32[Tensor, "n columns"],
    k: int,
    *,
    device: str = "cpu",
    threads: int | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Which `k` atoms each vector is made of, and how much of each; see `meldkit.kernels.pursuit`.

    Args:
        targets: the vectors.
        atoms: of any length.
        k: at most n.
        device: where to compute.
        threads: on so many processors; None for all.
        batch: vectors at once; None for as many as there is room for.
        progress: called now and then.

    Returns:
        Atoms, int32 `[m, k]`, and coefficients, float32 `[m, k]`.
    """
    if device == "cpu" and 4 * len(atoms) ** 2 <= min(_MOST_PRODUCTS, main_memory() // 3):
        parts = _by_products(targets, atoms, k, threads)
    else:
        parts = _in_step(targets, atoms.to(device), k, batch or _batch(len(atoms), atoms.shape[1], k))
    rows = np.zeros((len(targets), k), np.int32)
    coefficients = np.zeros((len(targets), k), np.float32)
    done = 0
    for own_rows, own_coefficients in parts:
        count = len(own_rows)
        rows[done : done + count], coefficients[done : done + count] = own_rows, own_coefficients
        done += count
        if progress is not None:
            progress(done)
    return rows, coefficients


def _by_products(
    targets: Tensor, atoms: Tensor, k: int, threads: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """From inner products of the atoms: the work no longer depends on their length."""
    gram = (atoms @ atoms.T).numpy()

    def part(start: int) -> tuple[np.ndarray, np.ndarray]:
        return pursuit.pursue(gram, (targets[start : start + _BATCH] @ atoms.T).numpy(), k)

    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(threads or processors) as pool:
        yield from pool.map(part, range(0, len(targets), _BATCH))


def _batch(num_atoms: int, columns: int, k: int) -> int:
    return max(1, _BATCH_BYTES // (4 * (2 * num_atoms + k * columns)))


def _in_step(targets: Tensor, atoms: Tensor, k: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Many vectors at once, each an atom further; needs no room for products of all atoms."""
    for start in range(0, len(targets), batch):
        rows, coefficients = _together(targets[start : start + batch].to(atoms.device), atoms, k)
        yield rows.to(torch.int32).cpu().numpy(), coefficients.cpu().numpy()


def _together(x: Tensor, atoms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    count, columns = x.shape
    chosen = torch.zeros(count, k, dtype=torch.long, device=x.device)
    basis = torch.zeros(count, k, columns, device=x.device)
    triangle = torch.zeros(count, k, k, device=x.device)
    parts = torch.zeros(count, k, device=x.device)
    rest = x.clone()
    least = torch.zeros(count, device=x.device)
    alive = torch.ones(count, dtype=torch.bool, device=x.device)
    for t in range(k):
        scores = (rest @ atoms.T).abs_()
        if t:
            scores.scatter_(1, chosen[:, :t], -1)
        most, new = scores.max(1)
        if t == 0:
            least = pursuit.TOLERANCE * most
        atom = atoms[new]
        # Twice, because once leaves rounding errors that grow (Daniel, Gragg, Kaufman, Stewart 1976).
        within = torch.zeros(count, t, device=x.device)
        beyond = atom
        for _ in range(2):
            part = (basis[:, :t] @ beyond[:, :, None])[..., 0]
            within = within + part
            beyond = beyond - (part[:, None] @ basis[:, :t])[:, 0]
        length = lengths(beyond)
        alive = alive & (most > least) & (length > pursuit.TOLERANCE**0.5 * lengths(atom))
        chosen[:, t] = torch.where(alive, new, 0)
        basis[:, t] = torch.where(alive[:, None], beyond / length[:, None], 0)
        triangle[:, :t, t] = torch.where(alive[:, None], within, 0)
        triangle[:, t, t] = torch.where(alive, length, 1)
        parts[:, t] = (basis[:, t] * rest).sum(1)
        rest = rest - parts[:, t, None] * basis[:, t]
    return chosen, _linalg.solve_triangular(triangle, parts[..., None], upper=True)[..., 0]
