"""The testbed's own parts; short trials of every fault are in tests/e2e/test_deployment_faults."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from simulations.testbed.faults import FAULTS
from simulations.testbed.proxy import Proxy, Weather
from simulations.testbed.resources import Sample, leaks, longest_lives
from simulations.testbed.trial import Report, endless

PATIENCE = 60


@contextmanager
def echo() -> Iterator[int]:
    """A server that sends back what it hears; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(connection: socket.socket) -> None:
            with connection:
                try:
                    while heard := connection.recv(1 << 16):
                        connection.sendall(heard)
                except OSError:
                    return

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept


@contextmanager
def dialled(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as connection:
        yield connection


def said_back(connection: socket.socket, content: bytes) -> bytes:
    """Send, and read as many bytes, or what came before the end."""
    sender = threading.Thread(target=connection.sendall, args=(content,), daemon=True)
    sender.start()
    heard = b""
    while len(heard) < len(content):
        more = connection.recv(1 << 16)
        if not more:
            break
        heard += more
    sender.join(PATIENCE)
    return heard


def hung_up(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"x")
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_bytes_come_in_order_however_late() -> None:
    content = random.Random(1).randbytes(300_000)
    with echo() as port, Proxy(lambda: ("127.0.0.1", port)) as proxy, dialled(proxy) as connection:
        proxy.weather = Weather(latency=0.002, jitter=0.02, rate=3e7)
        assert said_back(connection, content) == content
        assert proxy.records[0] == content
        assert (proxy.counts.connections, proxy.counts.flipped) == (1, 0)


def test_bits_flip_as_often_as_counted() -> None:
    content = bytes(50_000)
    with echo() as port, Proxy(lambda: ("127.0.0.1", port)) as proxy, dialled(proxy) as connection:
        proxy.weather = Weather(corrupt=1.0)
        heard = said_back(connection, content)
        flipped = int.from_bytes(heard, "big").bit_count()
        assert len(heard) == len(content)
        # the same bit may be hit twice, once on each way
        assert 0 < flipped <= proxy.counts.flipped
        assert (proxy.counts.flipped - flipped) % 2 == 0


def test_connections_are_cut_and_kept_out() -> None:
    with echo() as port, Proxy(lambda: ("127.0.0.1", port)) as proxy:
        with dialled(proxy) as connection:
            assert said_back(connection, b"hello") == b"hello"
            assert proxy.cut() == 1
            assert hung_up(connection)
        proxy.weather = Weather(closed=True)
        with dialled(proxy) as connection:
            assert hung_up(connection)
        proxy.weather = Weather(cut=1.0)
        with dialled(proxy) as connection:
            assert hung_up(connection)
        proxy.weather = Weather()
        with dialled(proxy) as connection:
            assert said_back(connection, b"again") == b"again"


def test_nobody_upstream_is_a_connection_that_ends() -> None:
    with echo() as port:
        pass
    with Proxy(lambda: ("127.0.0.1", port)) as proxy, dialled(proxy) as connection:
        assert hung_up(connection)


def sample(age: float, **values: int) -> Sample:
    fields = {"pid": 1, "rss": 300_000_000, "threads": 9, "descriptors": 13} | values
    return Sample(name="a0", age=age, **fields)


@pytest.mark.parametrize(
    ("grown", "said"),
    [
        ({"rss": 340_000_000}, "40.0 MB"),
        ({"threads": 30}, "30 threads"),
        ({"descriptors": 40}, "40 descriptors"),
    ],
)
def test_a_leak_is_seen(grown: dict[str, int], said: str) -> None:
    life = [sample(1.0), sample(50.0), sample(100.0, **grown)]
    assert said in leaks(life)[0]
    other = [sample(200.0, pid=2)]
    assert longest_lives([*life, *other]) == [other]


def test_what_grows_while_it_warms_up_is_no_leak() -> None:
    life = [sample(1.0, rss=200_000_000, threads=1), sample(50.0), sample(100.0)]
    assert leaks(life) == []
    assert leaks([sample(0.5, rss=200_000_000), sample(50.0)]) == []
    # away at first, connected at last
    assert leaks([sample(50.0, threads=1, descriptors=7), sample(100.0)]) == []
    # a process that was started again is another one
    assert leaks([sample(70.0), sample(70.0, pid=2, threads=50)]) == []


def test_a_report_names_what_did_not_hold() -> None:
    report = Report()
    report.claim("one", True)
    assert report.passed
    report.claim("two", False, "because")
    assert not report.passed
    assert report.broken == "two: because"
    assert "BROKEN  two  because" in report.lines()


def test_a_wrong_clock_is_wrong_everywhere_in_python_but_monotonic() -> None:
    code = """
import datetime as dt, time
from simulations.testbed.wall_clock import shift_wall_clock
wall, steady, now = time.time(), time.monotonic(), dt.datetime.now(dt.UTC)
shift_wall_clock(-5000)
assert -5000 <= time.time() - wall < -4000
assert 0 <= time.monotonic() - steady < 1000
assert -5000 <= (dt.datetime.now(dt.UTC) - now).total_seconds() < -4000
assert abs(dt.datetime.now(dt.UTC).timestamp() - time.time()) < 1000
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=PATIENCE)


def test_every_fault_says_what_it_is() -> None:
    assert set(FAULTS) == {
        *("kill", "stop", "pause", "slow", "cut", "corrupt", "replay", "disk", "clock")
    }
    assert all(fault.meaning for fault in FAULTS.values())
    assert endless(5).population.clients == 5


@pytest.mark.slow
@pytest.mark.parametrize("wish", [signal.SIGTERM, signal.SIGINT])
def test_whoever_stops_it_stops_all_parties(wish: signal.Signals) -> None:
    command = [sys.executable, "-m", "simulations.testbed", "--fault", "kill", "--agents", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as bed:
        assert bed.stdout is not None
        assert "kill" in bed.stdout.readline()
        parties = psutil.Process(bed.pid).children(recursive=True)
        bed.send_signal(wish)
        bed.communicate(timeout=60)
    assert bed.returncode == 128 + wish
    assert parties
    _gone, left = psutil.wait_procs(parties, timeout=30)
    assert not left
