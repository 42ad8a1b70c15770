"""How rows differ, and sums that tell whether bytes are the same."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

from meldkit.kernels import library
from meldkit.kernels.library import address, fits, rooms
from meldkit.kernels.measures import products
from meldkit.kernels.tile import BLOCK, LANES
from meldkit.shapes import Float32, Tensor


def differences(
    x: Float32[Tensor, "m n"],
) -> tuple[list[float], list[float], list[float], list[int]]:
    """How rows differ.

    Returns:
        Σ x_i x_j of rows i ≤ j, in that order; then, of rows i < j, Σ (x_j − x_i)², max |x_j − x_i|, and how
        many elements are equal. Each difference and product is of float64, and so are the sums.
    """
    m, n = x.shape
    pairs = [(i, j) for i in range(m) for j in range(i + 1, m)]
    if library.FUNCTIONS is not None and fits(x):
        products_, squares = np.empty(m * (m + 1) // 2), np.empty(len(pairs))
        largest, equal = np.empty(len(pairs)), np.empty(len(pairs), np.int64)
        room = rooms.take("doubles", np.float64, (m + 3 * len(pairs)) * LANES)
        outputs = (room, products_, squares, largest, equal)
        library.FUNCTIONS.differences(x.data_ptr(), x.stride(0), m, n, *map(address, outputs))
        return products_.tolist(), squares.tolist(), largest.tolist(), equal.tolist()
    found: list[tuple[float, float, int]] = []
    for i, j in pairs:
        change = x[j].double() - x[i].double()
        largest_ = change.abs().max().item() if n else 0.0
        found.append((torch.dot(change, change).item(), largest_, n - int(torch.count_nonzero(change))))
    return (
        products(x, max(n, 1))[0] if n else [0.0] * (m * (m + 1) // 2),
        [f[0] for f in found],
        [f[1] for f in found],
        [f[2] for f in found],
    )


def count_conflicts(
    u: Float32[Tensor, "m n"], least: Sequence[float]
) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Where rows disagree.

    Args:
        u: the rows.
        least: of each row, the magnitude from which on an element is one of the largest.

    Returns:
        How many elements of each row are among the largest, without those that are 0; then, of rows i < j,
        how many elements are not 0 in both, have opposite signs there, and are among the largest of both.
    """
    m, n = u.shape
    pairs = [(i, j) for i in range(m) for j in range(i + 1, m)]
    if library.FUNCTIONS is not None and fits(u):
        tops, counts = np.empty(m, np.int64), np.empty((len(pairs), 3), np.int64)
        library.FUNCTIONS.conflicts(
            u.data_ptr(), u.stride(0), m, n, (ctypes.c_float * m)(*least), address(tops), address(counts)
        )
        return tops.tolist(), [(both, opposite, top) for both, opposite, top in counts.tolist()]
    changed = u != 0
    top = changed & (u.abs() >= torch.tensor(list(least), dtype=torch.float32)[:, None])
    found: list[tuple[int, int, int]] = []
    for i, j in pairs:
        both = changed[i] & changed[j]
        opposite = both & ((u[i] > 0) != (u[j] > 0))
        found.append((int(both.sum()), int(opposite.sum()), int((top[i] & top[j]).sum())))
    return [int(row.sum()) for row in top], found


def word_sums(words: np.ndarray) -> tuple[int, int]:
    """The sum of 32-bit words, and that of words times their positions from 0 on, both modulo 2⁶⁴.

    Args:
        words: uint32 [n], one after the other.
    """
    if library.FUNCTIONS is not None:
        out = np.empty(2, np.uint64)
        library.FUNCTIONS.word_sums(address(words), len(words), address(out))
        return int(out[0]), int(out[1])
    total = weighted = 0
    positions = np.arange(BLOCK, dtype=np.uint64)
    for start in range(0, len(words), BLOCK * BLOCK):
        piece = words[start : start + BLOCK * BLOCK]
        rows = np.zeros((-(-len(piece) // BLOCK), BLOCK), np.uint32)
        rows.reshape(-1)[: len(piece)] = piece
        of_rows, of_columns = rows.sum(1, dtype=np.uint64), rows.sum(0, dtype=np.uint64)
        inside = int((of_columns * positions).sum()) + BLOCK * int((of_rows * positions[: len(rows)]).sum())
        own = int(of_columns.sum())
        total, weighted = total + own, weighted + start * own + inside
    return total % 2**64, weighted % 2**64
