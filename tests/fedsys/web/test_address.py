"""Where a page may listen: here, and nowhere that others reach."""

from __future__ import annotations

import doctest
import socket
import stat
from pathlib import Path

import pytest

from fedsys.errors import ConfigError
from fedsys.web import address
from fedsys.web.address import WebAddress


def test_the_examples_run() -> None:
    assert doctest.testmod(address).failed == 0


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:7480", "http://127.0.0.1:7480/#token=ab"),
        ("127.0.0.1:7480", "http://127.0.0.1:7480/#token=ab"),
        ("127.8.9.1:7480", "http://127.8.9.1:7480/#token=ab"),
        ("[::1]:7480", "http://[::1]:7480/#token=ab"),
        ("unix:/run/x.sock", "http://127.0.0.1:7480/#token=ab"),
    ],
)
def test_addresses_of_this_machine_are_taken(text: str, url: str) -> None:
    assert WebAddress.parse(text).url(7480, "ab") == url


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.0.0.0:7480", "others could reach it"),
        ("[::]:7480", "others could reach it"),
        ("192.168.1.2:7480", "others could reach it"),
        ("8.8.8.8:7480", "others could reach it"),
        ("example.org:7480", "others could reach it"),
        ("localhost.example.org:7480", "others could reach it"),
        ("2130706433:7480", "others could reach it"),
        (":7480", "not an address"),
        ("7480", "not an address"),
        ("localhost", "not an address"),
        ("localhost:x", "not an address"),
        ("localhost:70000", "not an address"),
        ("http://localhost:7480", "not an address"),
        ("unix:web.sock", "is absolute"),
        ("unix:", "is absolute"),
        ("unix:/" + "x" * 100, "at most 100 bytes"),
    ],
)
def test_every_other_address_is_refused_in_a_line(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        WebAddress.parse(text)
    assert "\n" not in str(refused.value)


def test_a_socket_is_for_its_owner_and_takes_the_place_of_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    found = WebAddress.parse(f"unix:{path}")
    with found.listen():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(OSError, match="in use"):
            found.listen()
        assert path.is_socket()
    with found.listen():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    path.write_text("somebody's file")
    with pytest.raises(OSError, match="in use"):
        found.listen()
    assert path.read_text() == "somebody's file"


def test_the_system_chooses_a_port() -> None:
    with WebAddress.parse("localhost:0").listen() as one:
        host, port = one.getsockname()
        assert (host, port > 0) == ("127.0.0.1", True)
        with pytest.raises(OSError, match="in use"):
            WebAddress.parse(f"localhost:{port}").listen()
        assert one.family == socket.AF_INET
