"""Who is who: long-term Ed25519 identities and the pinned roster of their public keys."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_agg.digests import digest
from secure_agg.errors import ParameterError

__all__ = ["Entropy", "Identity", "Roster"]

Entropy = Callable[[int], bytes]
"""A source of random bytes; ``os.urandom`` outside tests."""

_ROW = struct.Struct("<I32s")
_MAX_ID = 2**32 - 1


class Identity:
    """A member's long-term signing key (Ed25519, RFC 8032).

    Args:
        private_bytes: 32 bytes.

    Raises:
        ParameterError: On another length.

    Attributes:
        public_bytes: The public key, 32 bytes.

    >>> identity = Identity.generate()
    >>> len(identity.public_bytes)
    32
    """

    __slots__ = ("_key", "public_bytes")

    def __init__(self, private_bytes: bytes) -> None:
        if len(private_bytes) != 32:
            raise ParameterError(f"an identity takes 32 bytes, got {len(private_bytes)}")
        self._key = Ed25519PrivateKey.from_private_bytes(private_bytes)
        self.public_bytes = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, entropy: Entropy = os.urandom) -> Identity:
        """Draw a new identity; ``entropy`` is asked once, for 32 bytes."""
        return cls(entropy(32))

    def private_bytes(self) -> bytes:
        """Return the secret 32 bytes, to be stored where only the member can read them."""
        return self._key.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the 64 byte Ed25519 signature (RFC 8032)."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Identity(public={self.public_bytes.hex()[:16]}...)"


class Roster(Mapping[int, bytes]):
    """The pinned public keys of everybody who may take part; a round's cohort is a subset.

    Malicious security rests on an authority for this list that is independent of the server, or on
    members that pin it themselves. Where the server makes the list, the claim is
    honest-but-curious only.

    Args:
        members: Ed25519 public key of each id; ids from 0 to 2^32 - 1.
        corrupt: At most so many members collude with the server, if such a bound is assumed.
            A server that chooses the cohort could invite them all, so that a participant then
            refuses parameters that tolerate fewer than ``min(corrupt, n - 2)``. Without it, the
            assumption is on each cohort as it is drawn: at most ``params.colluders`` of it.

    Raises:
        ParameterError: On an id, a key or a bound out of range, or a key that two members share.

    Attributes:
        corrupt: As given.
        hash: 32 bytes that pin the whole list; computed once.
    """

    __slots__ = ("_members", "corrupt", "hash")

    def __init__(self, members: Mapping[int, bytes], *, corrupt: int | None = None) -> None:
        state = hashlib.sha256()
        for id_ in sorted(members):
            key = members[id_]
            if not 0 <= id_ <= _MAX_ID:
                raise ParameterError(f"member id {id_} is not from 0 to 2^32 - 1")
            if len(key) != 32:
                raise ParameterError(f"member {id_}: a public key takes 32 bytes, got {len(key)}")
            state.update(_ROW.pack(id_, key))
        if len(set(members.values())) != len(members):
            raise ParameterError("two members of the roster share one public key")
        if corrupt is not None and not 0 <= corrupt <= len(members):
            raise ParameterError(f"corrupt is {corrupt}: from 0 to {len(members)} members")
        self._members = dict(members)
        self.corrupt = corrupt
        bound = b"" if corrupt is None else corrupt.to_bytes(4, "little")
        count = len(members).to_bytes(4, "little")
        self.hash = digest("roster", count, bound, state.digest())

    def __getitem__(self, id_: int) -> bytes:
        return self._members[id_]

    def __iter__(self) -> Iterator[int]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __hash__(self) -> int:
        return hash(self.hash)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Roster) and other.hash == self.hash

    def __repr__(self) -> str:
        return f"Roster({len(self)} members, hash={self.hash.hex()[:16]}...)"
