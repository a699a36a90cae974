"""The roster's authority: a key, and a record of what it signed, so that it never signs a fork.

::

    authority.key          Ed25519, 32 bytes
    authority.key.signed   version and hash of every list it signed, and the newest list

Two different lists under one version would let a coordinator show two histories to two devices. So
a list is recorded, durably, before its signature exists, and a key whose record is lost signs
nothing until it is given the last list that it signed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.errors import ConfigError, ProtocolError
from fedsys.secret_files import read_secret, write_secret
from fedsys.wire.roster import (
    RosterStatement,
    SignedStatement,
    check_signature,
    check_successor,
    signed_message,
)

__all__ = ["RosterAuthority", "read_signed", "write_signed"]

_MOST = 1 << 30
"""The most bytes of a record: a million members take 75 MB."""

_MOST_BYTES = 256 << 20
"""More than the signed list of a million members takes."""


@dataclass(kw_only=True)
class RosterAuthority:
    """Signs each next list, once.

    Attributes:
        path: the key file.
        newest: the list that was signed last; None before the first.
        signed: SHA-256 of every signed list, as hex, by version.
    """

    path: Path
    newest: RosterStatement | None = None
    signed: dict[int, str] = field(default_factory=dict)
    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    @contextmanager
    def opened(cls, path: Path, *, after: str | None = None) -> Iterator[RosterAuthority]:
        """The authority of a key file, which is created with an empty record if it is missing;
        locked against other processes that would sign with it.

        Args:
            path: the key file.
            after: replaces a lost record: the file of the list that this key signed last, or
                ``none`` if it has signed nothing.

        Raises:
            ConfigError: key or record cannot be used.
            OSError: they cannot be written.
        """
        memory = _memory_of(path)
        if not path.exists():
            if memory.exists():
                raise ConfigError(f"{path}: missing, but {memory} exists: restore the key")
            write_secret(memory, _encode({}, None))  # first: a key without a record is refused
            write_secret(path, Ed25519PrivateKey.generate().private_bytes_raw())
        try:
            key = Ed25519PrivateKey.from_private_bytes(read_secret(path))
        except ValueError:
            raise ConfigError(f"{path}: not a key of 32 bytes; give another file") from None
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if memory.exists():
                signed, newest = _decode(memory)
            elif after is not None:
                signed, newest = _recalled(after, key)
            else:
                raise ConfigError(
                    f"{memory}: missing; it records what {path.name} has signed, without which a "
                    f"second list could be signed under an old version: restore it from a backup, "
                    f"or give --after FILE, the list that was signed last (none: no list was)"
                )
            yield cls(path=path, newest=newest, signed=signed, _key=key)
        finally:
            os.close(handle)

    @property
    def public_key(self) -> bytes:
        """The key that devices and coordinator pin."""
        return self._key.public_key().public_bytes_raw()

    def check(self, proposed: RosterStatement) -> None:
        """Check that a list is the next one, or one that was signed already.

        Raises:
            ProtocolError: it is not, or gives a member another key.
        """
        version, known = proposed.version, self.signed.get(proposed.version)
        if known == proposed.hash.hex():
            return
        if known is not None:
            raise ProtocolError(
                f"roster version {version}: this key signed another list with that version "
                f"({known[:16]}...), and a second one would be a fork; have the operator propose "
                f"version {max(self.signed) + 1}"
            )
        check_successor(self.newest, proposed)

    def sign(self, proposed: RosterStatement) -> SignedStatement:
        """Sign the next list; it is recorded, durably, before there is a signature.

        Raises:
            ProtocolError: see `check`.
            OSError: the record cannot be written; nothing is signed.
        """
        self.check(proposed)
        if proposed.version not in self.signed:
            signed = {**self.signed, proposed.version: proposed.hash.hex()}
            write_secret(_memory_of(self.path), _encode(signed, proposed))
            self.signed, self.newest = signed, proposed
        return SignedStatement(
            statement=proposed.encoded,
            signature=self._key.sign(signed_message(proposed.encoded)),
        )


def write_signed(path: Path, signed: SignedStatement) -> None:
    """Write the file that the authority returns to the operator.

    Raises:
        OSError: it cannot be written.
    """
    body = {"statement": signed.statement.decode(), "signature": signed.signature.hex()}
    path.write_text(json.dumps(body), encoding="utf-8")


def read_signed(path: Path) -> SignedStatement:
    """The list in a file that `write_signed` wrote; its signature is not checked.

    Raises:
        ValueError: it is not such a file.
        OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise ValueError("longer than a roster")
        body = json.loads(raw)
        return SignedStatement(
            statement=body["statement"].encode(), signature=bytes.fromhex(body["signature"])
        )
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("not a signed roster") from None


def _memory_of(path: Path) -> Path:
    return path.with_name(path.name + ".signed")


def _encode(signed: dict[int, str], newest: RosterStatement | None) -> bytes:
    statement = None if newest is None else newest.encoded.decode()
    return json.dumps({"signed": sorted(signed.items()), "newest": statement}).encode()


def _decode(memory: Path) -> tuple[dict[int, str], RosterStatement | None]:
    try:
        body = json.loads(read_secret(memory, most=_MOST))
        signed = {int(version): str(digest) for version, digest in body["signed"]}
        newest = None if body["newest"] is None else RosterStatement.decode(body["newest"].encode())
        last = {} if newest is None else {newest.version: newest.hash.hex()}
        if max(signed, default=0) != max(last, default=0) or not last.items() <= signed.items():
            raise ValueError("its parts disagree")
    except (ProtocolError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{memory}: damaged ({error}); restore it from a backup") from None
    return signed, newest


def _recalled(after: str, key: Ed25519PrivateKey) -> tuple[dict[int, str], RosterStatement | None]:
    if after == "none":
        return {}, None
    try:
        last = read_signed(Path(after))
        newest = RosterStatement.decode(last.statement)
        check_signature(last, key.public_key().public_bytes_raw())
    except (OSError, ValueError, ProtocolError):
        raise ConfigError(
            f"--after {after}: not a list that this key signed; give the file that it signed last"
        ) from None
    return {newest.version: newest.hash.hex()}, newest
