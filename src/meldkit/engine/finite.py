"""Whether numbers are finite: NaN and Inf have no place in a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from meldkit.checkpoint import Scratch, TileSource

if TYPE_CHECKING:
    from torch import Tensor

#: Elements that are looked at together where it is counted.
_COUNTED = 1 << 18


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or Inf, for the price of a sum: one such value makes it NaN or Inf as well."""
    return math.isfinite(values.sum().item()) or bool(torch.isfinite(values).all())


def fits(values: Tensor, rounded: Tensor) -> bool:
    """Whether values are still finite in the dtype they were rounded to."""
    if rounded.element_size() > 1:
        return all_finite(rounded)
    # Types of one byte have no sums, and some of them turn what is too large into their largest number.
    return not values.numel() or bool(values.abs().max() <= torch.finfo(rounded.dtype).max)


def not_finite(values: Tensor) -> Tensor:
    """Which values are NaN or Inf."""
    return ~torch.isfinite(values)


def count(what: Callable[[Tensor], Tensor], source: TileSource, numel: int) -> int:
    """How many of a tensor's `numel` values are such as `what` tells; for messages, with room of its own."""
    scratch, found = Scratch(), 0
    for start in range(0, numel, _COUNTED):
        part = torch.empty(min(_COUNTED, numel - start))
        source.read(start, start + len(part), part, scratch)
        found += int(what(part).sum())
    return found
