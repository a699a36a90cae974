"""One client: checks what it is asked, says what to compute, masks the result; sans-IO.

::

    work = agent.accept(assignment, params)      # PolicyRefusal, or what is to be computed
    reply = agent.handle(opening)                # the aggregator's messages, one reply each
    ...
    agent.provide(vector)                        # trained and privatized, by whoever hosts it
    reply = agent.handle(message)

Training lies outside so that its host can do it for one client or for many at once.
"""

from __future__ import annotations

import functools
import os
from typing import Any, Protocol

from numpy.typing import NDArray

from client.policy import Policy
from fedsys.errors import ProtocolError
from fedsys.privacy import Entropy, Event, Mechanism, event_from_json, mechanism_for
from fedsys.wire import Assignment
from secure_agg import (
    Floor,
    Identity,
    Participant,
    ParticipantStage,
    Roster,
    SecAggParams,
    Shared,
    Store,
)

__all__ = ["Agent", "Participations", "mechanism_of"]


@functools.lru_cache(maxsize=8)
def _mechanism(event: Event) -> Mechanism:
    return mechanism_for(event)


def mechanism_of(assignment: Assignment) -> Mechanism:
    """The mechanism that an assignment prescribes, its numbers checked against one another.

    Raises:
        MechanismError: they do not fit.
    """
    return _mechanism(event_from_json(assignment.mechanism))


class Participations(Protocol):
    """One client's own count of the rounds that it took part in."""

    def others(self, job: bytes, round: int) -> int:
        """How many rounds of a job were joined beside this one."""
        ...

    def join(self, job: bytes, round: int) -> None:
        """Count a round, once; nothing is answered in it before this has returned."""
        ...


class _Remembered:
    """A count that ends with its process."""

    def __init__(self) -> None:
        self._joined: dict[bytes, set[int]] = {}

    def others(self, job: bytes, round: int) -> int:
        return len(self._joined.get(job, set()) - {round})

    def join(self, job: bytes, round: int) -> None:
        self._joined.setdefault(job, set()).add(round)


class Agent:
    """One client through many rounds.

    Args:
        id: in the roster.
        identity: its signing key.
        roster: the pinned population.
        policy: what its owner allows.
        floor: what it insists upon in secure aggregation.
        entropy: for keys and shares.
        store: keeps secure aggregation's state over a crash.
        counted: counts the rounds taken part in; by default in memory, which does for virtual
            clients. A device's count is durable: see `client.journal.Journal`.
        shared: work shared with other virtual clients of the same process.
    """

    def __init__(
        self,
        *,
        id: int,
        identity: Identity,
        roster: Roster,
        policy: Policy | None = None,
        floor: Floor | None = None,
        entropy: Entropy = os.urandom,
        store: Store | None = None,
        counted: Participations | None = None,
        shared: Shared | None = None,
    ) -> None:
        self.id = id
        self._identity = identity
        self._roster = roster
        self._policy = policy or Policy()
        self._floor = floor
        self._entropy = entropy
        self._store = store
        self._shared = shared
        self._participant: Participant | None = None
        self._counted: Participations = _Remembered() if counted is None else counted

    def accept(self, assignment: Assignment, params: SecAggParams) -> Mechanism:
        """Check an assignment and get ready for its round, which counts as taken part in from here.

        Returns:
            The mechanism with which the host is to privatize the update.

        Raises:
            PolicyRefusal: the owner does not allow it.
            MechanismError: the mechanism's numbers do not fit one another.
        """
        job, number = assignment.job, assignment.round
        self._policy.check(assignment, participations=self._counted.others(job, number))
        mechanism = mechanism_of(assignment)
        self._counted.join(job, number)
        self._participant = Participant(
            identity=self._identity,
            id=self.id,
            roster=self._roster,
            params=params,
            context=assignment.context,
            length=mechanism.length,
            floor=self._floor,
            entropy=self._entropy,
            store=self._store,
            shared=self._shared,
        )
        return mechanism

    def resume(self, assignment: Assignment) -> Mechanism | None:
        """Take a round up again from the store, in a process that did not `accept` it.

        Returns:
            The mechanism, as `accept` gives it; None where the store holds no such round.

        Raises:
            StateError: the store cannot be read or written, or the round is of another roster.
        """
        stored = None if self._store is None else self._store.load()
        if stored is None or Participant.round_of(stored) != assignment.context:
            return None
        self._counted.join(assignment.job, assignment.round)
        self._participant = Participant.from_bytes(
            stored,
            identity=self._identity,
            roster=self._roster,
            floor=self._floor,
            entropy=self._entropy,
            store=self._store,
            shared=self._shared,
        )
        return mechanism_of(assignment)

    @property
    def masked(self) -> bool:
        """Whether this round's vector was handed out already, so that none is needed any more."""
        stage = self._current().stage
        return stage.value >= ParticipantStage.MASKED.value

    def provide(self, vector: NDArray[Any]) -> None:
        """Hand over the privatized vector (length,), before the masked input is asked for."""
        self._current().provide(vector)

    def handle(self, message: bytes) -> bytes:
        """Answer one message of the aggregator.

        Raises:
            SecureAggError: a refusal, named by its cause.
            ProtocolError: no assignment was accepted.
        """
        return self._current().handle(message)

    def _current(self) -> Participant:
        if self._participant is None:
            raise ProtocolError(f"client {self.id}: no assignment was accepted in this round")
        return self._participant
