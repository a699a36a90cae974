"""A device's signed statement that it took part in a round that the ledger records."""

from __future__ import annotations

from collections.abc import Collection

from fedsys.wire import countersign, fleet_pb2
from secure_agg import Identity

__all__ = ["countersignature"]

_HASH = 32


def countersignature(
    identity: Identity, outcome: fleet_pb2.Outcome, uploaded: Collection[int]
) -> fleet_pb2.Countersignature | None:
    """The signature over a round's outcome; None if this device has nothing in the round's sum.

    Args:
        identity: the signing key.
        outcome: the outcome as announced.
        uploaded: rounds of that job in which this device sent an encrypted vector.
    """
    number, head = outcome.round, outcome.ledger_head
    if not outcome.committed or number not in uploaded or len(head) != _HASH:
        return None
    count = len([each for each in uploaded if each <= number])
    message = countersign.message(
        job=outcome.job, round=number, ledger_head=head, participations=count
    )
    return fleet_pb2.Countersignature(
        job=outcome.job,
        round=number,
        ledger_head=head,
        participations=count,
        signature=identity.sign(message),
    )
