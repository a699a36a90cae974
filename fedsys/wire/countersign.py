"""What an agent signs to say that it took part in a round which the ledger holds."""

from __future__ import annotations

__all__ = ["message"]


def message(*, job: bytes, round: int, ledger_head: bytes, participations: int) -> bytes:
    """The bytes under an agent's countersignature.

    Args:
        job: 32 bytes.
        round: that is committed.
        ledger_head: hash of the ledger's line that commits it.
        participations: rounds of this job that the agent took part in, by its own count.
    """
    return (
        b"fedsys countersignature v1\x00"
        + len(job).to_bytes(1, "big")
        + job
        + round.to_bytes(4, "big")
        + len(ledger_head).to_bytes(1, "big")
        + ledger_head
        + participations.to_bytes(4, "big")
    )
