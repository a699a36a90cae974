"""Virtual time: what is due next happens next, and nothing waits."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

__all__ = ["Clock"]

Action = Callable[[], None]


class Clock:
    """Events in the order of their times; those of one time in the order in which they were set.

    >>> clock, seen = Clock(), []
    >>> clock.after(2.0, lambda: seen.append("late"))
    >>> clock.after(1.0, lambda: seen.append("soon"))
    >>> while clock.step(): pass
    >>> seen, clock.now
    (['soon', 'late'], 2.0)
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Action]] = []
        self._count = itertools.count()

    def after(self, seconds: float, action: Action) -> None:
        """Let `action` happen `seconds` from now."""
        heapq.heappush(self._queue, (self.now + max(seconds, 0.0), next(self._count), action))

    def step(self) -> bool:
        """Let the next event happen; False where none is left."""
        if not self._queue:
            return False
        self.now, _, action = heapq.heappop(self._queue)
        action()
        return True
