"""What the system is told of a file that is read from one end to the other.

Disks are fast only while many requests wait for them. A system left to itself reads little ahead, and threads
that wait for a range each keep a disk no busier.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

from meldkit.kernels import stored

#: Bytes that the system is told of before somebody asks for them: so many that a disk has enough to do while
#: what was read is gone through once more.
AHEAD = 32 * 2**20
#: Bytes it is told of at a time, and forgets at a time, from a multiple on.
PIECE = 4 * 2**20
#: Bytes of a call: Linux does nothing about those beyond its own reading ahead, which is set to no less.
_CALL = 128 * 2**10
#: Bytes by which a range may miss the end of an earlier one and still go on with it.
_NEAR = 8 * 2**20
#: Places of a file at which it may be read at the same time.
_PLACES = 4

#: Whether the system can be told.
CAN_TELL = hasattr(os, "posix_fadvise")


@dataclass(slots=True)
class _Place:
    """Where reading began there, where the latest range ended, and up to where the system was told."""

    first: int
    last: int
    told: int


class Ahead:
    """Has the system read a file ahead of the threads that go through it together.

    Args:
        descriptor: of the file.
        forgets: whether what nobody had brought into the page cache before is taken out of it after use.
    """

    def __init__(self, descriptor: int, *, forgets: bool = False) -> None:
        self._descriptor = descriptor
        self._forgets = forgets
        self._size = os.fstat(descriptor).st_size
        self._lock = Lock()
        self._places: list[_Place] = []  # the latest first
        #: Pieces that nobody had brought in, and how many of their bytes somebody may still read.
        self._ours: dict[int, int] = {}
        if forgets and CAN_TELL:
            # Else the system itself reads more than it is told of, and then nobody knows whose it is.
            self._tell(0, 0, os.POSIX_FADV_RANDOM)

    def read(self, offset: int, nbytes: int) -> None:
        """Somebody is about to read a range, and what follows it if it goes on with an earlier one."""
        if not CAN_TELL:
            return
        stop = offset + nbytes
        with self._lock:
            place = next((p for p in self._places if abs(offset - p.last) <= _NEAR + nbytes), None)
            if place is None:
                place = _Place(offset, stop, stop)
                ranges = [(offset, stop)]
            else:
                self._places.remove(place)
                # Threads come in any order, also the first ones.
                ranges = [(offset, min(stop, place.first))]
                place.first, place.last = min(place.first, offset), stop
                if place.told < stop + AHEAD - PIECE:
                    end = -(-(stop + AHEAD) // PIECE) * PIECE
                    ranges.append((place.told, end))
                    place.told = end
            self._places = [place, *self._places[: _PLACES - 1]]
        for begin, end in ranges:
            # Where others are by now they read themselves, and may even be done.
            self.bring(begin, end, lambda first: stop <= first < place.last)

    def bring(self, begin: int, end: int, passed: Callable[[int], bool]) -> None:
        """Have the system read bytes [begin, end), but for what has passed when it comes to that."""
        for piece, length in self._pieces(begin, end):
            start = piece * PIECE
            held = stored.cached(self._descriptor, start, length)
            if held:
                continue
            # Where nobody knows, it may be somebody else's.
            if self._forgets and held is False:
                with self._lock:
                    self._ours.setdefault(piece, length)
            for first in range(max(start, begin), min(start + length, end), _CALL):
                if not passed(first):
                    self._tell(first, _CALL, os.POSIX_FADV_WILLNEED)

    def let_go(self, offset: int, nbytes: int) -> None:
        """Nobody will read a range again, which nobody has let go before."""
        if not self._ours:
            return
        passed: list[int] = []
        with self._lock:
            for piece, length in self._pieces(offset, offset + nbytes):
                if piece not in self._ours:
                    continue
                begin, end = piece * PIECE, piece * PIECE + length
                self._ours[piece] -= min(end, offset + nbytes) - max(begin, offset)
                if self._ours[piece] <= 0:
                    del self._ours[piece]
                    passed.append(piece)
        self._forget(passed)

    def close(self) -> None:
        """Nobody will read the file again."""
        self._forget(self._ours)

    def _pieces(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Those with bytes of a range: their numbers, and how long they are."""
        end = min(end, self._size)
        for piece in range(begin // PIECE, -(-end // PIECE) if begin < end else 0):
            yield piece, min(PIECE, self._size - piece * PIECE)

    def _forget(self, pieces: Iterable[int]) -> None:
        for piece in pieces:
            self._tell(piece * PIECE, PIECE, os.POSIX_FADV_DONTNEED)

    def _tell(self, offset: int, nbytes: int, advice: int) -> None:
        # Not every file system takes advice, and none has to.
        with suppress(OSError):
            os.posix_fadvise(self._descriptor, offset, nbytes, advice)


def main_memory() -> int:
    """Bytes of this machine's."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
