"""The signed roster: only the authority's own successor of what is held is accepted."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.errors import ProtocolError
from fedsys.wire.roster import RosterChain, RosterStatement, SignedStatement, signed_message
from secure_agg import Identity

AUTHORITY = Ed25519PrivateKey.generate()
KEYS = {node: Identity.generate().public_bytes for node in range(1, 6)}


def sign(statement: RosterStatement, key: Ed25519PrivateKey = AUTHORITY) -> SignedStatement:
    return SignedStatement(
        statement=statement.encoded, signature=key.sign(signed_message(statement.encoded))
    )


def first(*nodes: int) -> RosterStatement:
    return RosterStatement(version=1, previous=b"", members={node: KEYS[node] for node in nodes})


def after(before: RosterStatement, *nodes: int) -> RosterStatement:
    members = {node: KEYS[node] for node in nodes}
    return RosterStatement(version=before.version + 1, previous=before.hash, members=members)


def chain(*statements: RosterStatement) -> RosterChain:
    found = RosterChain(key=AUTHORITY.public_key().public_bytes_raw())
    found.extend(sign(each) for each in statements)
    return found


def test_members_come_and_go_under_the_authoritys_signature() -> None:
    one = first(1, 2)
    two = after(one, 1, 2, 3)
    held = chain(one)
    assert held.extend([sign(one), sign(two)]) == [two]
    assert held.newest == two
    assert two.nodes == (1, 2, 3)
    assert RosterStatement.decode(two.encoded) == two
    assert two.roster[2] == KEYS[3]


@pytest.mark.parametrize("attack", ["signer", "chain", "gap", "fork", "key"])
def test_a_roster_that_grew_unannounced_is_refused(attack: str) -> None:
    one = first(1, 2)
    two = after(one, 1, 2, 3)
    held = chain(one)
    if attack == "signer":
        news = sign(two, Ed25519PrivateKey.generate())
    elif attack == "chain":
        news = sign(dataclasses.replace(two, previous=first(1).hash))
    elif attack == "gap":
        news = sign(after(two, 1, 2, 3, 4))
    elif attack == "fork":
        news = sign(first(1, 2, 3))
    else:
        news = sign(dataclasses.replace(two, members={1: KEYS[4], 2: KEYS[2]}))
    with pytest.raises(ProtocolError):
        held.extend([news])
    assert held.versions == [one]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"members":[],"previous":"","version":0}',
        b'{"members":[],"previous":"","version":1.0}',
        b'{"members":[],"previous":"00","version":1}',
        b'{"members":[],"previous":"","version":2}',
        b'{"members":[[1,"00"]],"previous":"","version":1}',
        b'{"members": [],"previous":"","version":1}',
        b'{"members":[],"previous":"","version":1,"x":1}',
        b'{"members":7,"previous":"","version":1}',
        b'{"members":[],"previous":"","version":NaN}',
        b"[" * 100_000,
    ],
)
def test_malformed_rosters_are_refused(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        RosterStatement.decode(text)


def test_one_key_for_two_members_is_refused() -> None:
    twice = RosterStatement(version=1, previous=b"", members={1: KEYS[1], 2: KEYS[1]})
    with pytest.raises(ProtocolError, match="listed twice"):
        RosterStatement.decode(twice.encoded)
