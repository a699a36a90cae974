"""The chain of signed rosters: only the authority's own successor of what is held is accepted."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsys.errors import ProtocolError
from fedsys.wire import roster_chain
from fedsys.wire.roster import RosterStatement, SignedStatement, signed_message
from fedsys.wire.roster_chain import RosterChain, RosterChange, shortest

AUTHORITY = Ed25519PrivateKey.generate()
KEY = AUTHORITY.public_key().public_bytes_raw()
KEYS = {node: hashlib.sha256(node.to_bytes(4)).digest() for node in range(1, 401)}

Form = Callable[[RosterStatement | None, RosterStatement], bytes]


def whole(_before: RosterStatement | None, after: RosterStatement) -> bytes:
    return after.encoded


@pytest.fixture(params=[whole, shortest], ids=["whole", "as changes"])
def form(request: pytest.FixtureRequest) -> Form:
    """How versions travel."""
    found: Form = request.param
    return found


def first(*nodes: int) -> RosterStatement:
    return RosterStatement(version=1, previous=b"", members={node: KEYS[node] for node in nodes})


def after(before: RosterStatement, *nodes: int, colluders: int = 0) -> RosterStatement:
    return before.successor({node: KEYS[node] for node in nodes}, colluders=colluders)


def sign(
    statement: RosterStatement,
    text: bytes | None = None,
    key: Ed25519PrivateKey = AUTHORITY,
) -> SignedStatement:
    return SignedStatement(
        statement=statement.encoded if text is None else text,
        signature=key.sign(signed_message(statement.encoded)),
    )


def travelling(form: Form, lists: Sequence[RosterStatement]) -> list[SignedStatement]:
    before: list[RosterStatement | None] = [None, *lists[:-1]]
    return [sign(new, form(old, new)) for old, new in zip(before, lists, strict=True)]


def test_members_come_and_go_under_the_authoritys_signature(form: Form) -> None:
    one = first(1, 2)
    two = after(one, 1, 2, 3)
    three = after(two, 1, 3, colluders=1)
    news = travelling(form, [one, two, three])
    held = RosterChain(key=KEY)
    assert held.extend(news[:2]) == [one, two]
    assert held.extend(news) == [three], "those that are held are the same"
    assert (held.newest, held.version) == (three, 3)
    assert three.nodes == (1, 3)
    assert RosterStatement.decode(three.encoded) == three
    assert three.roster[1] == KEYS[3]
    second, third = held.after(1)
    assert (second.version, [*second.added], [*second.removed]) == (2, [3], [])
    assert (third.version, [*third.added], [*third.removed], third.colluders) == (3, [], [2], 1)


@pytest.mark.parametrize("attack", ["signer", "chain", "gap", "fork", "key", "returned"])
def test_a_roster_that_grew_unannounced_is_refused(attack: str, form: Form) -> None:
    one = first(1, 2, 5)
    two = after(one, 1, 2)
    held = RosterChain(key=KEY)
    held.extend(travelling(form, [one, two]))
    three = after(two, 1, 2, 3)
    news = sign(three, form(two, three))
    if attack == "signer":
        news = sign(three, form(two, three), Ed25519PrivateKey.generate())
    elif attack == "chain":
        news = sign(dataclasses.replace(three, previous=one.hash), form(two, three))
    elif attack == "gap":
        four = after(three, 1, 2, 3, 4)
        news = sign(four, form(three, four))
    elif attack == "fork":
        other = after(one, 1, 2, 5, 6)
        news = sign(other, form(one, other))
    elif attack == "key":
        other = two.successor({1: KEYS[4], 2: KEYS[2]}, colluders=0)
        news = sign(other, other.encoded)  # no change says it
    else:
        other = two.successor({**two.members, 5: KEYS[6]}, colluders=0)
        news = sign(other, form(two, other))
    with pytest.raises(ProtocolError):
        held.extend([news])
    assert held.newest == two
    assert len(held.steps) == 2
    assert held.extend([sign(three, form(two, three))]) == [three]


def test_a_whole_list_out_of_the_authoritys_hand_must_follow_too() -> None:
    one = first(1, 2)
    held = RosterChain(key=KEY)
    held.extend([sign(one)])
    strange = dataclasses.replace(after(one, 1, 2, 3), previous=first(1).hash)
    with pytest.raises(ProtocolError, match="not a successor"):
        held.extend([sign(strange)])


def test_a_member_that_was_removed_may_return_under_its_own_key(form: Form) -> None:
    one = first(1, 2)
    two = after(one, 1)
    three = after(two, 1, 2)
    held = RosterChain(key=KEY)
    assert held.extend(travelling(form, [one, two, three])) == [one, two, three]


def test_a_device_that_holds_none_begins_with_any_list_and_a_coordinator_with_the_first() -> None:
    lists = [first(1)]
    for node in range(2, 7):
        lists.append(after(lists[-1], *range(1, node + 1)))
    news = travelling(shortest, lists)
    late = RosterChain(key=KEY)
    late.extend([sign(lists[3]), *news[4:]])
    assert late.newest == lists[-1]
    assert [late.find(version) for version in range(8)] == [None] * 4 + lists[3:] + [None]
    assert [step.version for step in late.after(0)] == [4, 5, 6]
    assert late.extend(news[1:5]) == [], "changes of before it are ignored"
    with pytest.raises(ProtocolError, match="version 3 does not follow 6"):
        late.extend([sign(lists[2])])
    coordinator = RosterChain(key=KEY, complete=True)
    with pytest.raises(ProtocolError, match="version 4 does not follow 0"):
        coordinator.extend([sign(lists[3])])
    for chain in (coordinator, RosterChain(key=KEY)):
        with pytest.raises(ProtocolError, match="version 2 does not follow 0"):
            chain.extend(news[1:])


def test_another_change_under_a_version_that_is_held_is_refused() -> None:
    one = first(1, 2)
    two, other = after(one, 1, 2, 3), after(one, 1, 2, 4)
    held = RosterChain(key=KEY)
    held.extend(travelling(shortest, [one, two]))
    with pytest.raises(ProtocolError, match="differs from the one accepted before"):
        held.extend([sign(other, shortest(one, other))])


@given(
    st.lists(
        st.tuples(st.sets(st.integers(1, 12), min_size=1), st.integers(0, 12)),
        min_size=2,
        max_size=8,
    ),
    st.integers(0, 6),
)
@settings(max_examples=60, deadline=None)
def test_every_list_comes_out_as_it_was_signed(
    histories: list[tuple[set[int], int]], begin: int
) -> None:
    lists = [first(*sorted(histories[0][0]))]
    for nodes, colluders in histories[1:]:
        lists.append(after(lists[-1], *sorted(nodes), colluders=min(colluders, len(nodes))))
    begin = min(begin, len(lists) - 1)
    chain = RosterChain(key=KEY)
    chain.extend([sign(lists[begin]), *travelling(shortest, lists)[begin + 1 :]])
    copy = chain.copy()
    for statement in lists[begin:]:
        found = copy.find(statement.version)
        assert found is not None
        assert found.encoded == statement.encoded
        step = copy.step(statement.version)
        assert step is not None
        assert step.hash == statement.hash


def test_enrolments_cost_each_device_a_text_that_grows_as_they_do() -> None:
    """Of a thousand it is 0.19 MB; as whole lists it would be 37 MB."""
    chain, size, sizes = RosterChain(key=KEY), 0, {}
    statement = first(1)
    news = sign(statement)
    for count in range(1, 401):
        assert chain.accept(news) is not None
        size += len(news.statement) + len(news.signature)
        sizes[count] = size
        if count < 400:
            before, statement = statement, after(statement, *range(1, count + 2))
            news = sign(statement, shortest(before, statement))
    assert sizes[400] < 400 * 200
    assert sizes[400] < 2.1 * sizes[200]
    assert chain.newest == statement


@pytest.mark.parametrize(
    "text",
    [
        b'{"added":[],"colluders":0,"removed":[],"version":1}',
        b'{"added":[],"colluders":0,"removed":[],"version":2.0}',
        b'{"added":[],"colluders":true,"removed":[],"version":2}',
        b'{"added":[],"colluders":0,"removed":[2,1],"version":2}',
        b'{"added":[],"colluders":0,"removed":[1,1],"version":2}',
        b'{"added":[],"colluders":0,"removed":7,"version":2}',
        b'{"added":[[1,"00"]],"colluders":0,"removed":[],"version":2}',
        b'{"added":7,"colluders":0,"removed":[],"version":2}',
        b'{"added":[],"colluders":0,"removed":[],"version":2,"x":1}',
        b'{"added":[], "colluders":0,"removed":[],"version":2}',
        b'{"added":' + b"[" * 100_000,
    ],
)
def test_malformed_changes_are_refused(text: bytes) -> None:
    chain = RosterChain(key=KEY)
    chain.extend([sign(first(1, 2))])
    with pytest.raises(ProtocolError):
        chain.accept(SignedStatement(statement=text, signature=bytes(64)))


def test_a_change_is_bounded_before_it_is_read() -> None:
    chain = RosterChain(key=KEY)
    chain.extend([sign(first(1, 2))])
    large = b'{"added":[' + b"0" * (1 << 20)
    with pytest.raises(ProtocolError, match="of 1048586 bytes: at most 1048576"):
        chain.accept(SignedStatement(statement=large, signature=bytes(64)))


@pytest.mark.parametrize(
    "change",
    [
        RosterChange(version=2, added={}, removed=(9,), colluders=0),
        RosterChange(version=2, added={1: KEYS[1]}, removed=(), colluders=0),
        RosterChange(version=2, added={1: KEYS[1]}, removed=(1,), colluders=0),
        RosterChange(version=2, added={3: KEYS[1]}, removed=(), colluders=0),
        RosterChange(version=2, added={}, removed=(), colluders=3),
        RosterChange(version=2, added={}, removed=(), colluders=-1),
        RosterChange(version=3, added={}, removed=(), colluders=0),
    ],
)
def test_a_change_that_makes_no_list_is_refused(change: RosterChange) -> None:
    with pytest.raises(ProtocolError):
        RosterChange.decode(change.encoded).applied(first(1, 2))


def test_what_changes_too_much_travels_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    one = first(*range(1, 20))
    two = after(one, *range(11, 30))
    assert len(shortest(one, two)) < len(two.encoded)
    monkeypatch.setattr(roster_chain, "_MOST", 500)
    assert shortest(one, two) == two.encoded
