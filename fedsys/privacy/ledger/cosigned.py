"""``cosigned.jsonl`` and ``ledger.tlog-proof``: evidence of a ledger's head from others.

The first has one line per witness, a canonical JSON object with the newest checkpoint that the
witness cosigned. A witness cosigns only ledgers that grow, so its newest cosignature covers all the
lines before. The second proves offline that the ledger's last line is included in the coordinator's
signed checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedsys.durable import write_atomically
from fedsys.errors import LedgerError
from fedsys.privacy.ledger.files import open_regular, read_lines
from fedsys.privacy.ledger.lines import canonical, parse_object
from fedsys.transparency import (
    Checkpoint,
    Cosignature,
    LogProof,
    MerkleTree,
    NoteError,
    SignedNote,
    VerifierKey,
    cosignatures_of,
)
from fedsys.transparency.cosignature import require_witness
from fedsys.transparency.origin import log_key
from fedsys.transparency.proof import MAX_PROOF_BYTES

__all__ = [
    "COSIGNED",
    "MOST_WITNESSES",
    "PROOF",
    "CosignedHead",
    "contradiction",
    "read_cosigned",
    "read_proof",
    "write_cosigned",
    "write_proof",
]

COSIGNED = "cosigned.jsonl"
PROOF = "ledger.tlog-proof"
MOST_WITNESSES = 64
_LINE_BYTES = 1 << 17
_FILE_BYTES = MOST_WITNESSES * _LINE_BYTES
_KEYS = {"note", "witness"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CosignedHead:
    """One line of ``cosigned.jsonl``.

    Attributes:
        witness: the key of the witness whose cosignature the note has.
        note: the checkpoint, with the log's and the witness's signatures.
    """

    witness: VerifierKey
    note: SignedNote

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that was cosigned.

        Raises:
            NoteError: the note is not a checkpoint.
        """
        return Checkpoint.parse(self.note.text)

    @property
    def cosignature(self) -> Cosignature | None:
        """The witness's cosignature, verified under the key that the line states; None if absent.

        Raises:
            NoteError: the cosignature is invalid.
        """
        return next(iter(cosignatures_of(self.note, [self.witness])), None)

    def encode(self) -> bytes:
        """The line, without its newline."""
        return canonical({"note": self.note.encode().decode(), "witness": str(self.witness)})

    @classmethod
    def parse(cls, raw: bytes, what: str) -> CosignedHead:
        """Reads a line strictly; no signature is verified.

        Raises:
            LedgerError: the line is malformed; the message begins with `what`.
        """
        found = parse_object(raw, what, limit=_LINE_BYTES)
        note, witness = found.get("note"), found.get("witness")
        if set(found) != _KEYS or not isinstance(note, str) or not isinstance(witness, str):
            raise LedgerError(f"{what} does not have the keys note and witness, both strings")
        try:
            key = require_witness(VerifierKey.parse(witness))
            head = cls(witness=key, note=SignedNote.parse(note.encode("utf-8", "replace")))
        except NoteError as error:
            raise LedgerError(f"{what}: {error}") from None
        if head.encode() != raw:
            raise LedgerError(f"{what} is not in canonical form")
        return head


def write_cosigned(path: Path, heads: Iterable[CosignedHead]) -> None:
    """Replaces the file; it is durable when this returns."""
    write_atomically(path, b"".join(each.encode() + b"\n" for each in heads))


def read_cosigned(path: Path) -> list[CosignedHead]:
    """Reads the file; no signature is verified.

    Raises:
        LedgerError: it is not a regular file, is too long, or has a malformed line.
    """
    found: list[CosignedHead] = []
    with open_regular(path, _FILE_BYTES) as file:
        lines = read_lines(file, path.name, limit=_LINE_BYTES)
        for number, (raw, ended) in enumerate(lines, start=1):
            if not ended or number > MOST_WITNESSES:
                raise LedgerError(f"{path.name} is torn, or has more than {MOST_WITNESSES} lines")
            found.append(CosignedHead.parse(raw, f"{path.name} line {number}"))
    return found


def write_proof(path: Path, tree: MerkleTree, note: SignedNote) -> None:
    """Stores the proof that the last line is included in a checkpoint.

    Args:
        path: the path of ``ledger.tlog-proof``.
        tree: the ledger's Merkle tree.
        note: a checkpoint of the ledger, of size 1 or more.
    """
    size = Checkpoint.parse(note.text).size
    path_up = tuple(tree.inclusion_proof(size - 1, size))
    write_atomically(path, LogProof(index=size - 1, path=path_up, note=note).encode())


def read_proof(path: Path) -> LogProof:
    """Reads a proof; nothing in it is verified.

    Raises:
        LedgerError: it is not a regular file, or not a proof.
    """
    with open_regular(path, MAX_PROOF_BYTES) as file:
        raw = file.read(MAX_PROOF_BYTES + 1)
    try:
        found = LogProof.parse(raw)
    except NoteError as error:
        raise LedgerError(f"{path.name}: {error}") from None
    if found.encode() != raw:
        raise LedgerError(f"{path.name} is not in canonical form")
    return found


def contradiction(note: SignedNote, tree: MerkleTree, origin: str) -> str | None:
    """Why a checkpoint contradicts a ledger; None if it is a checkpoint of that ledger.

    Args:
        note: the checkpoint, untrusted.
        tree: the ledger's Merkle tree.
        origin: the log's name.
    """
    try:
        checkpoint = Checkpoint.parse(note.text)
        if checkpoint.origin != origin:
            return "it is of another log"
        if not note.is_signed_by(log_key(origin)):
            return "the log did not sign it"
    except NoteError as error:
        return str(error)
    if checkpoint.size > len(tree):
        return (
            f"it is of {checkpoint.size} lines, and {len(tree)} are here: the ledger was cut off, "
            "or is an earlier state"
        )
    if checkpoint.root != tree.root(checkpoint.size):
        return f"its first {checkpoint.size} lines were others: two histories"
    return None
