"""Who of a job of buffered rounds trains, who has trained, and whose upload was asked for.

Bookkeeping alone: no messages, no clock of its own. It outlives epochs, since a device that trains
when one ends goes on.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

__all__ = ["Asked", "Crowd", "Training"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a client was asked to train.

    Attributes:
        round: the buffer that was being filled.
        version: of the model that it began with.
        closes: when it is not waited for any longer.
    """

    round: int
    version: int
    closes: float


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An upload that was asked for.

    Attributes:
        staleness: versions released since the model that it was trained from.
        message: of secure aggregation, which asks for it.
        closes: when its place goes to another.
    """

    staleness: int
    message: bytes
    closes: float


class Crowd:
    """The clients of a job.

    Args:
        concurrency: clients that are at work at a time.

    Attributes:
        training: by client.
        trained: by client, in the order in which they were done: they wait to be asked.
        asked: by client.
        spent: those that had their turn in the buffer that is being filled: their upload is in it,
            or did not come.
        again: those that lost what they had trained in it, and began once more.

    >>> crowd = Crowd(concurrency=2)
    >>> crowd.next_idle([4, 2, 7])
    [4, 2]
    >>> crowd.begin(4, Training(round=1, version=0, closes=9.0))
    >>> crowd.done(4, round=1, version=0), list(crowd.trained), crowd.next_idle([4, 2, 7])
    (True, [4], [2])
    """

    def __init__(self, *, concurrency: int) -> None:
        self.training: dict[int, Training] = {}
        self.trained: dict[int, Training] = {}
        self.asked: dict[int, Asked] = {}
        self.spent: set[int] = set()
        self.again: set[int] = set()
        self._concurrency = concurrency
        self._turns: Counter[int] = Counter()

    def begin_buffer(self) -> None:
        """Nobody has had a turn in this one."""
        self.spent.clear()
        self.again.clear()
        self.asked.clear()

    def at_work(self, client: int) -> bool:
        """Whether a client trains, has trained, or is to upload."""
        return client in self.training or client in self.trained or client in self.asked

    @property
    def room(self) -> int:
        """How many more may be at work."""
        busy = len(self.training) + len(self.trained) + len(self.asked)
        return max(self._concurrency - busy, 0)

    def next_idle(self, able: Iterable[int]) -> list[int]:
        """Who is to begin, those first that had the fewest turns, until enough are at work.

        Args:
            able: those that may contribute once more, in the order in which equals are asked.
        """
        idle = [each for each in able if each not in self.spent and not self.at_work(each)]
        return heapq.nsmallest(self.room, idle, key=lambda client: self._turns[client])

    def begin(self, client: int, training: Training) -> None:
        """A client was asked to train."""
        self._turns[client] += 1
        self.training[client] = training

    def done(self, client: int, *, round: int, version: int) -> bool:
        """A client says that it has trained; whether it was asked to."""
        known = self.training.get(client)
        if known is None or (known.round, known.version) != (round, version):
            return False
        self.trained[client] = self.training.pop(client)
        return True

    def returned(
        self, client: int, found: Training | None, *, done: bool, versions: int, rounds: int
    ) -> None:
        """A client came back and says what it is at; what it was asked for before may be lost.

        What it began before the coordinator was started anew goes on: it began with a model that
        was released, in a buffer that was paid for.

        Args:
            client: whose upload is not awaited.
            found: what it says.
            done: whether it has trained.
            versions: of the model so far.
            rounds: paid for so far.
        """
        known = self.training.get(client) or self.trained.get(client)
        said = None if found is None else (found.round, found.version)
        if known is not None and said != (known.round, known.version):
            self.drop(client)
            known = None
        if found is None or not (found.version <= versions and 1 <= found.round <= rounds):
            return
        if known is None:
            self.training[client] = found
        if done:
            self.done(client, round=found.round, version=found.version)

    def ask(self, client: int, asked: Asked) -> None:
        """The upload of a client that has trained is asked for."""
        del self.trained[client]
        self.asked[client] = asked

    def drop(self, client: int) -> None:
        """What a client is at is not waited for any longer."""
        self.training.pop(client, None)
        self.trained.pop(client, None)
        self.asked.pop(client, None)

    def fail(self, client: int) -> None:
        """It had its turn in this buffer, and nothing came of it."""
        self.drop(client)
        self.spent.add(client)

    def lose(self, client: int) -> None:
        """It has nothing to upload, maybe because it was started anew: once a buffer, it may begin
        again."""
        if client in self.again or client not in self.asked:
            self.fail(client)
        else:
            self.again.add(client)
            self.drop(client)

    def expire(self, now: float) -> list[int]:
        """Give those up whose time is over; returns them."""
        late = [each for each, work in self.training.items() if work.closes <= now]
        late += [each for each, work in self.asked.items() if work.closes <= now]
        for client in late:
            self.fail(client)
        return late

    def keep_only(self, clients: Collection[int]) -> None:
        """Give up whoever is not among these."""
        for client in {*self.training, *self.trained, *self.asked} - set(clients):
            self.drop(client)

    def deadlines(self) -> list[float]:
        """When something that is waited for is given up."""
        ends = [work.closes for work in self.training.values()]
        return ends + [work.closes for work in self.asked.values()]
