"""What is measured of the elements of a tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from meldkit.kernels import elsewhere, library
from meldkit.kernels.elements import Numbers, Rows, keep_bits, variance
from meldkit.kernels.elsewhere import in_memory, lists
from meldkit.kernels.library import fits, rooms
from meldkit.kernels.tile import LANES, STRIDE, VECTOR, Row, Tile
from meldkit.kernels.tile import in_memory as source_in_memory
from meldkit.shapes import Float32, Tensor

_Counts = tuple[list[int], np.ndarray]


def tile_of(x: Float32[Tensor, "m n"], grain: int) -> Tile | None:
    """Rows in main memory as a tile for the library; None where it is not there, or cannot work on them."""
    if library.FUNCTIONS is None or not fits(x) or x.dtype != torch.float32:
        return None
    rows = [row.numpy() for row in x]
    return Tile([source_in_memory(row, "F32") for row in rows], x.shape[1], grain=max(grain, 1), keep=rows)


def numbers(x: Rows) -> np.ndarray | Tensor:
    """A tile's numbers: an array of numpy if they are in main memory, else a tensor as it is."""
    if isinstance(x, Tile):
        return x.array()
    return x.numpy() if in_memory(x) else x


def magnitudes(rows: Sequence[Numbers]) -> np.ndarray:
    """|x|, float32 `[rows, n]`."""
    found = np.empty((len(rows), len(rows[0])), np.float32)
    tile = None
    for row, values in zip(rows, found, strict=True):
        if isinstance(row, Row):
            tile = row.tile
            tile.step("store", row.register, out=values)
        else:
            values[:] = row.cpu().numpy()
    if tile is not None:
        tile.run()
    return np.abs(found, out=found)


def products(x: Rows, grain: int) -> list[list[float]]:
    """Of each `grain` elements, inner products of rows i ≤ j in that order; sums are of float64."""
    if not isinstance(x, Tile):
        tile = tile_of(x, grain)
        if tile is None:
            return elsewhere.products(x, grain)
        x = tile
    m, n = x.shape
    num_pairs = m * (m + 1) // 2
    found = np.zeros((-(-n // grain), num_pairs))
    x.step("gram", 0, m, out=found, room=rooms.take("gram", np.float64, m * STRIDE + num_pairs * LANES))
    x.run()
    return lists(found)


def squares_of_selected(x: Rows, threshold: float, grain: int) -> tuple[np.ndarray | None, list[list[float]]]:
    """Σ x_i² over elements whose variance over the models is at least the threshold.

    Args:
        x: overwritten.
        threshold: 0 for all.
        grain: elements of a sum, a multiple of 8.

    Returns:
        Which elements those are, uint8 `[n / 8]`, the highest bit of a byte first, None for all; and for each
        `grain` elements the sums of all models.
    """
    m, n = x.shape
    bits = None
    if isinstance(x, Tile):
        if threshold > 0:
            bits = np.empty(-(-n // 8), np.uint8)
            varied = variance(x)
            assert isinstance(varied, Row)
            x.step("at_least", varied.register, a=threshold, out=bits)
            for row in x:
                keep_bits(row, bits)
        sums = np.zeros((m, -(-n // grain)))
        room = rooms.take("gram", np.float64, m * (STRIDE + LANES))
        for i in range(m):
            x.step("gram", i, 1, out=sums[i], room=room[i * (STRIDE + LANES) :])
        x.run()
        return bits, lists(np.transpose(sums))
    if threshold > 0:
        varied = variance(x)
        assert not isinstance(varied, Row)
        bits = elsewhere.at_least(varied, threshold)
        for row in x:
            keep_bits(row, bits)
    squares = [elsewhere.products(row.unsqueeze(0), grain) for row in x]
    return bits, [[chunk[0] for chunk in chunks] for chunks in zip(*squares, strict=True)]


T = TypeVar("T", bound=Rows)


def norms_around(x: T, change: Callable[[T], object], grain: int) -> tuple[np.ndarray, np.ndarray]:
    """Σ|x_i| before and after a change, of each `grain` elements: float64 `[m, n / grain]` each.

    Args:
        x: overwritten.
        change: changes rows in place.
        grain: elements of a sum; the last one may have fewer.
    """
    if not isinstance(x, Tile):
        before = elsewhere.norms(x, grain)
        change(x)
        return before, elsewhere.norms(x, grain)
    m, n = x.shape
    found = np.zeros((2, m, -(-n // grain)))
    lanes = rooms.take("norms", np.float64, 2 * m * LANES)[: 2 * m * LANES].reshape(2, m, LANES)
    for side in (0, 1):
        for i in range(m):
            x.step("norm", i, out=found[side, i], room=lanes[side, i])
        if side == 0:
            change(x)
    x.run()
    return found[0], found[1]


def count_magnitudes(
    rows: Sequence[Numbers], brackets: Sequence[Sequence[tuple[float, float]]]
) -> list[list[_Counts]]:
    """How many |x| are > high, ≥ high, > low, ≥ low, and not 0; and those strictly between low and high.

    Args:
        rows: of a tile.
        brackets: of each row, pairs (low, high), exact in float32.

    Returns:
        The same for each pair.
    """
    wanted = [(row, low, high) for row, pairs in zip(rows, brackets, strict=True) for low, high in pairs]
    tile = next((row.tile for row, _, _ in wanted if isinstance(row, Row)), None)
    if tile is None:
        found = [
            elsewhere.count_magnitudes(row, low, high)
            for row, low, high in wanted
            if not isinstance(row, Row)
        ]
    else:
        found = _count_in_tile(tile, wanted)
    everything = iter(found)
    return [[next(everything) for _ in pairs] for pairs in brackets]


def _count_in_tile(tile: Tile, wanted: Sequence[tuple[Numbers, float, float]]) -> list[_Counts]:
    n = tile.shape[1]
    counts = np.zeros((len(wanted), 5), np.int64)
    width = n + VECTOR
    room = rooms.take("found", np.float32, len(wanted) * width)[: len(wanted) * width].reshape(-1, width)
    for (row, low, high), numbers_, inside in zip(wanted, counts, room, strict=True):
        assert isinstance(row, Row)
        tile.step("count", row.register, a=low, b=high, out=numbers_, room=inside)
    numbers_found = tile.run()[-len(wanted) :]
    return [
        (row.tolist(), inside[:num].copy())
        for row, inside, num in zip(counts, room, numbers_found, strict=True)
    ]
