"""One line of the ledger: canonical JSON, its hash, its place in the chain, its signature.

>>> canonical({"b": 1, "a": [True, None, 0.5]})
b'{"a":[true,null,0.5],"b":1}'
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.errors import LedgerError

__all__ = [
    "FORMAT",
    "GENESIS",
    "KINDS",
    "MAX_LINE_BYTES",
    "Line",
    "canonical",
    "commitment",
    "parse_object",
    "signed_message",
]

FORMAT = "fedsys-ledger-1"
GENESIS = "0" * 64
"""``prev_hash`` of the first line."""
KINDS = ("header", "reserve", "commit", "abort", "resume", "closed")
MAX_LINE_BYTES = 1 << 20
"""A longer line is refused unread."""

_SIGNED = b"fedsys ledger line v1\x00"
_COMMITTED = b"fedsys ledger commitment v1\x00"
_HEX64 = re.compile(r"[0-9a-f]{64}")
_HEX128 = re.compile(r"[0-9a-f]{128}")
_KEYS = {"seq", "prev_hash", "kind", "body", "hash", "signature"}
_MAX_DEPTH = 12


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: keys sorted, no spaces, ASCII, no NaN or infinity.

    Floats are written as Python's ``repr`` writes them (the shortest text that reads back).

    Raises:
        LedgerError: the value is not JSON.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise LedgerError(f"a ledger body must be plain finite JSON: {error}") from None
    return text.encode("ascii")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object of bounded size and depth, without duplicate keys, NaN or infinity.

    Raises:
        LedgerError: it is not one; the message starts with ``what``.
    """
    if len(raw) > MAX_LINE_BYTES:
        raise LedgerError(f"{what} is longer than {MAX_LINE_BYTES} bytes")
    if _depth(raw) > _MAX_DEPTH:
        raise LedgerError(f"{what} is nested deeper than {_MAX_DEPTH}")
    try:
        value = json.loads(raw, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise LedgerError(f"{what} is not strict JSON: {error}") from None
    if not isinstance(value, dict):
        raise LedgerError(f"{what} is not a JSON object")
    return value


def _depth(raw: bytes) -> int:
    """An upper bound on nesting that no string content can hide: opening brackets minus closing."""
    if raw.count(b"{") + raw.count(b"[") <= _MAX_DEPTH:
        return 0
    deepest = depth = 0
    quoted = escaped = False
    for byte in raw:
        if escaped:
            escaped = False
        elif quoted:
            escaped = byte == 0x5C
            quoted = byte != 0x22
        elif byte == 0x22:
            quoted = True
        elif byte in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"}]":
            depth -= 1
    return deepest


def signed_message(digest: str) -> bytes:
    """What Ed25519 signs for a line of this hash."""
    return _SIGNED + bytes.fromhex(digest)


def commitment(name: str, value: Any, salt: bytes) -> str:
    """SHA-256 commitment to a private value, under the round's 32-byte salt."""
    digest = hashlib.sha256(_COMMITTED)
    label = name.encode("utf-8")
    digest.update(len(salt).to_bytes(4, "big") + salt)
    digest.update(len(label).to_bytes(4, "big") + label)
    digest.update(canonical(value))
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A parsed line whose own hash fits its content; neighbours and signature are not checked.

    Attributes:
        seq: position, from 0.
        prev_hash: SHA-256 of the whole previous line, its signature included.
        kind: one of ``KINDS``.
        body: what is recorded.
        hash: SHA-256 of the canonical JSON of the four above.
        signature: Ed25519 by the coordinator over the hash, as hex.
        link: SHA-256 of this whole line: the next line's ``prev_hash``.
    """

    seq: int
    prev_hash: str
    kind: str
    body: dict[str, Any]
    hash: str
    signature: str
    link: str

    @staticmethod
    def hash_of(*, seq: int, prev_hash: str, kind: str, body: dict[str, Any]) -> str:
        """SHA-256 over {body, kind, prev_hash, seq} in canonical JSON."""
        content = {"body": body, "kind": kind, "prev_hash": prev_hash, "seq": seq}
        return hashlib.sha256(canonical(content)).hexdigest()

    @staticmethod
    def encode(
        *, seq: int, prev_hash: str, kind: str, body: dict[str, Any], digest: str, signature: str
    ) -> bytes:
        """The line's bytes, without the newline."""
        return canonical(
            {
                "body": body,
                "hash": digest,
                "kind": kind,
                "prev_hash": prev_hash,
                "seq": seq,
                "signature": signature,
            }
        )

    @classmethod
    def parse(cls, raw: bytes, number: int) -> Line:
        """Reads a line strictly: exact keys, canonical bytes, fitting hash.

        Raises:
            LedgerError: it is anything else; the message says line ``number`` (from 1) and why.
        """
        what = f"ledger line {number}"
        value = parse_object(raw, what)
        if set(value) != _KEYS:
            raise LedgerError(f"{what} has other keys than {', '.join(sorted(_KEYS))}")
        seq, prev_hash, kind = value["seq"], value["prev_hash"], value["kind"]
        body, digest, signature = value["body"], value["hash"], value["signature"]
        well_formed = (
            isinstance(seq, int)
            and not isinstance(seq, bool)
            and isinstance(body, dict)
            and kind in KINDS
            and isinstance(prev_hash, str)
            and _HEX64.fullmatch(prev_hash)
            and isinstance(digest, str)
            and _HEX64.fullmatch(digest)
            and isinstance(signature, str)
            and _HEX128.fullmatch(signature)
        )
        if not well_formed:
            raise LedgerError(f"{what} has a field of the wrong type or form")
        text = canonical(body)  # serialised once: the line's and the hash's text share it
        rest = f'"kind":"{kind}","prev_hash":"{prev_hash}","seq":{seq}'.encode()
        hash_and_rest = b',"hash":"%s",%s' % (digest.encode(), rest)
        if raw != b'{"body":%s%s,"signature":"%s"}' % (text, hash_and_rest, signature.encode()):
            raise LedgerError(f"{what} is not in canonical form")
        if hashlib.sha256(b'{"body":%s,%s}' % (text, rest)).hexdigest() != digest:
            raise LedgerError(f"{what} does not have the hash that it states: it was edited")
        return cls(
            seq=seq,
            prev_hash=prev_hash,
            kind=kind,
            body=body,
            hash=digest,
            signature=signature,
            link=hashlib.sha256(raw).hexdigest(),
        )

    def signed_by(self, key: Ed25519PublicKey) -> bool:
        """Whether the signature over this line's hash is this key's."""
        try:
            key.verify(bytes.fromhex(self.signature), signed_message(self.hash))
        except InvalidSignature:
            return False
        return True
