"""One line of the ledger: canonical JSON, its hash, its place in the chain, its signature.

>>> canonical({"b": 1, "a": [True, None, 0.5]})
b'{"a":[true,null,0.5],"b":1}'
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.errors import LedgerError
from fedsys.transparency.merkle import leaf_hash

__all__ = [
    "FORMAT",
    "GENESIS",
    "KINDS",
    "MAX_LINE_BYTES",
    "Conclusion",
    "KnownEvents",
    "Line",
    "canonical",
    "commitment",
    "is_signature",
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
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""A JSON string, or an unterminated one up to the end of the text; matches in linear time."""
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
)
_CANONICAL = re.compile(
    rb'\{"body":(\{.*\})'
    rb',"hash":"([0-9a-f]{64})"'
    rb',"kind":"([a-z]+)"'
    rb',"prev_hash":"([0-9a-f]{64})"'
    rb',"seq":(0|[1-9][0-9]{0,17})'
    rb',"signature":"([0-9a-f]{128})"\}',
    re.DOTALL,
)
"""A whole line, in canonical form if its body is."""


def canonical(value: Any) -> bytes:
    """The canonical JSON of a value: keys sorted, no spaces, ASCII, no NaN or infinity.

    Floats are written as by Python's ``repr``: the shortest text that reads back to the same value.

    Raises:
        LedgerError: the value is not JSON.
    """
    try:
        text = _ENCODER.encode(value)
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


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)


def parse_object(raw: bytes, what: str, *, limit: int = MAX_LINE_BYTES) -> dict[str, Any]:
    """A JSON object of bounded size and depth, without duplicate keys, NaN or infinity.

    Args:
        raw: UTF-8 text, untrusted.
        what: the subject of an error's message.
        limit: the number of bytes above which the text is refused unread.

    Raises:
        LedgerError: the text is not such an object.
    """
    if len(raw) > limit:
        raise LedgerError(f"{what} is longer than {limit} bytes")
    if not _is_shallow(raw):
        raise LedgerError(
            f"{what} is nested deeper than {_MAX_DEPTH}, or its brackets do not match"
        )
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise LedgerError(f"{what} is not strict JSON: {error}") from None
    if not isinstance(value, dict):
        raise LedgerError(f"{what} is not a JSON object")
    return value


def _is_shallow(raw: bytes) -> bool:
    """Whether JSON is nested at most ``_MAX_DEPTH`` deep, in time linear in its size.

    Brackets outside strings are removed from the inside out, one level at a time.
    """
    if raw.count(b"{") + raw.count(b"[") <= _MAX_DEPTH:
        return True
    brackets = _STRING.sub(b"", raw).translate(None, _NOT_BRACKETS)
    for _ in range(_MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return not brackets


def signed_message(digest: str) -> bytes:
    """The bytes that Ed25519 signs for a line with this hash."""
    return _SIGNED + bytes.fromhex(digest)


def is_signature(signature: str, digest: str, key: Ed25519PublicKey) -> bool:
    """Whether this signature (hex) of a line with this hash verifies under this key."""
    try:
        key.verify(bytes.fromhex(signature), signed_message(digest))
    except InvalidSignature:
        return False
    return True


def commitment(name: str, value: Any, salt: bytes) -> str:
    """The SHA-256 commitment to a private value under the round's 32-byte salt, as hex."""
    digest = hashlib.sha256(_COMMITTED)
    label = name.encode("utf-8")
    digest.update(len(salt).to_bytes(4, "big") + salt)
    digest.update(len(label).to_bytes(4, "big") + label)
    digest.update(canonical(value))
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A parsed line whose hash matches its content; chain and signature are not yet checked.

    Attributes:
        seq: position, from 0.
        prev_hash: SHA-256 of the whole previous line, its signature included.
        kind: one of ``KINDS``.
        body: what the line records; lines with equal events may share one object.
        text: the body's canonical JSON.
        hash: SHA-256 of the canonical JSON of ``body``, ``kind``, ``prev_hash`` and ``seq``.
        signature: the coordinator's Ed25519 signature over the hash, as hex.
        link: SHA-256 of this whole line, which is the next line's ``prev_hash``.
        leaf: the line's hash as a leaf of the ledger's Merkle tree.
        shared: whether the body shares most of its memory with an earlier line's.
    """

    seq: int
    prev_hash: str
    kind: str
    body: dict[str, Any]
    text: bytes
    hash: str
    signature: str
    link: str
    leaf: bytes
    shared: bool = False

    @classmethod
    def signed(
        cls,
        *,
        seq: int,
        prev_hash: str,
        kind: str,
        body: dict[str, Any],
        sign: Callable[[str], str],
    ) -> bytes:
        """The bytes of a new line, without the newline: canonical JSON, like what its hash is of,
        so that the body, which both begin with, is written once.

        Args:
            seq: its place.
            prev_hash: the `link` of the line before.
            kind: one of ``KINDS``.
            body: what it records.
            sign: signature over a line's hash, as hex.
        """
        text = canonical(body)
        place = b'"kind":"%s","prev_hash":"%s","seq":%d' % (kind.encode(), prev_hash.encode(), seq)
        digest = hashlib.sha256(b'{"body":%s,%s}' % (text, place)).hexdigest()
        ends = digest.encode(), place, sign(digest).encode()
        return b'{"body":%s,"hash":"%s",%s,"signature":"%s"}' % (text, *ends)

    @classmethod
    def parse(cls, raw: bytes, number: int, *, known: KnownEvents | None = None) -> Line:
        """Reads a line strictly: exact keys, canonical bytes, matching hash.

        Args:
            raw: the line without its newline.
            number: the line's number, from 1.
            known: events of earlier lines, which need not be parsed again.

        Raises:
            LedgerError: the line is malformed; the message names line ``number`` and says why.
        """
        what = f"ledger line {number}"
        found = _CANONICAL.fullmatch(raw) if len(raw) <= MAX_LINE_BYTES else None
        if found is None or found[3].decode() not in KINDS:
            raise _complaint(raw, what)
        text = found[1]
        body = None if known is None else known.reserve(text)
        shared = body is not None
        if body is None:
            if not _is_shallow(raw):
                raise _complaint(raw, what)
            body = parse_object(text, what)
            if canonical(body) != text:
                raise LedgerError(f"{what} is not in canonical form")
            if known is not None:
                known.learn(body)
        content = b'{"body":%s,%s}' % (text, raw[found.start(3) - 8 : found.end(5)])
        digest = found[2].decode()
        if hashlib.sha256(content).hexdigest() != digest:
            raise LedgerError(f"{what} does not have the hash that it states: it was edited")
        return cls(
            seq=int(found[5]),
            prev_hash=found[4].decode(),
            kind=found[3].decode(),
            body=body,
            text=text,
            hash=digest,
            signature=found[6].decode(),
            link=hashlib.sha256(raw).hexdigest(),
            leaf=leaf_hash(raw),
            shared=shared,
        )

    def signed_by(self, key: Ed25519PublicKey) -> bool:
        """Whether the line's signature verifies under this key."""
        return is_signature(self.signature, self.hash, key)


class Conclusion(NamedTuple):
    """The line that commits or aborts a round.

    Attributes:
        seq: its place.
        hash: its hash.
        model: SHA-256 of the weights that the round began with, as the lines before it state.
    """

    seq: int
    hash: str
    model: str


def _complaint(raw: bytes, what: str) -> LedgerError:
    """Why a line is not in canonical form."""
    try:
        value = parse_object(raw, what)
    except LedgerError as error:
        return error
    if set(value) != _KEYS:
        return LedgerError(f"{what} has other keys than {', '.join(sorted(_KEYS))}")
    seq, prev_hash, kind = value["seq"], value["prev_hash"], value["kind"]
    well_formed = (
        isinstance(seq, int)
        and not isinstance(seq, bool)
        and isinstance(value["body"], dict)
        and kind in KINDS
        and all(isinstance(each, str) for each in (prev_hash, value["hash"], value["signature"]))
        and _HEX64.fullmatch(prev_hash)
        and _HEX64.fullmatch(value["hash"])
        and _HEX128.fullmatch(value["signature"])
    )
    if not well_formed:
        return LedgerError(f"{what} has a field of the wrong type or form")
    return LedgerError(f"{what} is not in canonical form")


class KnownEvents:
    """A cache of parsed events, because most of a job's rounds reserve the same one.

    The body ``{"event":E,"kind":K,"round":N,"seed_sha256":S}``, of which K and S may be missing, is
    canonical if its parts are, and E's text was checked before.
    """

    __slots__ = ("_known",)

    _RESERVE = re.compile(
        rb'\{"event":(\{.*\})(?:,"kind":"([a-z]{1,16})")?,"round":([1-9][0-9]{0,17})'
        rb'(?:,"seed_sha256":"([0-9a-f]{64})")?\}',
        re.DOTALL,
    )
    _MOST, _LONGEST = 64, 1 << 14

    def __init__(self) -> None:
        self._known: dict[bytes, dict[str, Any]] = {}

    def learn(self, body: dict[str, Any]) -> None:
        """Stores the event of a canonical body, if it has one."""
        event = body.get("event")
        text = canonical(event) if isinstance(event, dict) else b""
        if isinstance(event, dict) and len(text) <= self._LONGEST:
            if len(self._known) >= self._MOST:
                self._known.clear()
            self._known[text] = event

    def reserve(self, text: bytes) -> dict[str, Any] | None:
        """The body with this text, if it is a known event, a kind, a number and a hash."""
        found = self._RESERVE.fullmatch(text)
        event = None if found is None else self._known.get(found[1])
        if found is None or event is None:
            return None
        kind = {} if found[2] is None else {"kind": found[2].decode()}
        seed = {} if found[4] is None else {"seed_sha256": found[4].decode()}
        return {"event": event, **kind, "round": int(found[3]), **seed}
