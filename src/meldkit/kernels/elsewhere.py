"""The loops in PyTorch, where its plain operations do not do.

Sums are formed in halves: the second half of a row is added to the first, again and again until one number is
left. The order depends on the length of the row alone, so that neither the tile nor the device decides the
last bit, and every step is an operation on elements, which devices are made for.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import numpy as np
import torch

from meldkit.kernels.library import rooms
from meldkit.shapes import Float32, Tensor


def in_memory(x: Tensor | np.ndarray) -> bool:
    """Whether it is in main memory, where numpy and the compiled library can work on it."""
    return isinstance(x, np.ndarray) or x.device.type == "cpu"


def numbers(x: Tensor) -> np.ndarray | Tensor:
    """A tensor as an array of numpy if it is in main memory, else as it is."""
    return x.numpy() if in_memory(x) else x


def row_products(a: Tensor, b: Tensor) -> Tensor:
    """⟨a_r, b_r⟩ of rows, as float64 `[rows]`, in main memory where the device has none."""
    if in_memory(a):
        return (a.double() * b).sum(dim=1)
    if not has_float64(a.device):
        return row_products(a.cpu(), b.cpu())
    return row_sums(a.double() * b)


@cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64: Apple's do not, and not all of Intel's."""
    if device.type == "xpu":
        return bool(cast("Any", torch.xpu.get_device_properties(device)).has_fp64)
    return device.type != "mps"


def row_sums(x: Tensor) -> Tensor:
    """Sums over the last dimension, which has an element or more, in an order that its length decides."""
    while (n := x.shape[-1]) > 1:
        half = n // 2
        folded = x[..., :half] + x[..., half : 2 * half]
        if n % 2:
            folded[..., 0] += x[..., -1]
        x = folded
    return x[..., 0]


def chunk_sums(x: Tensor, grain: int) -> Tensor:
    """Sums of each `grain` elements of the rows `[r, n]`, the last ones of what is left: `[r, chunks]`."""
    r, n = x.shape
    whole = n // grain
    found = [row_sums(x[:, : whole * grain].reshape(r, whole, grain))] * (whole > 0)
    if n % grain:
        found.append(row_sums(x[:, whole * grain :]).unsqueeze(1))
    return torch.cat(found, 1)


def lists(x: Tensor | np.ndarray) -> list[list[float]]:
    """The rows of a matrix as lists."""
    return cast("list[list[float]]", x.tolist())


def products(x: Float32[Tensor, "m n"], grain: int) -> list[list[float]]:
    """Of each `grain` elements, inner products of rows i ≤ j in that order; sums are of float64."""
    m, n = x.shape
    if in_memory(x):
        # Room of the thread's own: fresh room would cost more than the work.
        room = torch.from_numpy(rooms.take("doubles", np.float64, m * n)[: m * n])
        rows = room.view(m, n).copy_(x).unbind()
        return [
            [
                torch.dot(rows[i][start : start + grain], rows[j][start : start + grain]).item()
                for i in range(m)
                for j in range(i, m)
            ]
            for start in range(0, n, grain)
        ]
    pairs = ((x[i].double() * x[j]).unsqueeze(0) for i in range(m) for j in range(i, m))
    return lists(torch.cat([chunk_sums(pair, grain) for pair in pairs]).T)


def count_magnitudes(row: Float32[Tensor, " n"], low: float, high: float) -> tuple[list[int], np.ndarray]:
    """As in `meldkit.kernels`."""
    if in_memory(row):
        return _count_magnitudes(np.abs(row.numpy()), low, high)
    row = row.abs()
    above_low, at_least_high = row > low, row >= high
    masks = (row > high, at_least_high, above_low, row >= low, row)
    counts = cast("list[int]", torch.stack([mask.count_nonzero() for mask in masks]).tolist())
    return counts, row[above_low & ~at_least_high].cpu().numpy()


def _count_magnitudes(sizes: np.ndarray, low: float, high: float) -> tuple[list[int], np.ndarray]:
    above, at_least_low = sizes > high, sizes >= low
    at_least_high, above_low = sizes >= high, sizes > low
    masks = (above, at_least_high, above_low, at_least_low, sizes)
    return [int(np.count_nonzero(mask)) for mask in masks], sizes[above_low & ~at_least_high]


def at_least(values: Float32[Tensor, " n"], threshold: float) -> np.ndarray:
    """As in `meldkit.kernels`."""
    if in_memory(values):
        return np.packbits(np.greater_equal(values.numpy(), np.float32(threshold)))
    return np.packbits(torch.ge(values, float(np.float32(threshold))).cpu().numpy())


def norms(x: Float32[Tensor, "m n"], grain: int) -> np.ndarray:
    """Σ|x_i| of each `grain` elements: float64 `[m, n / grain]`."""
    if in_memory(x):
        magnitudes = np.abs(x.numpy()).astype(np.float64)
        return np.add.reduceat(magnitudes, np.arange(0, x.shape[1], grain), axis=1)
    there = x if has_float64(x.device) else x.cpu()
    return chunk_sums(there.abs().double(), grain).cpu().numpy()


def by_rank(rows: Float32[Tensor, "rows columns"], values: np.ndarray) -> np.ndarray:
    """As in `meldkit.kernels`."""
    # As whole numbers: they are in the order of the magnitudes, and all devices sort them alike.
    order = rows.abs().view(torch.int32).sort(dim=1, stable=True).indices
    ranked = torch.from_numpy(values.astype(np.int32)).to(rows.device).expand(rows.shape)
    found = torch.empty(rows.shape, dtype=torch.int32, device=rows.device).scatter_(1, order, ranked)
    return found.cpu().numpy().astype(np.uint16).reshape(-1)
