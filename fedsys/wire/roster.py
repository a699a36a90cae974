"""Who may take part: lists, each signed by the roster's authority.

The holder of the authority's key decides who is a member. An agent pins that key when it joins and
accepts a new list only as the signed successor of the one that it holds, so that every device
records the members who were added: see `fedsys.wire.roster_chain`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.errors import ProtocolError
from fedsys.wire.canonical import decode_object
from secure_agg import Roster

__all__ = [
    "RosterStatement",
    "SignedStatement",
    "changes",
    "check_signature",
    "check_successor",
    "fingerprint",
    "members_of",
    "signed_message",
]

_KEYS = frozenset({"version", "previous", "members", "colluders"})
_DOMAIN = b"fedsys roster v1\x00"
MAX_MEMBERS = 1_000_000


def signed_message(statement: bytes) -> bytes:
    """What the authority signs."""
    return _DOMAIN + statement


@dataclass(frozen=True, kw_only=True)
class RosterStatement:
    """One version of the list.

    Attributes:
        version: 1, 2, 3, ...
        previous: SHA-256 of the statement before; empty for the first.
        members: Ed25519 public key of each node id.
        colluders: the most members that the authority expects to collude with the coordinator,
            whatever cohorts it chooses; an absolute number.
        signed: of a part of a list, the canonical bytes of the whole, which was signed.
    """

    version: int
    previous: bytes
    members: Mapping[int, bytes]
    colluders: int = 0
    signed: bytes = field(default=b"", repr=False)

    @cached_property
    def encoded(self) -> bytes:
        """Canonical bytes of the list, or of the one that it is a part of."""
        if self.signed:
            return self.signed
        # As `encode_object` would, but each version of a long chain is written by each device.
        members = ",".join([f'[{node},"{self.members[node].hex()}"]' for node in self.nodes])
        return (
            f'{{"colluders":{self.colluders},"members":[{members}],'
            f'"previous":"{self.previous.hex()}","version":{self.version}}}'
        ).encode()

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 of the canonical bytes."""
        return hashlib.sha256(self.encoded).digest()

    @cached_property
    def nodes(self) -> tuple[int, ...]:
        """Increasing node ids; a job's client k is the k-th of them."""
        return tuple(sorted(self.members))

    @cached_property
    def roster(self) -> Roster:
        """The list for secure aggregation, by client number."""
        members = {k: self.members[node] for k, node in enumerate(self.nodes)}
        return Roster(members, corrupt=self.colluders)

    def only(self, nodes: Sequence[int]) -> RosterStatement:
        """The part of this list that takes part in a job; its hash remains that of the whole.

        Args:
            nodes: increasing node ids; none stand for all.

        Raises:
            ProtocolError: they are not increasing, or not all on the list.
        """
        if not nodes:
            return self
        if list(nodes) != sorted(set(nodes)) or not self.members.keys() >= set(nodes):
            raise ProtocolError("a job for devices that are not on its roster, or in another order")
        return RosterStatement(
            version=self.version,
            previous=self.previous,
            members={node: self.members[node] for node in nodes},
            colluders=min(self.colluders, len(nodes)),
            signed=self.encoded,
        )

    def successor(self, members: Mapping[int, bytes], *, colluders: int) -> RosterStatement:
        """The next version, with these members.

        Raises:
            ProtocolError: they are too many, share a key, or are fewer than the colluders.
        """
        if (
            len(members) > MAX_MEMBERS
            or len(set(members.values())) != len(members)
            or not 0 <= colluders <= len(members)
        ):
            raise ProtocolError(f"roster version {self.version + 1} is not a list of members")
        return RosterStatement(
            version=self.version + 1, previous=self.hash, members=members, colluders=colluders
        )

    @classmethod
    def decode(cls, data: bytes) -> RosterStatement:
        """The statement that these bytes encode.

        Raises:
            ProtocolError: they are not a statement.
        """
        body = decode_object(data, "a roster", _KEYS)
        try:
            version, members = body["version"], body["members"]
            if type(version) is not int or version < 1:
                raise ValueError("version")
            previous = bytes.fromhex(body["previous"])
            if len(previous) != (0 if version == 1 else 32):
                raise ValueError("previous")
            found = members_of(members)
            colluders = body["colluders"]
            if type(colluders) is not int or not 0 <= colluders <= len(found):
                raise ValueError("number of colluders")
        except (TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"a roster with a wrong {error}") from None
        return cls(version=version, previous=previous, members=found, colluders=colluders)


def members_of(listed: Any) -> dict[int, bytes]:
    """The keys in a list of [node, hex of its key], by increasing node.

    Raises:
        TypeError, ValueError, AttributeError: it is no such list, as the message says.
    """
    if len(listed) > MAX_MEMBERS:
        raise ValueError("size")
    found: dict[int, bytes] = {}
    for node, text in listed:
        key = bytes.fromhex(text)
        if type(node) is not int or not 0 <= node < 2**31 or len(key) != 32:
            raise ValueError(f"member {node}")
        found[node] = key
    if len(found) != len(listed) or len(set(found.values())) != len(found):
        raise ValueError("member, who is listed twice")
    if list(found) != sorted(found):
        raise ValueError("order of members")
    return found


@dataclass(frozen=True, kw_only=True)
class SignedStatement:
    """A list with the authority's signature over `signed_message` of its bytes.

    Attributes:
        statement: the list's bytes; or, for those who hold the one before, those of the
            `fedsys.wire.roster_chain.RosterChange` that makes it.
        signature: over the whole list, in either case.
    """

    statement: bytes
    signature: bytes


def check_signature(signed: SignedStatement, key: bytes) -> None:
    """Check a statement's signature, before any of it is decoded.

    Raises:
        ProtocolError: it is not the authority's.
    """
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(
            signed.signature, signed_message(signed.statement)
        )
    except InvalidSignature:
        raise ProtocolError("a list that is not signed by the pinned authority") from None


def check_successor(newest: RosterStatement | None, statement: RosterStatement) -> None:
    """Check that a list may follow the newest one; for those that accept it, and its signer.

    Args:
        newest: the list in force; None before the first.
        statement: the list that is to follow it.

    Raises:
        ProtocolError: it has a different history, leaves a gap, or gives a member another key.
    """
    version = statement.version
    if version != (1 if newest is None else newest.version + 1):
        before = 0 if newest is None else newest.version
        raise ProtocolError(f"roster version {version} does not follow {before}")
    if newest is None:
        return
    if statement.previous != newest.hash:
        raise ProtocolError(f"roster version {version} is not a successor of version {version - 1}")
    for node, key in statement.members.items():
        if newest.members.get(node, key) != key:
            raise ProtocolError(f"roster version {version} gives node {node} another key")


def fingerprint(key: bytes) -> str:
    """The first 16 bytes of a public key's SHA-256, for comparison by eye.

    >>> fingerprint(bytes(32))
    '6668-7aad-f862-bd77-6c8f-c18b-8e9f-8e20'
    """
    text = hashlib.sha256(key).hexdigest()[:32]
    return "-".join(text[at : at + 4] for at in range(0, 32, 4))


def changes(before: RosterStatement | None, after: RosterStatement) -> dict[str, Any]:
    """The members that were added and removed, for logs."""
    old = set() if before is None else set(before.members)
    new = set(after.members)
    return {
        "version": after.version,
        "added": sorted(new - old),
        "removed": sorted(old - new),
        "colluders": after.colluders,
    }
