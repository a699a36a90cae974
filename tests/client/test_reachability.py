"""What keeps a device from its coordinator is named: revocation, clocks, names, proxies."""

from __future__ import annotations

import dataclasses
import datetime as dt
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from client import reachability
from client.identity import Credentials, TlsKey
from client.reachability import admitted, proxy_for
from server.home.folder import Home
from server.home.pki import pem
from tests.e2e.deployment import Port, running_port


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    with running_port(tmp_path_factory.mktemp("port") / "coordinator") as running:
        yield running


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*reachability._PROXIES, "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


def at(monkeypatch: pytest.MonkeyPatch, shift: dt.timedelta) -> None:
    """Set this device's clock."""

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return dt.datetime.now(tz) + shift

    class Module:
        datetime, UTC, timedelta = Clock, dt.UTC, dt.timedelta

    monkeypatch.setattr(reachability, "dt", Module)


def test_a_device_that_is_admitted_and_one_that_was_revoked(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    good, text = admitted(credentials)
    assert good, text
    assert "admits this device over mutual TLS" in text
    port.registry.revoke("a")
    good, text = admitted(credentials)
    assert (good, "refuses this device: node a was revoked" in text) == (False, True)


def test_clocks_names_and_certificates_are_named(
    port: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = port.enroll("b", tmp_path / "b")
    with monkeypatch.context() as patch:
        at(patch, -dt.timedelta(hours=3))
        good, text = admitted(credentials)
        assert not good
        assert "this device's clock says" in text
        assert text.endswith("set the clock")
    with monkeypatch.context() as patch:
        at(patch, dt.timedelta(days=100))
        assert "this device's certificate, or its token, expired on" in admitted(credentials)[1]
        at(patch, dt.timedelta(days=600))
        assert "the coordinator's certificate expired on" in admitted(credentials)[1]
    number = port.address.rpartition(":")[2]
    elsewhere = dataclasses.replace(credentials, coordinator=f"127.1:{number}")
    text = admitted(elsewhere)[1]
    assert "names localhost, 127.0.0.1, not this host" in text
    other = Home.create(tmp_path / "other", hosts=["localhost"])
    stranger = dataclasses.replace(credentials, ca=pem(other.authority.certificate))
    assert "a certificate of another authority" in admitted(stranger)[1]


def test_nobody_there_and_no_tls(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("c", tmp_path / "c")
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        thread = threading.Thread(target=_say, args=(server, b"SSH-2.0-hello\r\n"), daemon=True)
        thread.start()
        spoken = dataclasses.replace(credentials, coordinator=f"127.0.0.1:{number}")
        assert "speaks no TLS" in admitted(spoken)[1]
        thread.join(10)
    assert "not reached: connection refused" in admitted(spoken)[1]


def test_a_proxy_is_used_as_grpc_uses_it_and_named(
    port: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = port.enroll("d", tmp_path / "d")
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{number}")
        thread = threading.Thread(
            target=_say, args=(server, b"HTTP/1.1 403 Forbidden\r\n\r\n"), daemon=True
        )
        thread.start()
        good, text = admitted(credentials)
        thread.join(10)
    assert not good
    assert "'HTTP/1.1 403 forbidden' to connect" in text.lower().replace("http/1.1", "HTTP/1.1")
    assert f"the proxy 127.0.0.1:{number} of $http_proxy; no_proxy spares it" in text
    monkeypatch.setenv("no_proxy", "localhost, 127.0.0.1")
    assert proxy_for("127.0.0.1") is None
    assert admitted(credentials)[0]


def _say(server: socket.socket, text: bytes) -> None:
    line, _ = server.accept()
    with line:
        line.recv(4096)
        line.sendall(text)


def test_a_certificate_that_the_coordinator_never_issued(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("e", tmp_path / "e")
    key = TlsKey.generate()
    stray = port.home.authority.issue_agent(key.csr, node=credentials.node)
    credentials.store_tls(key, stray.public_bytes(Encoding.DER))
    assert "this certificate is no node's" in admitted(Credentials.load(tmp_path / "e"))[1]
