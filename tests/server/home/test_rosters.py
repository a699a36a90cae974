"""The roster's versions in the database: read once, small, and enough for every device."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.errors import ConfigError, ProtocolError
from fedsys.wire.roster import RosterStatement, SignedStatement, check_signature, signed_message
from fedsys.wire.roster_chain import RosterChain
from server.home.rosters import Rosters, row_of
from server.home.state import State

AUTHORITY = Ed25519PrivateKey.generate()
KEY = AUTHORITY.public_key().public_bytes_raw()
MEMBERS = {node: bytes([node]) * 32 for node in range(1, 8)}


def members(*nodes: int) -> dict[int, bytes]:
    return {node: MEMBERS[node] for node in nodes}


ONE = RosterStatement(version=1, previous=b"", members=members(1))
TWO = ONE.successor(members(1, 2, 3, 4), colluders=0)
THREE = TWO.successor(members(1, 2, 3, 4, 5), colluders=0)
FOUR = THREE.successor(members(1, 3, 4, 5), colluders=1)
FIVE = FOUR.successor(members(1, 3, 4, 5, 6), colluders=1)
LISTS = [ONE, TWO, THREE, FOUR, FIVE]


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State.create(tmp_path)


def add(state: State, *lists: RosterStatement) -> None:
    with state.transaction() as session:
        for each in lists:
            before = LISTS[each.version - 2] if each.version > 1 else None
            session.add(row_of(before, each, AUTHORITY.sign(signed_message(each.encoded))))


def test_versions_that_another_process_adds_are_followed(state: State) -> None:
    rosters = Rosters(state, KEY)
    assert rosters.chain().newest is None
    assert rosters.news(1, 0) == []
    add(state, ONE, TWO)
    assert rosters.chain().newest == TWO
    add(state, THREE, FOUR, FIVE)
    chain = rosters.chain()
    assert [chain.find(version) for version in range(1, 6)] == LISTS
    assert [len(row.statement) for row in state.rosters(2)] < [len(each.encoded) for each in LISTS]
    state.close()


def test_a_version_whose_transaction_failed_is_not_known(state: State) -> None:
    add(state, ONE)
    rosters = Rosters(state, KEY)
    other = ONE.successor(members(1, 7), colluders=0)
    with state.transaction() as session:
        session.add(row_of(rosters.followed(session).newest, other, bytes(64)))
        session.rollback()
    signature = AUTHORITY.sign(signed_message(other.encoded))
    assert rosters.chain().extend([SignedStatement(statement=other.encoded, signature=signature)])
    add(state, TWO)
    assert rosters.chain().newest == TWO, "what was tried on a copy is forgotten"
    state.close()


@pytest.mark.parametrize(("node", "begins"), [(1, 1), (4, 2), (5, 3), (6, 5), (7, 5)])
def test_a_device_that_holds_none_begins_with_the_list_that_first_names_it(
    state: State, node: int, begins: int
) -> None:
    add(state, *LISTS)
    news = Rosters(state, KEY).news(node, 0)
    chain = RosterChain(key=KEY)
    assert chain.extend(news) == LISTS[begins - 1 :]
    assert news[0].statement == LISTS[begins - 1].encoded
    later = RosterChain(key=KEY)
    later.extend(news[:1])
    later.extend(Rosters(state, KEY).news(node, later.version))
    assert later.newest == FIVE
    state.close()


def test_a_version_is_given_out_in_full_for_those_who_hold_no_other(state: State) -> None:
    add(state, *LISTS)
    rosters = Rosters(state, KEY)
    for each in LISTS:
        signed = rosters.signed(each.version)
        assert signed.statement == each.encoded
        check_signature(signed, KEY)
    with pytest.raises(ConfigError, match="roster version 6: there is none"):
        rosters.signed(6)
    with state.transaction() as session:
        assert rosters.hash_of(session, 4) == FOUR.hash
        assert rosters.hash_of(session, 2**64 - 1) is None
    state.close()


def test_a_row_that_was_changed_is_refused(state: State) -> None:
    add(state, ONE)
    with state.transaction() as session:
        session.add(row_of(ONE, TWO, AUTHORITY.sign(signed_message(THREE.encoded))))
    with pytest.raises(ProtocolError, match="not signed by the pinned authority"):
        Rosters(state, KEY).chain()
    state.close()


def test_a_device_gives_back_what_a_restored_database_lacks(state: State) -> None:
    """Whatever version it began with, as long as the database knows it as a member."""
    add(state, *LISTS)
    lists = Rosters(state, KEY)
    for node in (1, 3, 4):  # the members of version 2, which the backup ends with
        held = lists.news(node, 0)
        chain = RosterChain(key=KEY)
        chain.extend(held)
        restored = RosterChain(key=KEY, complete=True)
        restored.extend(
            SignedStatement(statement=row.statement, signature=row.signature)
            for row in state.rosters()[:2]
        )
        restored.extend(held[2 + 1 - chain.steps[0].version :])
        assert restored.newest == FIVE
    state.close()
