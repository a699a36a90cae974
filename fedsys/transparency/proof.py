"""Offline proofs that a log holds a leaf (https://c2sp.org/tlog-proof)."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from fedsys.transparency.checkpoint import Checkpoint
from fedsys.transparency.merkle import HASH_BYTES, MAX_PROOF, verify_inclusion
from fedsys.transparency.note import (
    MAX_NOTE_BYTES,
    NoteError,
    SignedNote,
    decimal,
    decode_base64,
)

__all__ = ["MAX_PROOF_BYTES", "LogProof", "decode_hashes", "encode_hashes"]

_FIRST = "c2sp.org/tlog-proof@v1"
MAX_PROOF_BYTES = MAX_NOTE_BYTES + 8192
"""A longer proof is refused unread."""


def encode_hashes(hashes: list[bytes] | tuple[bytes, ...]) -> str:
    """One base64 line each."""
    return "".join(f"{base64.b64encode(each).decode('ascii')}\n" for each in hashes)


def decode_hashes(lines: list[str]) -> list[bytes]:
    """At most `MAX_PROOF` hashes.

    Raises:
        NoteError: there are more, or one is malformed.
    """
    if len(lines) > MAX_PROOF:
        raise NoteError(f"a proof of {len(lines)} hashes; no tree needs more than {MAX_PROOF}")
    found = [decode_base64(line, "a proof's hash") for line in lines]
    if any(len(each) != HASH_BYTES for each in found):
        raise NoteError(f"a proof's hash has other than {HASH_BYTES} bytes")
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class LogProof:
    """A leaf's place under a checkpoint, without the leaf.

    Attributes:
        index: the leaf's index, from 0.
        path: siblings from the leaf up.
        note: the checkpoint, with whatever signatures it has.
    """

    index: int
    path: tuple[bytes, ...]
    note: SignedNote

    def encode(self) -> bytes:
        """The proof's bytes, without extra data."""
        head = f"{_FIRST}\nindex {self.index}\n{encode_hashes(self.path)}\n"
        return head.encode() + self.note.encode()

    @classmethod
    def parse(cls, raw: bytes) -> LogProof:
        """Reads a proof; nothing in it is verified. Extra data is ignored.

        Raises:
            NoteError: it is malformed.
        """
        if len(raw) > MAX_PROOF_BYTES:
            raise NoteError(f"a proof of {len(raw)} bytes; at most {MAX_PROOF_BYTES} are read")
        head, blank, note = raw.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise NoteError("a proof's lines are not ASCII") from None
        if not blank or lines[0] != _FIRST:
            raise NoteError(f"a proof does not begin with the line {_FIRST}")
        del lines[0]
        if lines and lines[0].startswith("extra "):
            decode_base64(lines.pop(0).removeprefix("extra "), "a proof's extra data")
        if not lines or not lines[0].startswith("index "):
            raise NoteError("a proof has no index line")
        index = decimal(lines[0].removeprefix("index "), "a proof's index")
        return cls(index=index, path=tuple(decode_hashes(lines[1:])), note=SignedNote.parse(note))

    def require(self, leaf: bytes) -> Checkpoint:
        """The checkpoint that contains a leaf by this proof; the caller checks its signatures.

        Args:
            leaf: the leaf's hash.

        Raises:
            NoteError: the proof does not prove this leaf.
        """
        checkpoint = Checkpoint.parse(self.note.text)
        if not verify_inclusion(leaf, self.index, checkpoint.size, self.path, checkpoint.root):
            raise NoteError(
                f"leaf {self.index} is not proved to be under the checkpoint of size "
                f"{checkpoint.size}"
            )
        return checkpoint
