"""Proof of a round's reservation, under a head that enough of the owner's witnesses cosigned.

A device that requires it takes part in a single history of the ledger: the one that those witnesses
saw grow, in which this round was paid for at this price before anybody was invited.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.policy import Policy
from fedsys.errors import Cause, LedgerError, PolicyRefusal
from fedsys.privacy.ledger import Line
from fedsys.transparency import LogProof, NoteError, VerifierKey, cosignatures_of
from fedsys.transparency.origin import log_key, origin_of
from fedsys.wire import Assignment, fleet_pb2

__all__ = ["check_witnessed"]


def check_witnessed(
    message: fleet_pb2.Invitation, assignment: Assignment, policy: Policy, *, signer: bytes
) -> None:
    """Check that a round was reserved in the ledger that the owner's witnesses know.

    Args:
        message: holds the reservation's line and its proof, untrusted.
        assignment: the assignment of the same round.
        policy: names the witnesses; without a threshold nothing is required.
        signer: the coordinator's public key, which this device pinned when it joined.

    Raises:
        PolicyRefusal: the proof is missing or invalid, or too few witnesses cosigned.
    """
    if not policy.witness_threshold:
        return
    try:
        _check_reservation(message.reservation, assignment, signer)
        who = _cosigners(message, assignment, policy, signer)
    except (LedgerError, NoteError) as error:
        raise PolicyRefusal(
            f"the round's reservation is not proven to be in a witnessed ledger: {error}",
            cause=Cause.WITNESSES,
        ) from None
    if len(who) < policy.witness_threshold:
        raise PolicyRefusal(
            f"{len(who)} of the owner's witnesses cosigned the ledger that the round is reserved "
            f"in ({', '.join(who) or 'none'}), below witness_threshold {policy.witness_threshold}",
            cause=Cause.WITNESSES,
        )


def _check_reservation(raw: bytes, assignment: Assignment, signer: bytes) -> None:
    """Check that a line is the coordinator's reservation of this very round.

    Raises:
        LedgerError: it is not.
    """
    line = Line.parse(raw, 1)
    if not line.signed_by(Ed25519PublicKey.from_public_bytes(signer)):
        raise LedgerError("its line is not signed by this device's coordinator")
    same = line.kind == "reserve" and line.body.get("round") == assignment.round
    if not same or line.body.get("event") != dict(assignment.mechanism):
        raise LedgerError("its line is of another round, or at another price")


def _cosigners(
    message: fleet_pb2.Invitation, assignment: Assignment, policy: Policy, signer: bytes
) -> list[str]:
    """Names of the owner's witnesses that cosigned the checkpoint in the line's proof.

    Raises:
        LedgerError: the proof is of another ledger or line.
        NoteError: it is malformed, or a signature in it is invalid.
    """
    line, proof = Line.parse(message.reservation, 1), LogProof.parse(message.proof)
    origin = origin_of(signer=signer.hex(), job=assignment.job.hex())
    checkpoint = proof.require(line.leaf)
    if checkpoint.origin != origin or proof.index != line.seq:
        raise LedgerError("its proof is of another ledger or place")
    if not proof.note.is_signed_by(log_key(origin)):
        raise LedgerError("the coordinator did not sign that ledger's head")
    keys = [VerifierKey.parse(each) for each in policy.witnesses]
    return [each.witness.name for each in cosignatures_of(proof.note, keys)]
