"""What a statistic is, and how statistics are put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from meldkit.kernels import Rows

#: Elements over which sums are formed before they are added exactly. Tile sizes are multiples of it.
CHUNK = 1 << 16

Range = tuple[int, int]


@runtime_checkable
class Statistic(Protocol):
    """Something measured over a tensor of `numel` elements of `m` models."""

    def ranges(self) -> Sequence[Range]:
        """Element ranges of the next pass; empty when finished."""
        ...

    def update(self, x: Rows, start: int) -> Any:
        """Measure one tile, elements `start` to `start + n`, which may be overwritten.

        Called in any thread; nothing else is changed.
        """
        ...

    def absorb(self, partial: Any) -> None:
        """Take what `update` returned."""
        ...

    def finish_pass(self) -> None:
        """All tiles of the pass have been absorbed."""
        ...

    @property
    def passes(self) -> int:
        """How often it has the tensor read, in the usual case; before any pass."""
        ...

    @property
    def held(self) -> int:
        """Bytes that it holds at most while it measures, and after: an estimate, before any pass."""
        ...

    @property
    def result(self) -> Any:
        """The finished statistic."""
        ...


class Known:
    """A result that needs no measuring."""

    passes = 0
    held = 0

    def __init__(self, result: Any) -> None:
        self.result = result

    def ranges(self) -> Sequence[Range]:
        return []

    def update(self, x: Rows, start: int) -> Any:
        """Never called: there is no range to measure."""

    def absorb(self, partial: Any) -> None:
        """Never called."""

    def finish_pass(self) -> None:
        """Never called."""


def pair(first: Any, second: Any) -> tuple[Any, Any]:
    """Both results of a chain."""
    return first, second


class Chain:
    """One statistic, then another (or none) that is made from the first one's result.

    Args:
        first: measured first.
        then: makes the second one from the first one's result; None if there is none.
        result: from both results to the chain's; the second is None if there was none.
        passes: of the second one.
        held: bytes that the second one holds, where that is much.
    """

    def __init__(
        self,
        first: Statistic,
        then: Callable[[Any], Statistic | None],
        result: Callable[[Any, Any], Any] = pair,
        *,
        passes: int = 0,
        held: int = 0,
    ) -> None:
        self.passes = first.passes + passes
        self.held = first.held + held
        self._first = first
        self._then = then
        self._finish = result
        self._second: Statistic | None = None
        self._current = first

    def ranges(self) -> Sequence[Range]:
        if ranges := self._current.ranges():
            return ranges
        if self._current is self._first:
            self._second = self._then(self._first.result)
            if self._second is not None:
                self._current = self._second
                return self._current.ranges()
        return []

    def update(self, x: Rows, start: int) -> Any:
        return self._current.update(x, start)

    def absorb(self, partial: Any) -> None:
        self._current.absorb(partial)

    def finish_pass(self) -> None:
        self._current.finish_pass()

    @property
    def result(self) -> Any:
        return self._finish(self._first.result, None if self._second is None else self._second.result)


class Derived:
    """A statistic of numbers that are computed from each tile.

    Args:
        derive: from a tile `[m, n]` and its start to rows `[n]`.
        inner: the statistic of the derived numbers, which takes rows.
    """

    def __init__(self, derive: Callable[[Rows, int], Any], inner: Statistic) -> None:
        self.passes = inner.passes
        self.held = inner.held
        self._derive = derive
        self._inner = inner

    def ranges(self) -> Sequence[Range]:
        return self._inner.ranges()

    def update(self, x: Rows, start: int) -> Any:
        return self._inner.update(self._derive(x, start), start)

    def absorb(self, partial: Any) -> None:
        self._inner.absorb(partial)

    def finish_pass(self) -> None:
        self._inner.finish_pass()

    @property
    def result(self) -> Any:
        return self._inner.result


class Bits:
    """A bit per element of a tensor, remembered by those who measure for those who apply.

    They usually see the same tiles. Where an accelerator's memory was too small for them, they see others.
    """

    def __init__(self) -> None:
        self._tiles: dict[int, tuple[int, np.ndarray]] = {}

    def remember(self, start: int, n: int, bits: np.ndarray) -> None:
        """The bits of elements [start, start + n): uint8 `[…, n / 8]`, the highest bit of a byte first."""
        self._tiles[start] = n, bits

    def of(self, start: int, n: int) -> np.ndarray:
        """The bits of elements [start, start + n), each of which has been remembered."""
        known = self._tiles.get(start)
        if known is not None and known[0] == n:
            return known[1]
        parts: list[np.ndarray] = []
        for first, (length, bits) in sorted(self._tiles.items(), key=lambda tile: tile[0]):
            low, high = max(start, first), min(start + n, first + length)
            if low < high:
                flags = np.unpackbits(bits, axis=-1, count=length)
                parts.append(flags[..., low - first : high - first])
        return np.packbits(np.concatenate(parts, axis=-1), axis=-1)
