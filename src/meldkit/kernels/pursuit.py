"""Orthogonal matching pursuit from inner products: which atoms a vector is made of, and how much of each."""

from __future__ import annotations

import numpy as np

from meldkit.kernels import library
from meldkit.kernels.library import address, rooms

#: Products with what is left of a vector that count as rounding, as a share of the largest at the beginning;
#: and squares of distances from the chosen atoms' span, as a share of an atom's own.
TOLERANCE = 1e-6


def pursue(gram: np.ndarray, products: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose up to `k` atoms for each vector, one by one, and the coefficients that are best for them.

    Each time the atom is chosen whose inner product with what is left of the vector is the largest in
    magnitude; then what is left is at right angles to all that were chosen. Where nothing but rounding is
    left, no more are. Threads may work at the same time.

    Args:
        gram: float32 `[n, n]`, inner products of the atoms.
        products: float32 `[m, n]`, of the vectors with them; overwritten.
        k: at most n.

    Returns:
        The atoms, int32 `[m, k]`, and coefficients, float64 `[m, k]`; where fewer were chosen, the rest are
        0 times the first atom.
    """
    num_vectors, num_atoms = products.shape
    chosen = np.zeros((num_vectors, k), np.int32)
    coefficients = np.zeros((num_vectors, k))
    if library.FUNCTIONS is None or not (gram.flags.c_contiguous and products.flags.c_contiguous):
        for row in range(num_vectors):
            _pursue(gram, products[row], chosen[row], coefficients[row])
        return chosen, coefficients
    room = rooms.take("pursuit", np.float64, k * k + 4 * k)
    for row in range(num_vectors):
        count = library.FUNCTIONS.pursue(
            address(gram),
            num_atoms,
            address(products[row]),
            k,
            TOLERANCE,
            address(chosen[row]),
            address(coefficients[row]),
            address(room),
        )
        chosen[row, count:] = 0
    return chosen, coefficients


def _pursue(gram: np.ndarray, products: np.ndarray, chosen: np.ndarray, coefficients: np.ndarray) -> None:
    """One vector; the same in NumPy."""
    start = np.array(products)
    least = TOLERANCE * float(np.abs(start).max(initial=0.0))
    count = 0
    solution: np.ndarray = np.zeros(0)
    while count < len(chosen):
        left = np.abs(products)
        left[chosen[:count]] = 0
        atom = int(left.argmax())
        if left[atom] <= least:
            break
        picked = [*chosen[:count].tolist(), atom]
        inner = gram[np.ix_(picked, picked)].astype(np.float64)
        if count:
            within = np.linalg.solve(inner[:-1, :-1], inner[:-1, -1])
            if not inner[-1, -1] - within @ inner[:-1, -1] > TOLERANCE * inner[-1, -1]:
                break
        chosen[count] = atom
        count += 1
        solution = np.linalg.solve(inner, start[picked].astype(np.float64))
        products[:] = start - solution @ gram[picked].astype(np.float64)
    coefficients[:count] = solution
