"""Agents' word that they took part in a round: checked against the roster, then kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.wire import countersign, fleet_pb2
from fedsys.wire.roster import RosterStatement
from server.state import CountersignatureRow, State

__all__ = ["Countersignatures"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """A job whose rounds may be countersigned."""

    id: str
    roster: RosterStatement
    rounds: int


class Countersignatures:
    """Those of this process's jobs; the last round's come when its job is over.

    Args:
        state: where they are kept.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._jobs: dict[bytes, _Expected] = {}

    def expect(self, job: bytes, *, id: str, roster: RosterStatement, rounds: int) -> None:
        """Take those of a job from now on.

        Args:
            job: its 32 bytes, which are signed.
            id: the job's in the database.
            roster: whose keys count.
            rounds: how many it has at most.
        """
        self._jobs[job] = _Expected(id=id, roster=roster, rounds=rounds)

    def take(self, node: int, given: fleet_pb2.Countersignature) -> None:
        """Keep a node's signature if it holds; durable when this returns.

        Args:
            node: whose certificate the session was opened with.
            given: as it came.
        """
        job = self._jobs.get(given.job)
        if job is None or node not in job.roster.members or not 1 <= given.round <= job.rounds:
            _log.info("node %d: a countersignature of no round that was asked for", node)
            return
        message = countersign.message(
            job=given.job,
            round=given.round,
            ledger_head=given.ledger_head,
            participations=given.participations,
        )
        try:
            public = Ed25519PublicKey.from_public_bytes(job.roster.members[node])
            public.verify(given.signature, message)
        except InvalidSignature:
            client = job.roster.nodes.index(node)
            _log.warning("client %d: a countersignature that does not hold", client)
            return
        with self._state.transaction() as session:
            session.merge(
                CountersignatureRow(
                    job=job.id,
                    round=given.round,
                    node=node,
                    ledger_head=given.ledger_head,
                    participations=given.participations,
                    signature=given.signature,
                )
            )
