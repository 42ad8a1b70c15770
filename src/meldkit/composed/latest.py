"""What was computed last, for readers that want it again: by several threads, or piece by piece."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Entry(Generic[T]):
    lock: Lock = field(default_factory=Lock)
    made: list[T] = field(default_factory=list[T])


class Latest(Generic[T]):
    """Keeps what was asked for last; whoever asks first for something makes it, and others wait for that.

    Args:
        at_least: so many are kept, as threads are at work on several at once.
        room: more are kept while their sizes together are at most this.
        size: of one.
    """

    def __init__(self, at_least: int, room: int = 0, size: Callable[[T], int] = lambda _: 1) -> None:
        self._at_least = at_least
        self._room = room
        self._size = size
        self._entries: OrderedDict[object, _Entry[T]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: object, make: Callable[[], T]) -> T:
        """What is known by a key, made if nobody has made it yet."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry[T]())
            self._entries.move_to_end(key)
            sizes = [sum(map(self._size, known.made)) for known in self._entries.values()]
            total = sum(sizes)
            for size in sizes[: len(sizes) - self._at_least]:
                if total <= self._room:
                    break
                self._entries.popitem(last=False)
                total -= size
        with entry.lock:
            if not entry.made:
                entry.made.append(make())
            return entry.made[0]
