"""The authority's side of the roster: what it signed is remembered, and a fork of it is refused.

Devices take only the successor of the list that they hold. An authority that signed two successors
of one list would let an operator show some devices one population and the rest another. So the last
list that a key signed is kept beside the key, and is written before its signature is handed out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.durable import write_atomically
from fedsys.errors import ConfigError, ProtocolError
from fedsys.wire.roster import RosterStatement, SignedStatement, check_successor, signed_message

__all__ = ["RosterAuthority", "decode_signed", "encode_signed"]


def encode_signed(signed: SignedStatement) -> bytes:
    """A signed list as the file in which it travels."""
    body = {"statement": signed.statement.decode(), "signature": signed.signature.hex()}
    return json.dumps(body).encode()


def decode_signed(data: bytes) -> SignedStatement:
    """What `encode_signed` wrote; nothing in it is checked.

    Raises:
        ProtocolError: it is something else.
    """
    try:
        body = json.loads(data)
        return SignedStatement(
            statement=body["statement"].encode(), signature=bytes.fromhex(body["signature"])
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ProtocolError("not a signed roster") from None


class RosterAuthority:
    """Signs one list after the other.

    Args:
        private: the authority's key.
        record: file that holds the last list it signed.
        previous: that list, for a key whose record was lost.

    Raises:
        ConfigError: the record, or the list given in its place, is not one that this key signed.
    """

    def __init__(
        self, private: Ed25519PrivateKey, record: Path, *, previous: Path | None = None
    ) -> None:
        self._private = private
        self._record = record
        source = record if record.exists() else previous
        self.last = None if source is None else self._read(source)

    def _read(self, source: Path) -> RosterStatement:
        """A list that this key signed."""
        try:
            signed = decode_signed(source.read_bytes())
            statement = RosterStatement.decode(signed.statement)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"{source}: {reason}") from None
        except ProtocolError as error:
            raise ConfigError(f"{source}: {error}") from None
        if not signed.holds(self._private.public_key().public_bytes_raw()):
            raise ConfigError(f"{source}: not signed with this key")
        return statement

    def check(self, proposed: RosterStatement) -> None:
        """Refuse what may not be signed after the last list.

        Raises:
            ConfigError: it is a fork of what was signed, or follows a list that is not known here.
        """
        last = self.last
        if last is not None and last.hash == proposed.hash:
            return  # signed already; the same bytes again do no harm
        if last is None and proposed.version != 1:
            raise ConfigError(
                f"version {proposed.version} follows a list that this key has no record of: "
                f"restore {self._record}, or give the list that it signed last with --previous FILE"
            )
        if last is not None and proposed.version <= last.version:
            raise ConfigError(
                f"version {proposed.version} is a fork: this key has signed version "
                f"{last.version} already, {last.hash.hex()[:16]}; nothing was signed"
            )
        try:
            check_successor(last, proposed)
        except ProtocolError as error:
            raise ConfigError(f"{error}; nothing was signed") from None

    def describe(self, proposed: RosterStatement) -> Iterator[str]:
        """The list's members and their keys, line by line: ``+`` came, ``-`` went."""
        before = {} if self.last is None else self.last.members
        yield (
            f"version {proposed.version}, {proposed.hash.hex()[:16]}: {len(proposed.members)} "
            f"members, {proposed.colluders} of them expected to collude at most"
        )
        if self.last is not None and self.last.colluders != proposed.colluders:
            yield f"colluders were {self.last.colluders}"
        for node in sorted(before.keys() | proposed.members.keys()):
            sign = " " if node in before and node in proposed.members else "+"
            if node not in proposed.members:
                sign = "-"
            key = proposed.members.get(node) or before[node]
            yield f"{sign} node {node:<6d} {key.hex()}"

    def sign(self, proposed: RosterStatement) -> SignedStatement:
        """Sign a list; the record of it is durable when this returns.

        Raises:
            ConfigError: as `check`.
            OSError: the record cannot be written; nothing is handed out.
        """
        self.check(proposed)
        signed = SignedStatement(
            statement=proposed.encoded,
            signature=self._private.sign(signed_message(proposed.encoded)),
        )
        write_atomically(self._record, encode_signed(signed), mode=0o600)
        self.last = proposed
        return signed
