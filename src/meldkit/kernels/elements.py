"""What is done with the elements of a tile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from meldkit.kernels.elsewhere import in_memory
from meldkit.kernels.tile import Row, Tile
from meldkit.shapes import Float32, Tensor

#: Rows of a tile, and one of them.
Rows = Tile | Tensor
Numbers = Row | Tensor


def combine(x: Rows, coefficients: Sequence[float], factor: float = 1.0) -> Numbers:
    """factor · Σ c_i x_i, in the order of the models; each product but the first is added unrounded.

    Args:
        x: overwritten.
        coefficients: c_i.
        factor: on the sum.
    """
    if isinstance(x, Tile):
        x.step("combine", a=factor, given=np.array(coefficients, np.float32))
        return x[0]
    first, *others = coefficients
    total = _scale(x[0], first)
    for row, c in zip(x[1:], others, strict=True):
        total.add_(row, alpha=c)
    return _scale(total, factor)


def _scale(row: Tensor, factor: float) -> Tensor:
    """Multiply in place; a factor of 1, the most common one, costs nothing."""
    return row if factor == 1 else row.mul_(factor)


def elect(
    x: Rows,
    before: Sequence[float],
    factor: Sequence[float],
    share: Sequence[float],
    *,
    least: float,
    lambda_: float,
) -> Numbers:
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
        The first row.
    """
    if isinstance(x, Tile):
        x.step("elect", a=least, b=lambda_, given=np.array([before, factor, share], np.float32))
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


def zero_below(row: Numbers, threshold: float) -> None:
    """Zero, in place, elements of smaller magnitude than the threshold."""
    if threshold <= 0:
        return
    # Those of |x| ≤ λ become 0: with the float below the threshold, ties are kept.
    below = float(np.nextafter(np.float32(threshold), np.float32(0)))
    if isinstance(row, Row):
        row.tile.step("zero_below", row.register, a=below)
    else:
        torch.hardshrink(row, below, out=row)


def zero_above(row: Numbers, threshold: float) -> None:
    """Zero, in place, elements of larger magnitude than the threshold."""
    if isinstance(row, Row):
        row.tile.step("zero_above", row.register, a=threshold)
    else:
        row.sub_(torch.hardshrink(row, threshold))


def clamp(row: Numbers, low: float, high: float) -> Numbers:
    """Limit elements, in place, to low … high."""
    if isinstance(row, Row):
        row.tile.step("clamp", row.register, a=low, b=high)
        return row
    return row.clamp_(low, high)


def keep_bits(row: Numbers, bits: np.ndarray) -> None:
    """Multiply, in place, by bits: uint8 `[n / 8]`, the highest bit of a byte first."""
    if isinstance(row, Row):
        row.tile.step("keep_bits", row.register, given=np.ascontiguousarray(bits))
        return
    flags = np.unpackbits(bits, count=len(row))
    if in_memory(row):
        values = row.numpy()
        np.multiply(values, flags, out=values)
    else:
        row.mul_(torch.from_numpy(flags).to(row.device))


def variance(x: Rows) -> Numbers:
    """Population variance over the models, at each element."""
    if isinstance(x, Tile):
        found = x.row()
        x.step("variance", found.register)
        return found
    if len(x) == 1:
        return torch.zeros_like(x[0])
    # Differences from the first model are 0 where all agree, which rounding the mean would hide.
    differences = x[1:] - x[0]
    mean = sum_rows(differences).div_(len(x))
    total = mean.square()  # of the first model, whose difference is 0
    for row in differences.sub_(mean):
        total.add_(row.square_())
    return total.div_(len(x))


def average_changed(x: Rows, epsilon: float, factors: Sequence[float] | None = None) -> Numbers:
    """Mean of those |x_i| > epsilon at each element, 0 where there are none.

    Args:
        x: overwritten.
        epsilon: a change of at most this much counts as none.
        factors: f_i; where x_i alone is a change, f_i x_i is added.
    """
    if isinstance(x, Tile):
        total, count = _changed(x, epsilon)
        given = None if factors is None else np.array(factors, np.float32)
        x.step("average", total.register, count.register, given=given)
        return total
    total, count = _sum_changed(x, epsilon)
    if factors is None:
        return total.div_(count.clamp_min_(1))
    total.div_(torch.clamp_min(count, 1))
    alone = count.eq_(1)
    for row, factor in zip(x, factors, strict=True):
        total.addcmul_(row, alone, value=factor)
    return total


def count_changed(x: Rows, epsilon: float) -> tuple[list[int], list[int]]:
    """Of each row, how many elements are > epsilon in magnitude, and of how many that holds in it alone."""
    if isinstance(x, Tile):
        _, count = _changed(x, epsilon)
        counts = np.zeros((len(x), 2), np.int64)
        for row, numbers in zip(x, counts, strict=True):
            x.step("alone", row.register, count.register, out=numbers)
        x.run()
        return counts[:, 0].tolist(), counts[:, 1].tolist()
    _, count = _sum_changed(x, epsilon)
    changed = [row.ne(0) for row in x]
    num_changed, alone = [int(row.sum()) for row in changed], count.eq(1)
    return num_changed, [int(row.logical_and_(alone).sum()) for row in changed]


def _changed(x: Tile, epsilon: float) -> tuple[Row, Row]:
    total, count = x.row(), x.row()
    x.step("changed", total.register, count.register, a=epsilon)
    return total, count


def _sum_changed(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Sum and number of changes at each element; in `x`, the others become 0."""
    total, count = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    flag = torch.empty_like(x[0])
    for row in x:
        torch.hardshrink(row, epsilon, out=row)  # keeps |x| > ε
        total.add_(row)
        count.add_(torch.ne(row, 0, out=flag))
    return total, count


def importance(x: Rows, factors: np.ndarray, num_columns: int) -> Numbers:
    """|x_1 − x_0| times a factor of the row of the tensor.

    Args:
        x: two models; whole rows.
        factors: float32 `[rows]`.
        num_columns: elements of a row.
    """
    if isinstance(x, Tile):
        found = x.row()
        x.step("importance", found.register, given=factors)
        return found
    base, other = x.view(2, -1, num_columns)
    known = torch.from_numpy(factors).to(x.device).unsqueeze(1)
    return torch.sub(other, base).abs_().mul_(known).view(-1)


def take(x: Rows, values: Numbers, least: float) -> Numbers:
    """x_0, or x_1 where the values are at least so much; the first row, which is overwritten."""
    if isinstance(x, Tile):
        assert isinstance(values, Row)
        x.step("take", values.register, a=least)
        return x[0]
    assert not isinstance(values, Row)
    base, other = x
    return base.addcmul_(other.sub_(base), values.ge_(least))


def divide(row: Numbers, levels: np.ndarray) -> None:
    """Divide, in place, by levels / 65536: uint16 `[n]`, none of them 0."""
    if isinstance(row, Row):
        row.tile.step("divide", row.register, given=levels)
        return
    divisors = levels.astype(np.float32) / 65536
    if in_memory(row):
        values = row.numpy()
        np.divide(values, divisors, out=values)
    else:
        row.div_(torch.from_numpy(divisors).to(row.device))
