"""Agents' word that they took part in a round: checked against the roster, then kept."""

from __future__ import annotations

import logging

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.wire import countersign, fleet_pb2
from fedsys.wire.roster import RosterStatement
from server.state import CountersignatureRow, State

__all__ = ["Countersignatures"]

_log = logging.getLogger(__name__)


class Countersignatures:
    """Those of one job.

    Args:
        state: where they are kept.
        id: the job's in the database.
        job: its 32 bytes, which are signed.
        roster: whose keys count.
    """

    def __init__(self, *, state: State, id: str, job: bytes, roster: RosterStatement) -> None:
        self._state = state
        self._id = id
        self._job = job
        self._roster = roster

    def take(self, node: int, given: fleet_pb2.Countersignature) -> None:
        """Keep a node's signature if it holds; durable when this returns.

        Args:
            node: on the roster.
            given: as it came.
        """
        message = countersign.message(
            job=self._job,
            round=given.round,
            ledger_head=given.ledger_head,
            participations=given.participations,
        )
        try:
            public = Ed25519PublicKey.from_public_bytes(self._roster.members[node])
            public.verify(given.signature, message)
        except InvalidSignature:
            client = self._roster.nodes.index(node)
            _log.warning("client %d: a countersignature that does not hold", client)
            return
        with self._state.transaction() as session:
            session.merge(
                CountersignatureRow(
                    job=self._id,
                    round=given.round,
                    node=node,
                    ledger_head=given.ledger_head,
                    participations=given.participations,
                    signature=given.signature,
                )
            )
