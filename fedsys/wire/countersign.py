"""What an agent signs to confirm that it took part in a round that the ledger commits."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.errors import LedgerError
from fedsys.privacy.ledger import canonical
from fedsys.privacy.ledger.lines import parse_object

__all__ = ["FILE", "MAX_LINE_BYTES", "Countersignature", "message"]

FILE = "countersignatures.jsonl"
"""In a run's folder, one line per countersignature; it reveals cohorts."""
MAX_LINE_BYTES = 1024

_NUMBERS = ("round", "client", "participations")
_BYTES = {"key": 32, "ledger_head": 32, "signature": 64}


def message(*, job: bytes, round: int, ledger_head: bytes, participations: int) -> bytes:
    """The bytes under an agent's countersignature.

    Args:
        job: 32 bytes that name the job.
        round: the committed round.
        ledger_head: hash of the ledger's line that commits it.
        participations: rounds of this job that the agent took part in, by its own count.
    """
    return (
        b"fedsys countersignature v1\x00"
        + len(job).to_bytes(4, "big")
        + job
        + round.to_bytes(4, "big")
        + len(ledger_head).to_bytes(4, "big")
        + ledger_head
        + participations.to_bytes(4, "big")
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Countersignature:
    """One agent's statement about one round, as the run's folder keeps it.

    Attributes:
        round: the committed round.
        client: the agent's number in the job, as in private.jsonl.
        key: its Ed25519 public key, from the roster.
        ledger_head: hash of the line that commits the round.
        participations: rounds of the job that it took part in, by its own count.
        signature: Ed25519 over `message`.
    """

    round: int
    client: int
    key: bytes
    ledger_head: bytes
    participations: int
    signature: bytes

    def holds(self, job: bytes) -> bool:
        """Whether the signature is this key's, for a job of this name."""
        signed = message(
            job=job,
            round=self.round,
            ledger_head=self.ledger_head,
            participations=self.participations,
        )
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(self.signature, signed)
        except (InvalidSignature, ValueError):
            return False
        return True

    def encode(self) -> bytes:
        """The line, without its newline."""
        fields = {name: getattr(self, name) for name in _NUMBERS}
        return canonical(fields | {name: getattr(self, name).hex() for name in _BYTES})

    @classmethod
    def parse(cls, raw: bytes, where: str) -> Countersignature:
        """Reads a line strictly.

        Raises:
            LedgerError: it is malformed or not in canonical form; the message starts with
                ``where``.
        """
        body = parse_object(raw, where, limit=MAX_LINE_BYTES)
        if set(body) != {*_NUMBERS, *_BYTES}:
            raise LedgerError(f"{where} has other keys than a countersignature")
        if any(type(body[name]) is not int or not 0 <= body[name] < 1 << 32 for name in _NUMBERS):
            raise LedgerError(f"{where} has a number out of range")
        octets: dict[str, bytes] = {}
        for name, length in _BYTES.items():
            try:
                octets[name] = bytes.fromhex(body[name])
            except (TypeError, ValueError):
                octets[name] = b""
            if len(octets[name]) != length:
                raise LedgerError(f"{where}: {name} is not {length} bytes of hex")
        found = cls(
            round=body["round"],
            client=body["client"],
            key=octets["key"],
            ledger_head=octets["ledger_head"],
            participations=body["participations"],
            signature=octets["signature"],
        )
        if found.encode() != raw:
            raise LedgerError(f"{where} is not in canonical form")
        return found
