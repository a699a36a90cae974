"""Whose upload comes next in buffered rounds: clients that train, on the simulated clock.

Everything is a function of the fault plan, of who may be asked and of the order in which they
stand, so a job replays to the letter.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from simulations.faults import FaultPlan

__all__ = ["Crowd", "Training"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A client that trains, or whose upload has come.

    Attributes:
        client: its id.
        buffer: number of the buffer that was being filled when it was asked.
        version: versions of the model that there had been by then.
        finish: simulated seconds since the job began at which its upload is due.
        lost: whether that upload never comes.
    """

    client: int
    buffer: int
    version: int
    finish: float
    lost: bool = False


class Crowd:
    """The clients of an epoch, of which a constant number trains at a time.

    A client trains once at a time, and is not asked again while the buffer is being filled in which
    its upload waits, or to which it failed to come.

    Args:
        faults: how long they take, and who vanishes.
        work_of: examples that a client works through.
        concurrency: clients that train at a time.

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
        self._places: dict[int, int] = {}  # of the epoch's clients, as they stand
        self._turns: dict[int, int] = {}
        self._idle: list[tuple[int, int, int]] = []  # turns, place, client
        self._waits: set[int] = set()

    @property
    def training(self) -> tuple[Training, ...]:
        """Those that train, in the order in which their uploads are due."""
        return tuple(entry[2] for entry in sorted(self._due, key=lambda entry: entry[:2]))

    def invite(self, clients: Iterable[int]) -> None:
        """An epoch of these clients begins; those that train already have had their turn."""
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
        """No client's upload waits any more; those that failed to come are asked again."""
        self._waits.clear()

    def ask(
        self,
        *,
        buffer: int,
        version: int,
        now: float,
        allowed: Callable[[int], bool] = lambda client: True,
    ) -> None:
        """Have clients begin until as many train as may, those first that had the fewest turns.

        Args:
            buffer: number of the one that is being filled.
            version: of the model that they begin with.
            now: simulated seconds since the job began.
            allowed: whether a client may contribute once more.
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
        """The training that ends first, those that began first among equals; None: nobody trains.

        One that is not lost waits from here in the buffer that is being filled.
        """
        if not self._due:
            return None
        training = heapq.heappop(self._due)[2]
        self._waits.add(training.client)
        self._rest(training.client)
        return training
