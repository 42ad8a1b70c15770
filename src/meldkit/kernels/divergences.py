"""Divergences of the distributions that rows describe."""

from __future__ import annotations

import numpy as np

from meldkit.kernels import library
from meldkit.kernels.library import address, rooms

#: Keeps the logarithm of a probability finite; also in divergences.c.
FLOOR = 1e-8
#: Elements of float64 whose intermediate results stay in the cache.
_CACHED = 1 << 14
#: Rows end where the sums of lanes in common.h do.
_LANES = 16


def in_tiles() -> bool:
    """Whether compiled loops find divergences, which they do faster than NumPy on most processors."""
    return library.FUNCTIONS is not None and bool(library.FUNCTIONS.has_divergences())


def softmax_divergences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """KL(softmax(first) ‖ softmax(second)) of every row, 1e-8 added to each probability.

    Where the rows are nearly equal, NumPy's are off by some 1e-16, the compiled library's by 1e-15 of the
    divergence.

    Args:
        first, second: float32 `[rows, columns]`, with a column or more.

    Returns:
        float64 `[rows]`, NaN where a row has NaN or an infinite largest element.
    """
    rows, columns = first.shape
    if in_tiles() and _fit(first) and _fit(second):
        room = rooms.take("doubles", np.float64, 2 * (columns + _LANES))
        found = np.empty(rows)
        library.FUNCTIONS.divergences(
            address(first), address(second), rows, columns, address(room), address(found)
        )
        return found
    step = max(1, _CACHED // columns)
    parts = ((first[i : i + step], second[i : i + step]) for i in range(0, rows, step))
    return np.concatenate([_divergences(*part) for part in parts])


def _fit(rows: np.ndarray) -> bool:
    return rows.dtype == np.float32 and rows.flags.c_contiguous


def _divergences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    p, q = _softmax(first), _softmax(second)
    logarithm = np.log(np.divide(p, q, out=q), out=q)
    return np.multiply(logarithm, p, out=q).sum(axis=1)


def _softmax(rows: np.ndarray) -> np.ndarray:
    values = np.subtract(rows, rows.max(axis=1, keepdims=True), dtype=np.float64)
    np.exp(values, out=values)
    values /= values.sum(axis=1, keepdims=True)
    values += FLOOR
    return values
