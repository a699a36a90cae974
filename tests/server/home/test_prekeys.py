"""Sealing keys that devices leave: checked, bounded, each given out once, over crashes too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.grpc_host import Backoff, ConnectionHost
from client.policy import Policy
from client.session import Session
from fedsys.errors import ProtocolError
from fedsys.wire import fleet_pb2
from fedsys.wire.services import MAX_PREKEYS, PREKEYS
from secure_agg import Identity, MemoryStore, SealingKeys
from server.home.prekeys import Prekeys
from server.home.state import NodeRow, PrekeyRow, State
from simulations.testbed.crowd import Still
from tests.e2e.deployment import running_port


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State.create(tmp_path)
    yield found
    found.close()


def enrol(state: State, node: int) -> SealingKeys:
    identity = Identity.generate()
    with state.transaction() as session:
        session.add(
            NodeRow(
                id=node,
                name=f"n{node}",
                identity=identity.public_bytes,
                status="active",
                enrolled_at=0.0,
            )
        )
    return SealingKeys(identity)


def test_each_key_is_given_out_once_the_oldest_first(state: State, tmp_path: Path) -> None:
    one, two = enrol(state, 1), enrol(state, 2)
    pool = Prekeys(state)
    first, second = one.issue(3), two.issue(1)
    assert pool.add(1, first) == 3
    assert pool.add(2, second) == 1
    assert pool.take([1, 2, 3]) == {1: first[0], 2: second[0]}
    again = Prekeys(State.open(tmp_path))  # the coordinator was killed
    assert again.take([1, 2]) == {1: first[1]}
    assert again.counts([1, 2, 3]) == {1: 1, 2: 0, 3: 0}
    assert again.held(1) == 1


def test_a_pool_is_bounded(state: State) -> None:
    keys, pool = enrol(state, 1), Prekeys(state)
    for _ in range(5):
        pool.add(1, keys.issue(8))
    assert pool.held(1) == MAX_PREKEYS
    with pytest.raises(ProtocolError, match=f"at most {MAX_PREKEYS}"):
        pool.add(1, keys.issue(MAX_PREKEYS + 1))
    assert pool.held(1) == MAX_PREKEYS


def test_each_suite_has_a_pool_of_its_own(state: State) -> None:
    keys, pool = enrol(state, 1), Prekeys(state)
    usual, hybrid = keys.issue(2), keys.issue(MAX_PREKEYS, suite=2)
    assert pool.add(1, usual) == 2
    assert pool.add(1, hybrid) == 2 + MAX_PREKEYS
    assert pool.add(1, keys.issue(1, suite=2)) == 2 + MAX_PREKEYS, "one too many of that suite"
    assert (pool.held(1), pool.held(1, suite=2)) == (2, MAX_PREKEYS)
    assert pool.take([1], suite=2) == {1: hybrid[0]}
    assert pool.take([1]) == {1: usual[0]}
    assert pool.counts([1], suite=2) == {1: MAX_PREKEYS - 1}
    assert pool.counts([1]) == {1: 1}
    pool.take([1])
    assert pool.take([1]) == {}, "no round gets a key of the other suite"


def test_only_the_nodes_own_keys_are_kept(state: State) -> None:
    enrol(state, 1)
    stranger, pool = SealingKeys(Identity.generate()), Prekeys(state)
    (foreign,) = stranger.issue(1)
    for bad in (foreign, b"", bytes(97), foreign[:-1] + b"\0"):
        with pytest.raises(ProtocolError, match="a sealing key of node 1"):
            pool.add(1, [bad])
    with pytest.raises(ProtocolError, match="never enrolled"):
        pool.add(7, [foreign])
    with state.transaction() as session:
        assert session.query(PrekeyRow).count() == 0


def test_one_that_does_not_hold_keeps_the_others_out(state: State) -> None:
    """Nothing of such a message is believed."""
    keys, pool = enrol(state, 1), Prekeys(state)
    with pytest.raises(ProtocolError):
        pool.add(1, [*keys.issue(1), b"junk"])
    assert pool.held(1) == 0


def test_a_key_sent_twice_is_kept_once(state: State) -> None:
    keys, pool = enrol(state, 1), Prekeys(state)
    given = keys.issue(2)
    pool.add(1, given)
    assert pool.add(1, given) == 2


def test_a_greeting_replaces_what_the_device_has_lost(state: State) -> None:
    keys, pool = enrol(state, 1), Prekeys(state)
    pool.add(1, keys.issue(5))
    fresh = keys.issue(2)
    greeting = fleet_pb2.Up(hello=fleet_pb2.Hello(node=1, prekeys=fresh))
    pool.keep(1, greeting)
    assert pool.held(1) == 2
    assert not greeting.hello.prekeys
    pool.keep(1, fleet_pb2.Up(hello=fleet_pb2.Hello(node=1)))  # nothing was lost
    assert pool.held(1) == 2
    more = keys.issue(1)
    pool.keep(1, fleet_pb2.Up(consent=fleet_pb2.Consent(prekeys=more)))
    pool.keep(1, fleet_pb2.Up(prekeys=fleet_pb2.Prekeys(prekeys=keys.issue(1))))
    pool.keep(1, fleet_pb2.Up(answer=fleet_pb2.Answer()))
    assert pool.held(1) == 4
    assert pool.take([1]) == {1: fresh[0]}


def test_no_more_signatures_are_checked_than_may_be_kept(state: State) -> None:
    keys, checked = enrol(state, 1), []
    pool = Prekeys(state, check=lambda _key, statement: checked.append(statement))
    with pytest.raises(ProtocolError):
        pool.add(1, [b"x"] * (MAX_PREKEYS + 1))
    assert not checked
    pool.add(1, keys.issue(2))
    assert len(checked) == 2


@contextmanager
def connected(session: Session) -> Iterator[None]:
    """Over real sockets, as a device holds its connection."""
    host = ConnectionHost(session, backoff=Backoff(first=0.05, most=0.1))
    thread = threading.Thread(target=host.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        host.stop()
        thread.join(120)
        assert not thread.is_alive()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_a_device_sends_is_kept_and_goes_with_its_membership(tmp_path: Path) -> None:
    with running_port(tmp_path / "c") as port:
        credentials = port.enroll("ward", tmp_path / "ward")
        pool = port.registry.prekeys
        volatile = MemoryStore()

        def session() -> Session:
            return Session(
                credentials=credentials, worker=Still(), policy=Policy, volatile=volatile
            )

        with connected(session()):
            until(lambda: pool.held(1) == PREKEYS)
        (first,) = pool.take([1]).values()
        with connected(session()):  # started again: it has the private halves, and sends none
            until(lambda: 1 in port.fleet.links)
        assert pool.held(1) == PREKEYS - 1
        volatile.data = None  # and now the machine was booted
        with connected(session()):
            until(lambda: pool.held(1) == PREKEYS)
        (second,) = pool.take([1]).values()
        assert first != second
        port.registry.revoke("ward")
        assert pool.held(1) == 0


def test_a_session_that_brings_others_keys_is_ended(tmp_path: Path) -> None:
    with running_port(tmp_path / "c") as port:
        credentials = port.enroll("ward", tmp_path / "ward")
        session = Session(
            credentials=credentials, worker=Still(), policy=Policy, volatile=MemoryStore()
        )
        ended: list[str] = []

        class Thief(Session):
            def hello(self) -> fleet_pb2.Up:
                greeting = super().hello()
                del greeting.hello.prekeys[:]
                greeting.hello.prekeys.extend(SealingKeys(Identity.generate()).issue(1))
                return greeting

            def handle(self, message: fleet_pb2.Down) -> fleet_pb2.Up | None:
                if message.HasField("goodbye"):
                    ended.append(message.goodbye.text)
                return super().handle(message)

        session.__class__ = Thief
        with connected(session):
            until(lambda: bool(ended))
        assert "a sealing key of node 1" in ended[0]
        assert port.registry.prekeys.held(1) == 0
        assert not port.fleet.links
