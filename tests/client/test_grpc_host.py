"""A device's connection ends when it is told to, at any moment."""

from __future__ import annotations

import threading
from pathlib import Path

from client.grpc_host import Backoff, ConnectionHost
from client.identity import Credentials
from client.policy import Policy
from client.session import Session
from fedsys.wire import fleet_pb2
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
