"""A device's signed statements about the rounds that it was invited to: one for each, and no other.

A statement covers the ledger up to the line that concludes the round, which the device has checked,
and names the statement before it. It is durable before it leaves, so that a device that is asked
again says the same. What contradicts it is named, and the job is declined from then on.
"""

from __future__ import annotations

import dataclasses
import logging

from client.journal import JobRecord, Journal
from client.ledger_copy import LedgerCopy, parse_lines
from fedsys.errors import Cause, LedgerError, PolicyRefusal
from fedsys.privacy.ledger.openings import NONCE_BYTES
from fedsys.wire import countersign, fleet_pb2
from fedsys.wire.countersign import NO_HEAD, Countersignature
from fedsys.wire.terms import Terms
from secure_agg import Identity

__all__ = ["Countersigner"]

_log = logging.getLogger(__name__)
_HASH = 32


class Countersigner:
    """What one device says about ledgers.

    Args:
        identity: the signing key.
        journal: its own count, and what it signed.
        signer: the coordinator's public key, which it pinned when it joined.
    """

    def __init__(self, identity: Identity, journal: Journal, signer: bytes) -> None:
        self._identity = identity
        self._journal = journal
        self._signer = signer
        self._copies: dict[bytes, LedgerCopy] = {}
        """Further than the journal's by lines that no statement covers yet."""

    def lines(self, job: bytes) -> int:
        """How many lines of an agreed job's ledger were checked."""
        return self._copy(job).lines

    def require_undisputed(self, job: bytes) -> None:
        """Decline a job whose ledger contradicted itself, or this device.

        Raises:
            PolicyRefusal: it did.
        """
        record = self._journal.jobs.get(job.hex())
        if record is not None and record.dispute:
            raise PolicyRefusal(record.dispute, cause=Cause.LEDGER)

    def take(self, message: fleet_pb2.Lines, terms: Terms) -> None:
        """Check further lines of a job's ledger.

        Args:
            message: the lines.
            terms: of that job, agreed to.

        Raises:
            PolicyRefusal: they contradict what this device knows; no round of the job follows.
            ProtocolError: they are not the coordinator's.
        """
        self.require_undisputed(terms.job)
        lines = parse_lines(message.lines, self._signer)
        known = self.lines(terms.job)
        if lines[0].seq > known:  # they were meant for an earlier process of this device
            _log.info("lines of a ledger from %d on, of which %d are known", lines[0].seq, known)
            return
        record = self._journal.jobs[terms.job.hex()]
        own = {round: sent for round, sent in record.sent.items() if round in record.joined}
        try:
            self._copies[terms.job] = self._copy(terms.job).extended(
                lines, terms, own, answered=record.answered
            )
        except LedgerError as error:
            raise self._dispute(terms.job, str(error)) from None

    def statement(self, outcome: fleet_pb2.Outcome) -> Countersignature | None:
        """What this device says about a round that is over; None where it has nothing to say.

        Args:
            outcome: the outcome as announced.

        Raises:
            PolicyRefusal: the outcome contradicts the ledger, an earlier statement or what this
                device did.
            ConfigError: the journal cannot be written; nothing was said.
        """
        record = self._journal.jobs.get(outcome.job.hex())
        if record is None or record.dispute or len(outcome.ledger_head) != _HASH:
            return None
        number, signed = outcome.round, record.signed
        if number not in record.joined:
            return None  # it did nothing there, and knows nothing of it
        if signed is not None and number <= signed.round:
            return self._again(outcome, signed)
        copy = self._copy(outcome.job)
        if copy.head != outcome.ledger_head.hex() or copy.kind not in ("commit", "abort"):
            _log.info("round %d: the lines that conclude it did not come", number)
            return None
        if copy.rounds != number or (copy.kind == "commit") != outcome.committed:
            raise self._dispute(
                outcome.job,
                f"round {number} is said to be {'committed' if outcome.committed else 'aborted'}; "
                f"the ledger ends with the {copy.kind} of round {copy.rounds}",
            )
        found = self._signed(outcome, record)
        self._journal.countersign(outcome.job, copy, found)
        return found

    def _again(self, outcome: fleet_pb2.Outcome, signed: Countersignature) -> Countersignature:
        if outcome.round == signed.round and outcome.ledger_head == signed.ledger_head:
            return signed
        if outcome.round == signed.round:
            raise self._dispute(
                outcome.job,
                f"round {signed.round} has a second outcome: this device countersigned the head "
                f"{signed.ledger_head.hex()}, and is asked for {outcome.ledger_head.hex()}",
            )
        raise PolicyRefusal(
            f"round {outcome.round} comes after round {signed.round}, which this device has "
            f"countersigned",
            cause=Cause.LEDGER,
        )

    def _signed(self, outcome: fleet_pb2.Outcome, record: JobRecord) -> Countersignature:
        number = outcome.round
        uploaded = number in record.uploaded
        sent, before = record.sent[number], record.signed
        unsigned = Countersignature(
            round=number,
            client=0,  # the coordinator's numbers are no part of what is signed
            key=self._identity.public_bytes,
            terms=bytes.fromhex(record.terms),
            ledger_head=outcome.ledger_head,
            previous=NO_HEAD if before is None else before.ledger_head,
            weights=bytes.fromhex(sent.weights),
            uploaded=uploaded,
            nonce=bytes.fromhex(sent.nonce) if uploaded else bytes(NONCE_BYTES),
            invitations=sum(each <= number for each in record.joined),
            uploads=sum(each <= number for each in record.uploaded),
            signature=bytes(64),
        )
        signature = self._identity.sign(countersign.message(outcome.job, unsigned))
        return dataclasses.replace(unsigned, signature=signature)

    def _copy(self, job: bytes) -> LedgerCopy:
        record = self._journal.jobs.get(job.hex())
        durable = LedgerCopy() if record is None else record.copy
        return self._copies.get(job, durable)

    def _dispute(self, job: bytes, reason: str) -> PolicyRefusal:
        """The refusal that names a contradiction, which is remembered."""
        _log.error("job %s: %s; this device takes part in it no more", job.hex()[:16], reason)
        self._journal.dispute(job, reason)
        return PolicyRefusal(reason, cause=Cause.LEDGER)
