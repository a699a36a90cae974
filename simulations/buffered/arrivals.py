"""Order of arrivals in buffered rounds: which training client's upload comes next.

Everything is a function of the fault plan, of the clients that may be invited and of their order,
so a job replays exactly.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from simulations.faults import FaultPlan

__all__ = ["Crowd", "Training"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """One client's training, under way or finished.

    Attributes:
        client: The client's id.
        buffer: Number of the buffer that was being filled when the client was invited.
        version: Version of the model that it was given.
        finish: When its upload is due, in simulated seconds since the job began.
        lost: Whether that upload never comes.
    """

    client: int
    buffer: int
    version: int
    finish: float
    lost: bool = False


class Crowd:
    """The clients of an epoch, of which a constant number trains at a time.

    A client trains once at a time. After its upload came or was lost, it is not invited again
    until the buffer being filled then is closed.

    Args:
        faults: Decides how long clients take and which of them vanish.
        work_of: Returns the number of examples that a client trains on.
        concurrency: Number of clients that train at a time.

    >>> crowd = Crowd(faults=FaultPlan(), work_of=lambda client: 1, concurrency=2)
    >>> crowd.invite([4, 2, 7])
    >>> crowd.ask(buffer=1, version=0, now=0.0)
    >>> [crowd.next().client, crowd.next().client, crowd.next()]
    [4, 2, None]
    """

    def __init__(
        self, *, faults: FaultPlan, work_of: Callable[[int], int], concurrency: int
    ) -> None:
        self._faults = faults
        self._work_of = work_of
        self._concurrency = concurrency
        self._due: list[tuple[float, int, Training]] = []
        self._asked = 0
        self._places: dict[int, int] = {}  # position of each of the epoch's clients
        self._turns: dict[int, int] = {}
        self._idle: list[tuple[int, int, int]] = []  # turns, place, client
        self._waits: set[int] = set()

    @property
    def training(self) -> tuple[Training, ...]:
        """Clients that are training, in the order in which their uploads are due."""
        return tuple(entry[2] for entry in sorted(self._due, key=lambda entry: entry[:2]))

    def invite(self, clients: Iterable[int]) -> None:
        """Begin an epoch of these clients; those training already have had one turn."""
        busy = {training.client for training in self.training}
        self._places = {client: place for place, client in enumerate(clients)}
        self._turns = dict.fromkeys(self._places, 0)
        self._idle = []
        for client in self._places:
            if client in busy:
                self._turns[client] = 1
            else:
                self._rest(client)

    def _rest(self, client: int) -> None:
        if client in self._places:
            heapq.heappush(self._idle, (self._turns[client], self._places[client], client))

    def begin_buffer(self) -> None:
        """Begin a buffer: clients of the last one, lost or not, may be invited again."""
        self._waits.clear()

    def ask(
        self,
        *,
        buffer: int,
        version: int,
        now: float,
        allowed: Callable[[int], bool] = lambda client: True,
    ) -> None:
        """Start clients up to the concurrency limit, those with the fewest turns first.

        Args:
            buffer: Number of the buffer that is being filled.
            version: Version of the model that they start from.
            now: Simulated seconds since the job began.
            allowed: Whether a client may contribute once more.
        """
        free = max(self._concurrency - len(self._due), 0)
        passed: list[int] = []
        while free and self._idle:
            client = heapq.heappop(self._idle)[2]
            if (
                client in self._waits
                or not allowed(client)
                or not self._faults.reachable(round=buffer, client=client, now=now)
            ):
                passed.append(client)
                continue
            self._turns[client] += 1
            self._begin(client, buffer=buffer, version=version, now=now)
            free -= 1
        for client in passed:
            self._rest(client)

    def _begin(self, client: int, *, buffer: int, version: int, now: float) -> None:
        faults, examples = self._faults, self._work_of(client)
        lost = faults.lost(round=buffer, client=client, now=now, examples=examples)
        seconds = faults.seconds(client=client, examples=examples)
        if faults.deadline:
            seconds = min(seconds, faults.deadline)
        training = Training(
            client=client,
            buffer=buffer,
            version=version,
            finish=now + seconds,
            lost=lost == "upload",
        )
        heapq.heappush(self._due, (training.finish, self._asked, training))
        self._asked += 1

    def next(self) -> Training | None:
        """The training that ends first (of equals, the one that began first), or None if there is
        none. Unless it is lost, its upload now waits in the buffer that is being filled."""
        if not self._due:
            return None
        training = heapq.heappop(self._due)[2]
        self._waits.add(training.client)
        self._rest(training.client)
        return training
