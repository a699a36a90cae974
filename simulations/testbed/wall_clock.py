"""Makes a process's wall clock wrong."""

from __future__ import annotations

import datetime as dt
import time

__all__ = ["shift_wall_clock"]


def shift_wall_clock(seconds: float) -> None:
    """Make this process's ``time.time`` and ``datetime.now`` wrong by this much from now on.

    The monotonic clock stays right, as it does on a machine whose wall clock is set. Code that
    reads the system's clock outside Python is not affected: TLS checks validity by the true time.
    """
    true_time, shift = time.time, dt.timedelta(seconds=seconds)

    class Shifted(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Shifted:
            return super().now(tz) + shift

    time.time = lambda: true_time() + seconds
    dt.datetime = Shifted  # type: ignore[misc]
