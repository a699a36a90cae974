"""Writes down when each device was last seen, and its version, so that a restart knows them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sqlalchemy import update
from sqlalchemy.exc import DBAPIError

from server.deployed.fleet import Fleet
from server.home.state import NodeRow, State

__all__ = ["Presence"]

_POLL = 2.0
_REPEAT = 60.0
"""Seconds after which a device that stays connected is written again."""


class Presence:
    """Follows a fleet's sessions.

    Args:
        state: where it is written.
        fleet: the sessions.
        now: seconds since 1970.
    """

    def __init__(self, state: State, fleet: Fleet, *, now: Callable[[], float] = time.time) -> None:
        self._state = state
        self._fleet = fleet
        self._now = now
        self._written: dict[int, float] = {}

    async def follow(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.to_thread(self.note)
            await asyncio.sleep(_POLL)

    def note(self, *, last: bool = False) -> None:
        """Write what changed: who came, who left, and from time to time who is still there.

        Args:
            last: nothing will be written any more: write everybody who is there.
        """
        now = self._now()
        there = {node: link.version for node, link in list(self._fleet.links.items())}
        left = self._written.keys() - there.keys()
        since = {node: now - self._written.get(node, float("-inf")) for node in there}
        due = {node for node, seconds in since.items() if last or seconds >= _REPEAT}
        if not left and not due:
            return
        try:
            with self._state.transaction() as session:
                for node in left | due:
                    values: dict[str, object] = {"last_seen": now}
                    if node in there:
                        values["version"] = there[node]
                    session.execute(update(NodeRow).where(NodeRow.id == node).values(values))
        except DBAPIError:  # a full disk, for one: the next time writes it
            return
        for node in left:
            del self._written[node]
        self._written.update(dict.fromkeys(due, now))
