"""Cosignatures: a witness's timestamped statement (https://c2sp.org/tlog-cosignature).

Of the two versions this is v1, over Ed25519. It says: as of this time, the largest consistent tree
that the witness has seen of the log with this origin has this size and this root.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.printable import printable
from fedsys.transparency.note import (
    COSIGNATURE_V1,
    NoteError,
    NoteSignature,
    SignedNote,
    VerifierKey,
    key_id,
    require_name,
)

__all__ = ["Cosignature", "cosign", "cosignatures_of", "require_witness"]

_TIMESTAMP_BYTES = 8
_SIGNATURE_BYTES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosignature:
    """A verified cosignature.

    Attributes:
        witness: the witness's key.
        timestamp: POSIX time at which it was made, by the witness's clock.
        line: the signature line in the note.
    """

    witness: VerifierKey
    timestamp: int
    line: NoteSignature


def _message(text: str, timestamp: int) -> bytes:
    return f"cosignature/v1\ntime {timestamp}\n{text}".encode()


def cosign(text: str, *, name: str, key: Ed25519PrivateKey, timestamp: int) -> NoteSignature:
    """A witness's signature line under a checkpoint.

    Args:
        text: the checkpoint's text, including extension lines.
        name: the witness's name.
        key: the witness's key, used for nothing else.
        timestamp: POSIX seconds, above 0.
    """
    if not 0 < timestamp < 1 << 63:
        raise ValueError(f"a cosignature's time is from 1 to 2^63 - 1, not {timestamp}")
    public = key.public_key().public_bytes_raw()
    signature = key.sign(_message(text, timestamp))
    return NoteSignature(
        name=require_name(name),
        id=key_id(name, COSIGNATURE_V1, public),
        value=timestamp.to_bytes(_TIMESTAMP_BYTES, "big") + signature,
    )


def cosignatures_of(note: SignedNote, witnesses: Iterable[VerifierKey]) -> list[Cosignature]:
    """The newest cosignature of each witness on a checkpoint that has one.

    Args:
        note: the note, untrusted.
        witnesses: keys whose cosignatures count; all others are ignored.

    Raises:
        NoteError: a line states a witness's name and id but does not verify; the note must be
            rejected as a whole.
    """
    found = []
    for witness in witnesses:
        mine = [_verified(note.text, each, witness) for each in note.signatures_of(witness)]
        if mine:
            found.append(max(mine, key=lambda each: each.timestamp))
    return found


def _verified(text: str, line: NoteSignature, witness: VerifierKey) -> Cosignature:
    require_witness(witness)
    timestamp = int.from_bytes(line.value[:_TIMESTAMP_BYTES], "big")
    signature = line.value[_TIMESTAMP_BYTES:]
    well_formed = len(signature) == _SIGNATURE_BYTES and 0 < timestamp < 1 << 63
    if not well_formed or not witness.holds(_message(text, timestamp), signature):
        raise NoteError(f"the cosignature of {printable(witness.name, 80)} does not verify")
    return Cosignature(witness=witness, timestamp=timestamp, line=line)


def require_witness(key: VerifierKey) -> VerifierKey:
    """Returns the key if it is a witness's.

    Raises:
        NoteError: it is a log's key, which signs notes as they are.
    """
    if key.algorithm != COSIGNATURE_V1:
        raise NoteError(f"key {printable(key.name, 80)} is a log's, not a witness's (type 4)")
    return key
