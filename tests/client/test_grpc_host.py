"""A device's connection ends when it is told to, at any moment, and holds nothing that is done."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from client.grpc_host import Backoff, ConnectionHost
from client.identity import Credentials
from client.policy import Policy
from client.session import Session
from fedsys.wire import fleet_pb2
from fedsys.wire.frames import Frame, split
from fedsys.wire.limits import down_limits
from fedsys.wire.roster_chain import RosterChain
from server import grpc_host
from server.home.recovery import recover
from server.home.state import CertificateRow, NodeRow, RosterRow, TokenRow
from simulations.testbed.crowd import Still
from tests.e2e.deployment import running_port

PATIENCE = 120


def session_of(credentials: Credentials) -> Session:
    return Session(credentials=credentials, worker=Still(), policy=Policy)


def test_told_to_stop_while_it_dials_it_does_not_wait_for_the_coordinator(tmp_path: Path) -> None:
    with running_port(tmp_path / "coordinator") as port:
        session = session_of(port.enroll("ward", tmp_path / "agent"))
        host = ConnectionHost(session, backoff=Backoff(first=0.01, most=0.01))

        class Dialling(Session):
            def hello(self) -> fleet_pb2.Up:
                host.stop()  # where a signal may arrive: connected, with no stream yet
                return super().hello()

        session.__class__ = Dialling
        thread = threading.Thread(target=host.run, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_told_to_stop_while_it_is_connected_it_hangs_up(tmp_path: Path) -> None:
    with running_port(tmp_path / "coordinator") as port:
        session = session_of(port.enroll("ward", tmp_path / "agent"))
        host = ConnectionHost(session, backoff=Backoff(first=0.01, most=0.01))
        greeted = threading.Event()

        class Listening(Session):
            def handle(self, message: fleet_pb2.Down) -> fleet_pb2.Up | None:
                greeted.set()
                return super().handle(message)

        session.__class__ = Listening
        thread = threading.Thread(target=host.run, daemon=True)
        thread.start()
        assert greeted.wait(PATIENCE)
        host.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_copied_folder_that_connects_does_not_silence_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_host, "_RIVAL_SECONDS", 0.01)
    with running_port(tmp_path / "coordinator") as port:
        first = session_of(port.enroll("ward", tmp_path / "agent"))
        shutil.copytree(tmp_path / "agent", tmp_path / "copy")
        second = session_of(Credentials.load(tmp_path / "copy"))
        told: list[str] = []

        class Copy(Session):
            def handle(self, message: fleet_pb2.Down) -> fleet_pb2.Up | None:
                told.append(message.goodbye.text)
                return super().handle(message)

        second.__class__ = Copy
        hosts = [
            ConnectionHost(each, backoff=Backoff(first=0.01, most=0.01)) for each in (first, second)
        ]
        threads = [threading.Thread(target=each.run, daemon=True) for each in hosts]
        try:
            threads[0].start()
            _until(lambda: bool(port.fleet.links))
            link = port.fleet.links[1]
            threads[1].start()
            _until(lambda: len(told) > 1 and bool(first.warning))
            assert port.fleet.links[1] is link, "the first session goes on"
            assert "another agent with this device's keys is connected" in told[0]
            assert "127.0.0.1" in first.warning
            assert list(port.fleet.copies) == [1]
            hosts[0].stop()
            _until(lambda: port.fleet.links.get(1) not in (None, link))
        finally:
            for host in hosts:
                host.stop()
            for thread in threads:
                thread.join(PATIENCE)


AGENT = """
import sys
from pathlib import Path
from client.grpc_host import ConnectionHost
from client.identity import Credentials
from client.policy import Policy
from client.session import Session
from simulations.testbed.crowd import Still

credentials = Credentials.load(Path(sys.argv[1]))
ConnectionHost(Session(credentials=credentials, worker=Still(), policy=Policy)).run()
"""


def test_a_device_that_lost_power_is_back_once_its_old_connection_is_known_to_be_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old process is frozen: nothing tells the coordinator that it is gone."""
    seconds = ("keepalive_time_ms", "keepalive_timeout_ms", "http2.ping_timeout_ms")
    quick = {f"grpc.{name}": 1000 for name in seconds}
    options = tuple({**dict(grpc_host.SERVER_OPTIONS), **quick}.items())
    monkeypatch.setattr(grpc_host, "SERVER_OPTIONS", options)
    monkeypatch.setattr(grpc_host, "_RIVAL_SECONDS", PATIENCE)
    with running_port(tmp_path / "coordinator") as port:
        port.enroll("ward", tmp_path / "agent")
        shutil.copytree(tmp_path / "agent", tmp_path / "again")
        old = subprocess.Popen([sys.executable, "-c", AGENT, str(tmp_path / "agent")])
        host = ConnectionHost(session_of(Credentials.load(tmp_path / "again")))
        thread = threading.Thread(target=host.run, daemon=True)
        try:
            _until(lambda: bool(port.fleet.links))
            dead = port.fleet.links[1]
            old.send_signal(signal.SIGSTOP)
            thread.start()
            _until(lambda: port.fleet.links.get(1) not in (None, dead))
            assert not port.fleet.copies, "nobody is taken for a copy"
        finally:
            old.kill()
            old.wait()
            host.stop()
            thread.join(PATIENCE)


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


BIG = 8 << 20


@contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


class Wire:
    """A channel whose other end sends one big message, then has the host stopped.

    Attributes:
        held: bytes that this process holds more than before the big message, once it was handled
            and its answer was taken.
    """

    def __init__(self, frames: list[bytes]) -> None:
        self.held: int | None = None
        self._frames = iter(frames)
        self._taken = threading.Semaphore(0)
        self._before = 0

    def stream_stream(self, _path: str) -> Any:
        return self._open

    def _open(self, requests: Iterator[bytes]) -> Wire:
        next(requests)  # the greeting
        threading.Thread(target=self._drain, args=(requests,), daemon=True).start()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def _drain(self, requests: Iterator[bytes]) -> None:
        for frame in requests:
            last = Frame.decode(frame)
            if last.offset + len(last.data) == last.size:
                self._taken.release()
            del frame, last

    def __iter__(self) -> Wire:
        return self

    def __next__(self) -> bytes:
        for frame in self._frames:
            return frame
        assert self._taken.acquire(timeout=PATIENCE), "there was no answer"
        until = time.monotonic() + 20
        while self._more() > BIG // 2 and time.monotonic() < until:
            time.sleep(0.01)  # anyone who took the answer is about to wait for the next
        self.held = self._more()
        raise StopIteration

    def _more(self) -> int:
        return tracemalloc.get_traced_memory()[0] - self._before

    def cancel(self) -> None:
        """Nobody is there."""


@pytest.mark.parametrize("size", ["big question", "big answer"])
def test_nothing_that_was_handled_is_held_while_nothing_is_said(
    size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that waits for its next round keeps neither the last model nor its upload."""
    asked = BIG if size == "big question" else 1
    down = fleet_pb2.Down(model=fleet_pb2.Model(weights=bytes(asked))).SerializeToString()
    wire = Wire(list(split(0, down)))
    with running_port(tmp_path / "coordinator") as port:
        session = session_of(port.enroll("ward", tmp_path / "agent"))

    class Answering(Session):
        @property
        def limits(self) -> Mapping[str, int]:
            return down_limits(dimension=BIG)

        def handle(self, message: fleet_pb2.Down) -> fleet_pb2.Up | None:
            answer = fleet_pb2.Answer(message=bytes(BIG + 1 - len(message.model.weights)))
            return fleet_pb2.Up(answer=answer)

    session.__class__ = Answering
    host = ConnectionHost(session, backoff=Backoff(first=0.01, most=0.01))

    @contextmanager
    def channel(_address: str, **_keys: bytes) -> Iterator[Wire]:
        yield wire
        host.stop()

    monkeypatch.setattr("client.grpc_host.open_channel", channel)
    with traced():
        host.run()
    assert wire.held is not None
    assert wire.held < BIG // 2


def sent(*downs: fleet_pb2.Down) -> list[bytes]:
    return [
        frame
        for number, down in enumerate(downs)
        for frame in split(number, down.SerializeToString())
    ]


class Hearing(Wire):
    """A channel that sends frames, and ends."""

    def __next__(self) -> bytes:
        return next(self._frames)


@pytest.mark.parametrize(
    ("downs", "heard"),
    [
        (
            (
                fleet_pb2.Down(model=fleet_pb2.Model(weights=bytes(BIG))),
                fleet_pb2.Down(outcome=fleet_pb2.Outcome()),
            ),
            ["outcome"],  # the model of no job is let pass
        ),
        (
            (
                fleet_pb2.Down(offer=fleet_pb2.Offer(terms=bytes(BIG))),
                fleet_pb2.Down(outcome=fleet_pb2.Outcome()),
            ),
            [],  # the session ends
        ),
        (
            (
                fleet_pb2.Down(welcome=fleet_pb2.Welcome(roster=[fleet_pb2.SignedRoster()] * 999)),
                fleet_pb2.Down(outcome=fleet_pb2.Outcome()),
            ),
            [],
        ),
    ],
)
def test_what_was_not_agreed_to_is_neither_held_nor_parsed(
    downs: tuple[fleet_pb2.Down, ...],
    heard: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running_port(tmp_path / "coordinator") as port:
        session = session_of(port.enroll("ward", tmp_path / "agent"))
    found: list[str] = []

    class Listening(Session):
        def handle(self, message: fleet_pb2.Down) -> fleet_pb2.Up | None:
            found.append(str(message.WhichOneof("content")))
            return None

    session.__class__ = Listening
    host = ConnectionHost(session, backoff=Backoff(first=0.01, most=0.01))

    @contextmanager
    def channel(_address: str, **_keys: bytes) -> Iterator[Wire]:
        try:
            yield Hearing(sent(*downs))
        finally:
            host.stop()

    monkeypatch.setattr("client.grpc_host.open_channel", channel)
    host.run()
    assert found == heard


def test_lists_that_a_coordinator_lost_come_back_over_the_connection(tmp_path: Path) -> None:
    with running_port(tmp_path / "coordinator") as port:
        session = session_of(port.enroll("a", tmp_path / "a"))
        for name in ("b", "c"):
            port.enroll(name, tmp_path / name)
        _connect_until(session, lambda: session.chain.version == 3)
        with port.state.transaction() as database:  # what an older backup does not have
            for table in (CertificateRow, TokenRow):
                database.execute(delete(table).where(table.node == 3))
            database.execute(delete(NodeRow).where(NodeRow.id == 3))
            database.execute(delete(RosterRow).where(RosterRow.version > 1))
        # A backup is read by a process that has read nothing before.
        rosters = port.registry.rosters
        rosters._chain = RosterChain(key=rosters.chain().key, complete=True)
        assert port.registry.roster_version() == 1
        _connect_until(session, lambda: port.registry.roster_version() == 3)
        assert [row.name for row in port.state.nodes()] == ["a", "b", "restored-3"]
        assert "a holds roster version 3, and this coordinator 1" in port.registry.continuity.held
        recover(port.state, port.registry, act=True)
        assert not port.registry.continuity.held
        newcomer = session_of(Credentials.load(tmp_path / "c"))
        _connect_until(newcomer, lambda: 3 in port.fleet.links)


def _connect_until(session: Session, holds: Callable[[], bool]) -> None:
    host = ConnectionHost(session, backoff=Backoff(first=0.01, most=0.01))
    thread = threading.Thread(target=host.run, daemon=True)
    thread.start()
    try:
        _until(holds)
    finally:
        host.stop()
        thread.join(PATIENCE)
