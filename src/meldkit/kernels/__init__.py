"""The inner loops of the methods: compiled ones, and the same in PyTorch and NumPy.

Each function below says what it computes. It hands its work to compiled loops, which go through the data once
where PyTorch's operations go through it many times, and keeps no other thread waiting for the interpreter.
Where there is no compiled library, or tensors are on another device, PyTorch does the same: to the last bit,
save for sums of many numbers, which are formed in another order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

from meldkit.kernels import elsewhere, library
from meldkit.kernels.elsewhere import in_memory
from meldkit.kernels.library import address, fits, rooms, rows_at
from meldkit.shapes import Float32, Tensor

#: Numbers of a block and of lanes in common.h.
_BLOCK, _LANES = 1024, 16


def products(x: Float32[Tensor, "m n"] | np.ndarray) -> list[float]:
    """Inner products of rows i ≤ j, in that order; each product is exact, each sum is of float64."""
    m, n = x.shape
    if library.FUNCTIONS is not None and fits(x):
        num_pairs = m * (m + 1) // 2
        room = rooms.take("doubles", np.float64, m * _BLOCK + num_pairs * _LANES)
        result = np.empty(num_pairs)
        library.FUNCTIONS.gram(*rows_at(x), m, n, address(room), address(result))
        return result.tolist()
    if not in_memory(x):
        return elsewhere.products(torch.as_tensor(x), n)[0]
    room = torch.from_numpy(rooms.take("doubles", np.float64, m * n))
    rows = room[: m * n].view(m, n).copy_(torch.as_tensor(x)).unbind()
    return [torch.dot(rows[i], rows[j]).item() for i in range(m) for j in range(i, m)]


def count_magnitudes(row: np.ndarray | Tensor, low: float, high: float) -> tuple[list[int], np.ndarray]:
    """How many |x| are > high, ≥ high, > low, ≥ low, and not 0; and those strictly between low and high.

    Args:
        row: float32 `[n]`, an array if it is in main memory.
        low, high: exact in float32.
    """
    if not isinstance(row, np.ndarray):
        return elsewhere.count_magnitudes(row, low, high)
    if library.FUNCTIONS is not None and row.flags.c_contiguous:
        counts = np.zeros(5, np.int64)
        found = rooms.take("found", np.float32, len(row))
        num_found: int = library.FUNCTIONS.count(
            address(row), len(row), low, high, address(counts), address(found)
        )
        return [int(count) for count in counts], np.array(found[:num_found])
    row = np.abs(row)
    above, at_least_low = row > high, row >= low
    at_least_high, above_low = row >= high, row > low
    counts = [int(np.count_nonzero(m)) for m in (above, at_least_high, above_low, at_least_low, row)]
    return counts, np.compress(np.greater(above_low, at_least_high), row)


def elect(
    x: Float32[Tensor, "m n"],
    before: Sequence[float],
    factor: Sequence[float],
    share: Sequence[float],
    *,
    least: float,
    lambda_: float,
) -> Float32[Tensor, " n"]:
    """Of b_i x_i, sum f_i times those that have the sign of their sum, and divide by their shares.

        e = 1 where Σ b_i x_i ≥ 0, else −1              A = {i : e b_i x_i > 0}
        λ Σ_A f_i b_i x_i / max(least, Σ_A s_i)         or over 1 where that is 0

    Args:
        x: overwritten.
        before: b_i.
        factor: f_i.
        share: s_i.
        least: smallest divisor.
        lambda_: λ.

    Returns:
        A view of `x[0]`.
    """
    m, n = x.shape
    if library.FUNCTIONS is not None and fits(x):
        numbers = ctypes.c_float * m
        library.FUNCTIONS.elect(
            x.data_ptr(),
            x.stride(0),
            m,
            n,
            numbers(*before),
            numbers(*factor),
            numbers(*share),
            least,
            lambda_,
            x.data_ptr(),
        )
        return x[0]
    for row, b in zip(x, before, strict=True):
        if b != 1:
            row.mul_(b)
    sign = sum_rows(x).ge_(0).mul_(2).sub_(1)
    x.mul_(sign).relu_()
    agreeing = torch.sign(x[0]).mul_(share[0])
    total = x[0].mul_(factor[0])
    for row, f, s in zip(x[1:], factor[1:], share[1:], strict=True):
        total.add_(row, alpha=f)
        agreeing.add_(row.sign_(), alpha=s)
    agreeing.clamp_(min=least)
    agreeing.add_(torch.eq(agreeing, 0))
    return total.mul_(sign).div_(agreeing).mul_(lambda_)


def sum_rows(x: Float32[Tensor, "m n"]) -> Float32[Tensor, " n"]:
    """Σ x_i in the order of the models: `x.sum(dim=0)` adds in an order that depends on n."""
    total = x[0].clone() if len(x) == 1 else torch.add(x[0], x[1])
    for row in x[2:]:
        total.add_(row)
    return total


def keep_bits(row: Float32[Tensor, " n"], bits: np.ndarray) -> None:
    """Multiply, in place, by bits: uint8 `[n / 8]`, the highest bit of a byte first."""
    if library.FUNCTIONS is not None and fits(row):
        library.FUNCTIONS.drop(row.data_ptr(), address(bits), len(row))
        return
    row.mul_(torch.from_numpy(np.unpackbits(bits, count=len(row))).to(row.device))


def divide(x: np.ndarray | Tensor, divisors: np.ndarray) -> None:
    """Divide, in place, by float32 numbers of the same shape; `x` is an array if it is in main memory."""
    if isinstance(x, np.ndarray):
        np.divide(x, divisors, out=x)
    else:
        x.div_(torch.from_numpy(divisors).to(x.device))


def variance(x: Float32[Tensor, "m n"]) -> Float32[Tensor, " n"]:
    """Population variance over the models, at each element."""
    if library.FUNCTIONS is not None and fits(x):
        result = torch.empty(x.shape[1])
        library.FUNCTIONS.variance(x.data_ptr(), x.stride(0), *x.shape, result.data_ptr())
        return result
    if len(x) == 1:
        return torch.zeros_like(x[0])
    # Differences from the first model are 0 where all agree, which rounding the mean would hide.
    differences = x[1:] - x[0]
    mean = sum_rows(differences).div_(len(x))
    total = mean.square()  # of the first model, whose difference is 0
    for row in differences.sub_(mean):
        total.add_(row.square_())
    return total.div_(len(x))


def at_least(values: Float32[Tensor, " n"], threshold: float) -> np.ndarray:
    """Bits of what is ≥ threshold: uint8 `[n / 8]`, the highest bit of a byte first."""
    if library.FUNCTIONS is not None and fits(values):
        bits = np.empty(-(-len(values) // 8), np.uint8)
        library.FUNCTIONS.at_least(values.data_ptr(), len(values), threshold, address(bits))
        return bits
    if not in_memory(values):
        return elsewhere.at_least(values, threshold)
    return np.packbits(np.greater_equal(values.numpy(), np.float32(threshold)))


def sum_changed(
    x: Float32[Tensor, "m n"], epsilon: float
) -> tuple[Float32[Tensor, " n"], Float32[Tensor, " n"]]:
    """Σ of |x_i| > epsilon, and how many those are, at each position; in `x`, the others become 0.

    Both are the caller's until this thread asks for others.
    """
    if library.FUNCTIONS is not None and fits(x):
        n = x.shape[1]
        total, count = torch.from_numpy(rooms.take("sums", np.float32, 2 * n)[: 2 * n]).view(2, n)
        library.FUNCTIONS.changed(
            x.data_ptr(), x.stride(0), *x.shape, epsilon, total.data_ptr(), count.data_ptr()
        )
        return total, count
    total, count = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    flag = torch.empty_like(x[0])
    for row in x:
        torch.hardshrink(row, epsilon, out=row)  # keeps |x| > ε
        total.add_(row)
        count.add_(torch.ne(row, 0, out=flag))
    return total, count


def count_alone(row: Float32[Tensor, " n"], count: Float32[Tensor, " n"]) -> tuple[int, int]:
    """Of a row that `sum_changed` left: how many elements it changed, and how many it alone."""
    if library.FUNCTIONS is not None and fits(row):
        result = np.zeros(2, np.int64)
        library.FUNCTIONS.alone(row.data_ptr(), count.data_ptr(), len(row), address(result))
        return int(result[0]), int(result[1])
    changed = row.ne(0)
    return int(changed.sum()), int(changed.logical_and_(count.eq(1)).sum())


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
        room = rooms.take("doubles", np.float64, (m + 3 * len(pairs)) * _LANES)
        outputs = (room, products_, squares, largest, equal)
        library.FUNCTIONS.differences(x.data_ptr(), x.stride(0), m, n, *map(address, outputs))
        return products_.tolist(), squares.tolist(), largest.tolist(), equal.tolist()
    found: list[tuple[float, float, int]] = []
    for i, j in pairs:
        change = x[j].double() - x[i].double()
        largest_ = change.abs().max().item() if n else 0.0
        found.append((torch.dot(change, change).item(), largest_, n - int(torch.count_nonzero(change))))
    return products(x), [f[0] for f in found], [f[1] for f in found], [f[2] for f in found]


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
    positions = np.arange(_BLOCK, dtype=np.uint64)
    for start in range(0, len(words), _BLOCK * _BLOCK):
        piece = words[start : start + _BLOCK * _BLOCK]
        rows = np.zeros((-(-len(piece) // _BLOCK), _BLOCK), np.uint32)
        rows.reshape(-1)[: len(piece)] = piece
        of_rows, of_columns = rows.sum(1, dtype=np.uint64), rows.sum(0, dtype=np.uint64)
        inside = int((of_columns * positions).sum()) + _BLOCK * int((of_rows * positions[: len(rows)]).sum())
        own = int(of_columns.sum())
        total, weighted = total + own, weighted + start * own + inside
    return total % 2**64, weighted % 2**64
