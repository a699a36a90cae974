"""Who declined a job or its rounds, and why: one line for each node and cause, however often.

A device may decline a thousand times a second; what is kept of it is a count and its last reason,
and what is written is all that changed since a second ago, at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fedsys.errors import Cause
from server.home.state import RefusalRow, State

__all__ = ["Refusals"]

_SECONDS = 1.0


@dataclass
class _Entry:
    round: int
    reason: str
    count: int
    at: float
    changed: bool = True


class Refusals:
    """Those of one job.

    Args:
        state: where they are kept.
        job: its id.
        clock: monotonic seconds.
    """

    def __init__(self, state: State, job: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._state, self._job, self._clock = state, job, clock
        self._entries: dict[tuple[int, Cause], _Entry] = {
            (row.node, Cause[row.cause]): _Entry(
                round=row.round, reason=row.reason, count=row.count, at=row.at, changed=False
            )
            for row in state.refusals_of(job)
        }
        self._written = clock() - _SECONDS

    def note(self, *, round: int, node: int, cause: Cause, reason: str) -> None:
        """Count one; it is on disk within a second, or at the next `flush`.

        Args:
            round: 0 for the whole job.
            node: who.
            cause: of what kind it is.
            reason: one bounded line, without control characters.
        """
        entry, now = self._entries.get((node, cause)), time.time()
        if entry is None:
            self._entries[node, cause] = _Entry(round=round, reason=reason, count=1, at=now)
        else:
            entry.round, entry.reason, entry.at, entry.changed = round, reason, now, True
            entry.count += 1
        if self._clock() - self._written >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what changed; durable when this returns."""
        changed = [(key, entry) for key, entry in self._entries.items() if entry.changed]
        if not changed:
            return
        self._state.refuse(
            RefusalRow(
                job=self._job,
                node=node,
                cause=cause.name,
                round=entry.round,
                reason=entry.reason,
                count=entry.count,
                at=entry.at,
            )
            for (node, cause), entry in changed
        )
        for _, entry in changed:
            entry.changed = False
        self._written = self._clock()
