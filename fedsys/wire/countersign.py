"""What an agent signs about a round that it was invited to, and about the ledger up to its end."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.errors import LedgerError
from fedsys.privacy.ledger import canonical
from fedsys.privacy.ledger.lines import parse_object
from fedsys.privacy.ledger.openings import NONCE_BYTES
from fedsys.wire import fleet_pb2

__all__ = ["FILE", "MAX_LINE_BYTES", "NO_HEAD", "Countersignature", "message"]

FILE = "countersignatures.jsonl"
"""In a run's folder, one line per countersignature; it reveals cohorts."""
MAX_LINE_BYTES = 2048
NO_HEAD = bytes(32)
"""`previous` of an agent's first countersignature in a job."""

_DOMAIN = b"fedsys countersignature v2\x00"
_NUMBERS = ("round", "client", "invitations", "uploads")
_BYTES = {
    "key": 32,
    "terms": 32,
    "ledger_head": 32,
    "previous": 32,
    "weights": 32,
    "nonce": NONCE_BYTES,
    "signature": 64,
}
_KEYS = {*_NUMBERS, *_BYTES, "uploaded"}


def message(job: bytes, said: Countersignature) -> bytes:
    """The bytes under an agent's countersignature.

    Args:
        job: 32 bytes that name the job.
        said: all of it but key, client and signature is signed.
    """
    digests = (said.ledger_head, said.previous, said.weights)
    parts = (_framed(job), _framed(said.terms), struct.pack(">I", said.round))
    counts = struct.pack(">II", said.invitations, said.uploads)
    uploaded = struct.pack(">I", said.uploaded) + _framed(said.nonce)
    return b"".join((_DOMAIN, *parts, *map(_framed, digests), uploaded, counts))


def _framed(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


@dataclass(frozen=True, kw_only=True, slots=True)
class Countersignature:
    """One agent's statement about one round, as the run's folder keeps it.

    Attributes:
        round: the round, which the ledger commits or aborts.
        client: the agent's number in the job, as in private.jsonl.
        key: its Ed25519 public key, from the roster.
        terms: digest of the terms that it agreed to.
        ledger_head: hash of the line that concludes the round.
        previous: `ledger_head` of the statement that it signed before; zeros for the first.
        weights: SHA-256 of the model that it was sent.
        uploaded: whether it sent an encrypted vector; otherwise it was only invited.
        nonce: what it sent along with that vector; zeros without.
        invitations: rounds of the job that it accepted so far, by its own count.
        uploads: rounds of the job in which it sent a vector so far, by its own count.
        signature: Ed25519 over `message`.
    """

    round: int
    client: int
    key: bytes
    terms: bytes
    ledger_head: bytes
    previous: bytes
    weights: bytes
    uploaded: bool
    nonce: bytes
    invitations: int
    uploads: int
    signature: bytes = b""

    def holds(self, job: bytes) -> bool:
        """Whether the signature is this key's, for a job of this name."""
        try:
            key = Ed25519PublicKey.from_public_bytes(self.key)
            key.verify(self.signature, message(job, self))
        except (InvalidSignature, ValueError):
            return False
        return True

    def encode(self) -> bytes:
        """The line, without its newline."""
        fields = {name: getattr(self, name) for name in (*_NUMBERS, "uploaded")}
        return canonical(fields | {name: getattr(self, name).hex() for name in _BYTES})

    def to_wire(self, job: bytes) -> fleet_pb2.Countersignature:
        """The message that brings it to the coordinator, without sealing keys."""
        return fleet_pb2.Countersignature(
            job=job,
            terms=self.terms,
            round=self.round,
            ledger_head=self.ledger_head,
            previous=self.previous,
            weights=self.weights,
            uploaded=self.uploaded,
            nonce=self.nonce,
            invitations=self.invitations,
            uploads=self.uploads,
            signature=self.signature,
        )

    @classmethod
    def from_wire(
        cls, given: fleet_pb2.Countersignature, *, client: int, key: bytes
    ) -> Countersignature:
        """The statement in a message whose fields have their lengths; no signature is verified.

        Args:
            given: the message.
            client: whose session it came in.
            key: that client's key, from the roster.
        """
        stated = (each for each in cls.__dataclass_fields__ if each not in ("client", "key"))
        return cls(client=client, key=key, **{name: getattr(given, name) for name in stated})

    @classmethod
    def parse(cls, raw: bytes, where: str) -> Countersignature:
        """Reads a line strictly.

        Raises:
            LedgerError: it is malformed or not in canonical form; the message starts with
                ``where``.
        """
        body = parse_object(raw, where, limit=MAX_LINE_BYTES)
        if set(body) != _KEYS:
            raise LedgerError(f"{where} has other keys than a countersignature")
        if any(type(body[name]) is not int or not 0 <= body[name] < 1 << 32 for name in _NUMBERS):
            raise LedgerError(f"{where} has a number out of range")
        if type(body["uploaded"]) is not bool:
            raise LedgerError(f"{where}: uploaded is not true or false")
        values: dict[str, Any] = {name: body[name] for name in (*_NUMBERS, "uploaded")}
        for name, length in _BYTES.items():
            try:
                values[name] = bytes.fromhex(body[name])
            except (TypeError, ValueError):
                values[name] = b""
            if len(values[name]) != length:
                raise LedgerError(f"{where}: {name} is not {length} bytes of hex")
        found = cls(**values)
        if found.encode() != raw:
            raise LedgerError(f"{where} is not in canonical form")
        return found
