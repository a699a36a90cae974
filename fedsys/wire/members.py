"""``members.json``: whose keys count in a deployed run, and what its devices agreed to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedsys.errors import LedgerError, ProtocolError
from fedsys.privacy.ledger.files import MEMBERS, open_regular
from fedsys.wire.canonical import decode_object, encode_object
from fedsys.wire.roster import MAX_MEMBERS, RosterStatement, SignedStatement, check_signature
from fedsys.wire.terms import Terms

__all__ = ["Members", "read_members"]

_KEYS = frozenset({"authority", "signature", "statement", "terms"})
_MOST_BYTES = 128 << 20
_MOST_VALUES = 4 * MAX_MEMBERS + 10_000
"""Values in the file, counted before it is parsed: a small value takes thirty octets for one."""


@dataclass(frozen=True, kw_only=True)
class Members:
    """One run's members.

    Attributes:
        statement: the roster, as its authority signed it.
        signature: by the authority.
        authority: its Ed25519 public key, by the file's own word.
        terms: the job's terms, as devices were offered them.
    """

    statement: bytes
    signature: bytes
    authority: bytes
    terms: bytes

    def encode(self) -> bytes:
        """The file: canonical JSON, in which the two documents are texts."""
        return encode_object(
            {
                "authority": self.authority.hex(),
                "signature": self.signature.hex(),
                "statement": self.statement.decode(),
                "terms": self.terms.decode(),
            }
        )

    def roster(self) -> RosterStatement:
        """The list of members.

        Raises:
            ProtocolError: the authority that is named did not sign it, or it is malformed.
        """
        signed = SignedStatement(statement=self.statement, signature=self.signature)
        check_signature(signed, self.authority)
        return RosterStatement.decode(self.statement)

    def agreed(self) -> Terms:
        """What devices agreed to.

        Raises:
            ProtocolError: it is malformed.
        """
        return Terms.decode(self.terms)


def read_members(run: Path) -> Members | None:
    """Reads a run's file, untrusted; None if there is none. No signature is verified.

    Raises:
        LedgerError: it is not such a file.
    """
    path = run / MEMBERS
    if not path.exists() and not path.is_symlink():
        return None
    with open_regular(path, _MOST_BYTES) as file:
        raw = file.read(os.fstat(file.fileno()).st_size)
    try:
        if sum(map(raw.count, (b",", b"[", b"{"))) > _MOST_VALUES:
            raise ValueError(f"more values than a roster of {MAX_MEMBERS} members has")
        body = decode_object(raw, path.name, _KEYS)
        if not all(isinstance(each, str) for each in body.values()):
            raise ValueError("a value is not a string")
        authority = bytes.fromhex(body["authority"])
        if len(authority) != 32:
            raise ValueError("authority is not 32 bytes of hex")
        return Members(
            statement=body["statement"].encode(),
            signature=bytes.fromhex(body["signature"]),
            authority=authority,
            terms=body["terms"].encode(),
        )
    except (ProtocolError, ValueError) as error:
        raise LedgerError(f"{path.name}: {error}") from None
