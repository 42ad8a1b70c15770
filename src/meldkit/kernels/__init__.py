"""The inner loops of the methods.

Each function says what it computes, of tiles whose numbers are not there yet (`Tile`) or of PyTorch's
tensors, on any device. Of the former it writes down what is to be done; the compiled library does it, once
over the data where PyTorch's operations go through it many times, and keeps no other thread waiting for the
interpreter. PyTorch does the same: to the last bit, save for sums of many numbers, formed in another order.
"""

from __future__ import annotations

from meldkit.kernels.differences import (
    count_conflicts,
    differences,
    word_sums,
)
from meldkit.kernels.elements import (
    Numbers,
    Rows,
    average_changed,
    clamp,
    combine,
    count_changed,
    divide,
    elect,
    importance,
    keep_bits,
    sum_rows,
    take,
    variance,
    zero_above,
    zero_below,
)
from meldkit.kernels.measures import (
    count_magnitudes,
    magnitudes,
    norms_around,
    numbers,
    products,
    squares_of_selected,
)
from meldkit.kernels.tile import Row, Tile

__all__ = [
    "Numbers",
    "Row",
    "Rows",
    "Tile",
    "average_changed",
    "clamp",
    "combine",
    "count_changed",
    "count_conflicts",
    "count_magnitudes",
    "differences",
    "divide",
    "elect",
    "importance",
    "keep_bits",
    "magnitudes",
    "norms_around",
    "numbers",
    "products",
    "squares_of_selected",
    "sum_rows",
    "take",
    "variance",
    "word_sums",
    "zero_above",
    "zero_below",
]
