"""The server's view: each client's own rounds at the noise that honest survivors added."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy.costs import server_cost
from fedsys.privacy.events import Event
from fedsys.privacy.plan import PrivacyPlan
from fedsys.privacy.rdp import ORDERS, SERVER_ORDERS, Vector, epsilon_of, epsilons_of

__all__ = ["ServerLoss"]

_ROWS_AT_ONCE = 1 << 14


class ServerLoss:
    """The server: each client's own rounds at the noise that honest survivors really added."""

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        self._orders = ORDERS[SERVER_ORDERS]
        # row + 1 of each client, 0 for none: untouched pages of zeros cost no memory
        self._row_of = np.zeros(plan.population, dtype=np.int32)
        self._rows: Vector = np.zeros((0, len(self._orders)))
        self._used = 0
        self._unknown: Vector = np.zeros_like(self._orders)
        self._envelope: Vector = np.zeros_like(self._orders)
        self._most = 0
        self._counts = np.zeros(0, dtype=np.int64)
        self._changed = np.zeros(0, dtype=np.bool_)
        self._all_changed = False
        self._worst_epsilon = 0.0

    def add(self, event: Event, clients: NDArray[np.int64] | None, survivors: int | None) -> None:
        """Charges a round to its clients, at the worst case where ``survivors`` is None.

        Args:
            event: what it cost.
            clients: (k,) distinct; None charges the round to everybody.
            survivors: clients in the sum.
        """
        cost = server_cost(event, survivors)[SERVER_ORDERS]
        if clients is None:
            self._unknown = self._unknown + cost
            self._all_changed = True
            return
        if not clients.size:
            return
        rows = self._rows_of(clients)
        self._rows[rows] += cost
        self._counts[rows] += 1
        self._changed[rows] = True
        self._envelope = np.maximum(self._envelope, self._rows[rows].max(axis=0))

    def _worst(self) -> float:
        """Epsilon of the worst client: losses only grow, so those that grew are looked at."""
        changed = np.flatnonzero(self._changed[: self._used])
        if self._all_changed:
            changed = np.arange(self._used)
            self._look(np.zeros((1, len(self._orders))))
        for start in range(0, len(changed), _ROWS_AT_ONCE):
            self._look(self._rows[changed[start : start + _ROWS_AT_ONCE]])
        self._changed[:] = False
        self._all_changed = False
        return self._worst_epsilon

    def _look(self, rows: Vector) -> None:
        epsilons = epsilons_of(rows + self._unknown, self._plan.delta_server, self._orders)
        self._worst_epsilon = max(self._worst_epsilon, float(epsilons.max()))

    def _rows_of(self, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        fresh = clients[self._row_of[clients] == 0]
        if fresh.size:
            needed = self._used + fresh.size
            if needed > len(self._rows):
                room = min(max(needed, 2 * len(self._rows), 64), self._plan.population)
                grown = np.zeros((room, len(self._orders)))
                grown[: self._used] = self._rows[: self._used]
                counts = np.zeros(room, dtype=np.int64)
                counts[: self._used] = self._counts[: self._used]
                changed = np.zeros(room, dtype=np.bool_)
                changed[: self._used] = self._changed[: self._used]
                self._rows, self._counts, self._changed = grown, counts, changed
            self._row_of[fresh] = np.arange(self._used + 1, needed + 1, dtype=np.int32)
            self._used = needed
        return self._row_of[clients].astype(np.int64) - 1

    def participations(self, client: int) -> int:
        """Rounds in which a client's update was, or may have been, summed."""
        row = int(self._row_of[client]) - 1
        return 0 if row < 0 else int(self._counts[row])

    @property
    def clients(self) -> NDArray[np.int64]:
        """Those whose updates were, or may have been, summed in a round with a known cohort."""
        return np.flatnonzero(self._row_of)

    def curves(self, clients: NDArray[np.int64]) -> Vector:
        """(n, orders) Rényi divergence at ``ORDERS[SERVER_ORDERS]`` of each of n clients."""
        rows = self._row_of[clients]
        known = rows > 0
        curves = np.tile(self._unknown, (len(clients), 1))
        curves[known] += self._rows[rows[known] - 1]
        return curves

    def epsilon(self, next_event: Event | None = None) -> float:
        """Of the worst client so far, or at worst once ``next_event`` is charged too.

        The second is bounded by the largest loss of any client at each order plus the next
        round's worst case, and by the limit on participations where there is one.
        """
        if next_event is None:
            return self._worst()
        delta = self._plan.delta_server
        worst = server_cost(next_event)[SERVER_ORDERS]
        after = epsilon_of(self._envelope + self._unknown + worst, delta, self._orders)
        if self._plan.max_participations is not None and not self._unknown.any():
            limit = epsilon_of(self._plan.max_participations * worst, delta, self._orders)
            after = min(after, limit)
        return max(after, self._worst())
