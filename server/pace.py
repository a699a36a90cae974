"""Rate limit for one party: a token bucket that fills at a steady rate."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Pace"]


class Pace:
    """Counts one party's actions against its allowed rate.

    >>> pace = Pace(burst=2, a_second=10.0, clock=lambda: 0.0)
    >>> [pace.take(), pace.take(), round(pace.take(), 3), round(pace.take(), 3)]
    [0.0, 0.0, 0.1, 0.2]

    Args:
        burst: Actions allowed at once after a rest.
        a_second: Actions allowed per second in the long run.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self, *, burst: int, a_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._rate, self._clock = float(burst), a_second, clock
        self._left, self._at = float(burst), clock()

    def take(self) -> float:
        """Count one action; seconds until it is within the rate, 0 if it already is."""
        self._fill()
        self._left -= 1.0
        return max(0.0, -self._left / self._rate)

    def try_take(self) -> bool:
        """Count one action if the rate allows it now; returns whether it does."""
        self._fill()
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    @property
    def rested(self) -> bool:
        """Whether a whole burst is allowed again, so that this object can be forgotten."""
        self._fill()
        return self._left >= self._burst

    def _fill(self) -> None:
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
