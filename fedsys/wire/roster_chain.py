"""The lists that one party accepted: the newest in full, and what each version changed.

Every version is a whole list that the roster's authority signed, with the hash of the one before.
Between parties that hold the one before, and on their disks, a version is only what it changes: the
receiver builds the list again and checks the signature over all of it. So a fleet of N devices that
enrolled one by one costs each of them a text that grows as N, and not N lists of up to N members. A
device that holds none begins with whichever signed list it is given.

>>> from fedsys.wire.roster import RosterStatement
>>> one = RosterStatement(version=1, previous=b"", members={1: bytes(32)})
>>> two = one.successor({1: bytes(32), 2: bytes([1]) * 32}, colluders=1)
>>> change = RosterChange.between(one, two)
>>> change.added.keys(), change.removed, change.applied(one) == two
(dict_keys([2]), (), True)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedsys.errors import ProtocolError
from fedsys.wire.canonical import decode_object, encode_object
from fedsys.wire.roster import (
    RosterStatement,
    SignedStatement,
    check_signature,
    check_successor,
    members_of,
)

__all__ = ["RosterChain", "RosterChange", "RosterStep", "shortest"]

_KEYS = frozenset({"version", "added", "removed", "colluders"})
_BEGINS = b'{"added":'
"""Canonical JSON begins with the first of its keys, by which a change differs from a list."""
_MOST = 1 << 20
"""Bytes of a change, which is read before any signature can be checked; what changes more travels
as a whole list."""


@dataclass(frozen=True, kw_only=True)
class RosterChange:
    """What a version changes in the one before it.

    Attributes:
        version: that it makes, 2 or more.
        added: Ed25519 public key of each new node id.
        removed: increasing node ids.
        colluders: of the list that it makes.
    """

    version: int
    added: Mapping[int, bytes]
    removed: Sequence[int]
    colluders: int

    @classmethod
    def between(cls, before: RosterStatement, after: RosterStatement) -> RosterChange:
        """What makes one list of the one before, of which it is a successor."""
        old, new = before.members, after.members
        return cls(
            version=after.version,
            added={node: new[node] for node in sorted(new.keys() - old.keys())},
            removed=tuple(sorted(old.keys() - new.keys())),
            colluders=after.colluders,
        )

    @cached_property
    def encoded(self) -> bytes:
        """Canonical bytes."""
        return encode_object(
            {
                "version": self.version,
                "added": [[node, self.added[node].hex()] for node in sorted(self.added)],
                "removed": list(self.removed),
                "colluders": self.colluders,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> RosterChange:
        """The change that these bytes encode.

        Raises:
            ProtocolError: they are not a change, or one that is too large to be sent as one.
        """
        if len(data) > _MOST:
            raise ProtocolError(f"a change of a roster of {len(data)} bytes: at most {_MOST}")
        body = decode_object(data, "a change of a roster", _KEYS)
        try:
            version, removed, colluders = body["version"], body["removed"], body["colluders"]
            if type(version) is not int or version < 2 or type(colluders) is not int:
                raise ValueError("version or number of colluders")
            added = members_of(body["added"])
            if not all(type(node) is int for node in removed) or removed != sorted(set(removed)):
                raise ValueError("order of those who are removed")
        except (TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"a change of a roster with a wrong {error}") from None
        return cls(version=version, added=added, removed=tuple(removed), colluders=colluders)

    def applied(self, before: RosterStatement) -> RosterStatement:
        """The list that this makes of the one before it.

        Raises:
            ProtocolError: it is of another list: it adds one that is there, removes one that is
                not, or what it makes is no list.
        """
        kept, removed = before.members, frozenset(self.removed)
        if self.version != before.version + 1:
            raise ProtocolError(f"roster version {self.version} does not follow {before.version}")
        if not kept.keys() >= removed or kept.keys() & self.added.keys():
            raise ProtocolError(
                f"roster version {self.version} changes another list than version {before.version}"
            )
        members = dict(kept)
        for node in removed:
            del members[node]
        members.update(self.added)
        return before.successor(members, colluders=self.colluders)


@dataclass(frozen=True, kw_only=True)
class RosterStep:
    """One accepted version, without the members that it left as they were.

    Attributes:
        version: its number.
        hash: SHA-256 of the whole statement.
        added: keys of the members that it added; in the first list that is held, all of them.
        removed: keys of the members that it removed.
        colluders: of its list.
    """

    version: int
    hash: bytes
    added: Mapping[int, bytes]
    removed: Mapping[int, bytes]
    colluders: int


class RosterChain:
    """The versions that one party accepts, each the signed successor of the one before.

    Args:
        key: the authority's pinned Ed25519 public key.
        complete: whether version 1 must be the first; otherwise any signed list may be.

    Attributes:
        newest: the list in force; None before the first.
    """

    def __init__(self, *, key: bytes, complete: bool = False) -> None:
        self.key = key
        self.newest: RosterStatement | None = None
        self._complete = complete
        self._previous = b""
        self._steps: list[RosterStep] = []
        self._gone: dict[int, bytes] = {}
        """Keys of members that were removed: their numbers stay theirs."""

    @property
    def version(self) -> int:
        """Number of the newest list; 0 before the first."""
        return 0 if self.newest is None else self.newest.version

    @property
    def steps(self) -> Sequence[RosterStep]:
        """What each version changed, oldest first."""
        return self._steps

    def after(self, version: int) -> Sequence[RosterStep]:
        """What each later version changed, oldest first."""
        return self._steps[max(0, version + 1 - self._first) :]

    def copy(self) -> RosterChain:
        """The same lists, to which others may be added apart."""
        other = RosterChain(key=self.key, complete=self._complete)
        other.newest, other._previous = self.newest, self._previous
        other._steps, other._gone = list(self._steps), dict(self._gone)
        return other

    def step(self, version: int) -> RosterStep | None:
        """What that version changed; None if it is not held."""
        at = version - self._first
        return self._steps[at] if 0 <= at < len(self._steps) else None

    def find(self, version: int) -> RosterStatement | None:
        """The list with that version, built by undoing later changes; None if it is not held."""
        newest, step = self.newest, self.step(version)
        if newest is None or step is None or version == newest.version:
            return newest if step is not None else None
        members = dict(newest.members)
        for later in reversed(self.after(version)):
            for node in later.added:
                del members[node]
            members.update(later.removed)
        before = self.step(version - 1)
        return RosterStatement(
            version=version,
            previous=self._previous if before is None else before.hash,
            members=members,
            colluders=step.colluders,
        )

    def extend(self, news: Iterable[SignedStatement]) -> list[RosterStatement]:
        """Accept further versions; those already held must be the same.

        Returns:
            The versions that are new.

        Raises:
            ProtocolError: a signature, the chain or a version is invalid; that list and all after
                it are not accepted.
        """
        accepted = (self.accept(signed) for signed in news)
        return [statement for statement in accepted if statement is not None]

    def accept(self, signed: SignedStatement) -> RosterStatement | None:
        """Accept one version, whole or as a change of the newest; None where it is held already.

        The signature is checked before a whole list is decoded: a message that is not from the
        authority costs this party no more than hashing it. A change is small.

        Raises:
            ProtocolError: the signature, the chain or the version is invalid; nothing is accepted.
        """
        if signed.statement.startswith(_BEGINS):
            change = RosterChange.decode(signed.statement)
            if self._holds(change):
                return None
            if self.newest is None:
                raise ProtocolError(f"roster version {change.version} does not follow 0")
            statement = change.applied(self.newest)
            whole = SignedStatement(statement=statement.encoded, signature=signed.signature)
            check_signature(whole, self.key)
            added, gone = change.added, change.removed
        else:
            digest = hashlib.sha256(signed.statement).digest()
            if any(step.hash == digest for step in self._steps):
                return None
            check_signature(signed, self.key)
            statement = RosterStatement.decode(signed.statement)
            if self.step(statement.version) is not None:
                raise _another(statement.version)
            if self.newest is not None or self._complete:
                check_successor(self.newest, statement)
            old = {} if self.newest is None else self.newest.members
            added = {
                node: statement.members[node] for node in statement.members.keys() - old.keys()
            }
            gone = tuple(sorted(old.keys() - statement.members.keys()))
        self._append(statement, added, gone)
        return statement

    # -- inside -----------------------------------------------------------------------------------

    @property
    def _first(self) -> int:
        return self._steps[0].version if self._steps else 1

    def _holds(self, change: RosterChange) -> bool:
        """Whether a change was accepted before, or led to the first list that is held.

        Raises:
            ProtocolError: another one was accepted.
        """
        if self._steps and change.version <= self._first:
            return True
        held = self.step(change.version)
        if held is None:
            return False
        found = held.added, tuple(held.removed), held.colluders
        if found != (change.added, tuple(change.removed), change.colluders):
            raise _another(change.version)
        return True

    def _append(
        self, statement: RosterStatement, added: Mapping[int, bytes], gone: Sequence[int]
    ) -> None:
        removed = {} if self.newest is None else {node: self.newest.members[node] for node in gone}
        for node, key in added.items():
            if self._gone.get(node, key) != key:
                raise ProtocolError(
                    f"roster version {statement.version} gives node {node} another key than before "
                    f"it was removed"
                )
        if self.newest is None:
            self._previous = statement.previous
        self._gone.update(removed)
        self._steps.append(
            RosterStep(
                version=statement.version,
                hash=statement.hash,
                added=added,
                removed=removed,
                colluders=statement.colluders,
            )
        )
        self.newest = statement


def _another(version: int) -> ProtocolError:
    return ProtocolError(f"roster version {version} differs from the one accepted before")


def shortest(before: RosterStatement | None, after: RosterStatement) -> bytes:
    """A version as it is kept and sent: what it changes in the one before, if that is shorter.

    The authority's signature is over the whole list in either case.
    """
    if before is None:
        return after.encoded
    change = RosterChange.between(before, after).encoded
    return change if len(change) < min(len(after.encoded), _MOST) else after.encoded
