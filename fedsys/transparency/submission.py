"""Requests to a witness: ``add-checkpoint`` of https://c2sp.org/tlog-witness."""

from __future__ import annotations

from dataclasses import dataclass

from fedsys.transparency.note import MAX_NOTE_BYTES, NoteError, NoteSignature, SignedNote, decimal
from fedsys.transparency.proof import decode_hashes, encode_hashes

__all__ = [
    "CONFLICT_TYPE",
    "MAX_SUBMISSION_BYTES",
    "Submission",
    "parse_signatures",
]

MAX_SUBMISSION_BYTES = MAX_NOTE_BYTES + 8192
"""A longer request is refused unread."""
CONFLICT_TYPE = "text/x.tlog.size"
"""Content type of a 409 response, whose body is the size that the witness has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """An ``add-checkpoint`` request.

    Attributes:
        old: size of the last checkpoint that the witness cosigned, as far as the sender knows.
        proof: consistency proof from the tree of that size to the checkpoint's.
        note: the new checkpoint.
    """

    old: int
    proof: tuple[bytes, ...]
    note: SignedNote

    def encode(self) -> bytes:
        """The request's body."""
        return f"old {self.old}\n{encode_hashes(self.proof)}\n".encode() + self.note.encode()

    @classmethod
    def parse(cls, raw: bytes) -> Submission:
        """Reads a request's body; nothing in it is verified.

        Raises:
            NoteError: it is malformed.
        """
        if len(raw) > MAX_SUBMISSION_BYTES:
            raise NoteError(f"a request of {len(raw)} bytes; at most {MAX_SUBMISSION_BYTES}")
        head, blank, note = raw.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise NoteError("a request's lines before the checkpoint are not ASCII") from None
        if not blank or not lines[0].startswith("old "):
            raise NoteError("a request is a line 'old SIZE', a proof, an empty line and a note")
        return cls(
            old=decimal(lines[0].removeprefix("old "), "the old size"),
            proof=tuple(decode_hashes(lines[1:])),
            note=SignedNote.parse(note),
        )


def parse_signatures(raw: bytes) -> tuple[NoteSignature, ...]:
    """The signature lines of a witness's answer.

    Raises:
        NoteError: it holds anything else.
    """
    note = SignedNote.parse(b"x\n\n" + raw)
    if note.text != "x\n":
        raise NoteError("a witness's answer holds more than signature lines")
    return note.signatures
