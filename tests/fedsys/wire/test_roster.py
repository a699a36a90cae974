"""One version of the signed roster: what its bytes may be."""

from __future__ import annotations

import pytest

from fedsys.errors import ProtocolError
from fedsys.wire.roster import RosterStatement
from secure_agg import Identity

KEYS = {node: Identity.generate().public_bytes for node in range(1, 6)}


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


def test_the_authority_lists_members_in_one_order() -> None:
    """Otherwise the hash of what was signed would not be that of the list."""
    ordered = RosterStatement(version=1, previous=b"", members={1: KEYS[1], 2: KEYS[2]})
    one, two = (f'[{node},"{KEYS[node].hex()}"]' for node in (1, 2))
    assert f"{one},{two}" in ordered.encoded.decode()
    with pytest.raises(ProtocolError, match="order of members"):
        RosterStatement.decode(
            ordered.encoded.decode().replace(f"{one},{two}", f"{two},{one}").encode()
        )
