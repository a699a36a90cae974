"""One client: checks what it is asked to do, says what to compute, encrypts the result; sans-IO.

::

    mechanism = agent.accept(assignment, params)   # PolicyRefusal, or how to privatize the update
    agent.enter(opening)                           # checks it, before anything is trained
    agent.provide(vector)                          # trained and privatized, by its host
    upload = agent.handle(opening)                 # the vector leaves; an ordinary member is done
    reply = agent.handle(message)                  # a committee member's duties, one reply each

Training is left to the host, which can do it for one client or for many at once.
"""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from typing import Any, Protocol

from numpy.typing import NDArray

from client.policy import Policy
from fedsys.errors import ProtocolError
from fedsys.privacy import Entropy, Event, Mechanism, mechanism_for
from fedsys.wire import Assignment
from secure_agg import Identity, Member, Roster, SealingKeys, SecAggParams, Shared, Store
from secure_agg.errors import InputError

__all__ = ["Agent", "Participations", "mechanism_of"]


@functools.lru_cache(maxsize=8)
def _mechanism(event: Event) -> Mechanism:
    return mechanism_for(event)


def mechanism_of(assignment: Assignment) -> Mechanism:
    """The mechanism that an assignment prescribes, with its parameters checked for consistency.

    Raises:
        MechanismError: they are inconsistent.
    """
    return _mechanism(assignment.event)


class Participations(Protocol):
    """One client's own count of the rounds that it took part in."""

    def others(self, job: bytes, round: int) -> int:
        """The number of rounds of a job that were joined, not counting this one."""
        ...

    def join(self, job: bytes, round: int) -> None:
        """Count a round, once; nothing is answered in that round before this returns."""
        ...


class _Remembered:
    """A count in memory, which ends with its process."""

    def __init__(self) -> None:
        self._joined: dict[bytes, set[int]] = {}

    def others(self, job: bytes, round: int) -> int:
        return len(self._joined.get(job, set()) - {round})

    def join(self, job: bytes, round: int) -> None:
        self._joined.setdefault(job, set()).add(round)


class Agent:
    """One client through many rounds.

    Args:
        id: the client's number in the roster.
        identity: the client's signing key.
        roster: the pinned population.
        policy: what the owner allows.
        sealing: single-use sealing keys; by default fresh ones that end with the process.
        entropy: source of secrets and shares.
        store: keeps, across crashes, a record of what was sent.
        counted: counts the rounds taken part in; by default in memory, which suffices for virtual
            clients. A device's count is durable: see `client.journal.Journal`.
        shared: work shared with other virtual clients of the same process.

    Attributes:
        sealing: the sealing keys.
    """

    def __init__(
        self,
        *,
        id: int,
        identity: Identity,
        roster: Roster,
        policy: Policy | None = None,
        sealing: SealingKeys | None = None,
        entropy: Entropy = os.urandom,
        store: Store | None = None,
        counted: Participations | None = None,
        shared: Shared | None = None,
    ) -> None:
        self.id = id
        self.sealing = sealing or SealingKeys(identity, entropy=entropy)
        self._identity = identity
        self._roster = roster
        self._policy = policy or Policy()
        self._entropy = entropy
        self._store = store
        self._shared = shared
        self._member: Member | None = None
        self._counted: Participations = _Remembered() if counted is None else counted

    def accept(
        self, assignment: Assignment, params: SecAggParams, *, buffers: int = 1
    ) -> Mechanism:
        """Check an assignment and get ready for its round, which counts as joined from here on.

        An epoch of several buffers does not count yet: see `contribute`.

        A process that did not begin the round resumes it in the same way: what was sent already is
        known from the stores.

        Args:
            assignment: the round's assignment.
            params: parameters of secure aggregation, derived by the caller from what was agreed.
            buffers: buffers in the epoch that begins with this round; 1 in synchronous rounds.

        Returns:
            The mechanism with which the host is to privatize the update.

        Raises:
            PolicyRefusal: the owner does not allow it.
            MechanismError: the mechanism's parameters are inconsistent.
            StateError: the store cannot be read.
        """
        job, number = assignment.job, assignment.round
        others = self._counted.others(job, number) if buffers == 1 else 0
        self._policy.check(assignment, participations=others)
        mechanism = mechanism_of(assignment)
        if buffers == 1:
            self._counted.join(job, number)
        self._member = Member(
            identity=self._identity,
            id=self.id,
            roster=self._roster,
            params=params,
            context=assignment.epoch_context(buffers),
            sealing=self.sealing,
            entropy=self._entropy,
            store=self._store,
            shared=self._shared,
        )
        return mechanism

    def contribute(self, assignment: Assignment) -> None:
        """Count a buffer of the epoch as joined, before anything is uploaded into it.

        Args:
            assignment: the buffer's assignment.

        Raises:
            PolicyRefusal: the owner does not allow one more.
        """
        job, number = assignment.job, assignment.round
        self._policy.check(assignment, participations=self._counted.others(job, number))
        self._counted.join(job, number)

    def resumes(self, opening: bytes) -> bool:
        """Whether this opening was accepted before, possibly by an earlier process."""
        return self._current().resumes(opening)

    @property
    def uploaded(self) -> bool:
        """Whether this round's vector was sent already, so that no other is needed."""
        return self._current().uploaded

    def enter(self, opening: bytes) -> None:
        """Check a round's opening message and take its sealing key, before anything is trained.

        Raises:
            SecureAggError: a refusal, named by its cause.
        """
        with suppress(InputError):  # only the vector is missing
            self._current().handle(opening)

    def provide(self, vector: NDArray[Any]) -> None:
        """Hand over the privatized vector (length,), before the opening message is answered."""
        self._current().provide(vector)

    def withdraw(self) -> None:
        """Drop a vector that was handed over and has not left."""
        self._current().withdraw()

    def handle(self, message: bytes) -> bytes:
        """Answer one message of the aggregator.

        Raises:
            SecureAggError: a refusal, named by its cause.
            ProtocolError: no assignment was accepted.
        """
        return self._current().handle(message)

    def _current(self) -> Member:
        if self._member is None:
            raise ProtocolError(f"client {self.id}: no assignment was accepted in this round")
        return self._member
