"""Faults that can strike a deployment, by name; each is over when its function returns."""

from __future__ import annotations

import random
import resource
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from simulations.testbed.federation import COORDINATOR, Federation, TestbedError
from simulations.testbed.proxy import FAIR, Proxy, Weather

__all__ = ["FAULTS", "Fault", "replay"]

_DAY = 86_400.0
_PATIENCE = 30.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of failure or attack.

    Attributes:
        name: Name on the command line.
        meaning: Description in one line.
        network: Whether it needs the proxy.
        strike: Injects the fault; returns a description of what it did.
    """

    name: str
    meaning: str
    network: bool = False
    strike: Callable[[Federation, random.Random], str]


def _kill(federation: Federation, dice: random.Random) -> str:
    victim = _victim(federation, dice)
    away = dice.choice((0.0, 0.0, dice.uniform(0.0, 3.0)))
    federation.stop(victim, signal.SIGKILL)
    time.sleep(away)
    federation.start(victim)
    return f"{victim} killed, started again after {away:.1f} s"


def _stop(federation: Federation, dice: random.Random) -> str:
    victim = _victim(federation, dice)
    federation.stop(victim, signal.SIGTERM)
    federation.start(victim)
    return f"{victim} stopped with SIGTERM and started again"


def _pause(federation: Federation, dice: random.Random) -> str:
    victim, seconds = _victim(federation, dice), dice.uniform(0.1, 6.0)
    federation.signal(victim, signal.SIGSTOP)
    time.sleep(seconds)
    federation.signal(victim, signal.SIGCONT)
    return f"{victim} paused for {seconds:.1f} s"


def _slow(federation: Federation, dice: random.Random) -> str:
    weather = Weather(
        latency=dice.uniform(0.02, 0.2), jitter=dice.uniform(0.0, 0.1), rate=dice.uniform(5e4, 5e6)
    )
    seconds = _under(federation, weather, dice.uniform(2.0, 6.0))
    return (
        f"for {seconds:.1f} s {1000 * weather.latency:.0f} ms later, up to "
        f"{1000 * weather.jitter:.0f} ms jitter, {weather.rate or 0:,.0f} bytes a second"
    )


def _cut(federation: Federation, dice: random.Random) -> str:
    proxy = _proxy(federation)
    seconds = dice.choice((0.0, dice.uniform(0.0, 4.0)))
    proxy.weather = Weather(closed=True)
    cut = proxy.cut()
    time.sleep(seconds)
    proxy.weather = FAIR
    return f"{cut} connections cut, none let through for {seconds:.1f} s"


def _corrupt(federation: Federation, dice: random.Random) -> str:
    proxy = _proxy(federation)
    before = proxy.counts.flipped
    end = time.monotonic() + _PATIENCE
    while proxy.counts.flipped == before and time.monotonic() < end:
        _under(federation, Weather(corrupt=0.3), dice.uniform(0.5, 3.0))
    return f"{proxy.counts.flipped - before} bits flipped under way"


def _replay(federation: Federation, dice: random.Random) -> str:
    records = [record for record in _proxy(federation).records if len(record) > 2000]
    if not records:
        return "nothing was recorded yet"
    record = dice.choice(records)
    said = replay(federation.port, record)
    return f"{len(record)} recorded bytes sent again; hung up on after {said} bytes of answer"


def replay(port: int, record: bytes) -> int:
    """Send what an agent once sent, as anybody on the path could: its ClientHello, then the rest.

    Args:
        port: The coordinator's port.
        record: The agent's TLS records, from the first on.

    Returns:
        Number of bytes that the coordinator sent before it hung up.

    Raises:
        TestbedError: The coordinator did not hang up.
    """
    greeting = 5 + int.from_bytes(record[3:5], "big")
    said = 0
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as stranger:
        try:
            stranger.sendall(record[:greeting])
            said = len(stranger.recv(1 << 16))
            stranger.sendall(record[greeting:])
            while more := stranger.recv(1 << 16):
                said += len(more)
        except TimeoutError:
            raise TestbedError(
                f"a replayed stream was not refused: {said} bytes of answer, still open"
            ) from None
        except OSError:  # a reset: the coordinator hung up
            return said
    return said


def _disk(federation: Federation, dice: random.Random) -> str:
    """Limit the victim's files to a small size, so that its writes fail in the middle."""
    victim = _victim(federation, dice)
    pid = federation.parties[victim].pid
    seconds, most = dice.uniform(0.5, 4.0), dice.choice((0, 1000, 10_000))
    if pid is None:
        return f"{victim} was not running"
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, hard))
    time.sleep(seconds)
    process = federation.parties[victim]
    if process.is_alive():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        return f"{victim} could write no file beyond {most} bytes for {seconds:.1f} s"
    federation.stop(victim)
    federation.start(victim)
    return f"{victim} could write no file beyond {most} bytes, gave up and was started again"


def _clock(federation: Federation, dice: random.Random) -> str:
    victim = _victim(federation, dice)
    shift = dice.choice((-1, 1)) * dice.uniform(60.0, 2 * _DAY)
    federation.stop(victim, signal.SIGTERM)
    federation.start(victim, clock=shift)
    return f"{victim} started again with a clock that is wrong by {shift:+,.0f} s"


FAULTS = {
    fault.name: fault
    for fault in (
        Fault(name="kill", meaning="kill -9, started again soon", strike=_kill),
        Fault(name="stop", meaning="a graceful stop, started again", strike=_stop),
        Fault(name="pause", meaning="SIGSTOP for up to 6 s, then SIGCONT", strike=_pause),
        Fault(
            name="slow",
            meaning="latency, jitter and a bandwidth cap for some seconds",
            network=True,
            strike=_slow,
        ),
        Fault(name="cut", meaning="every connection is cut", network=True, strike=_cut),
        Fault(name="corrupt", meaning="bits flip under way", network=True, strike=_corrupt),
        Fault(
            name="replay", meaning="a recorded stream is sent again", network=True, strike=_replay
        ),
        Fault(name="disk", meaning="writes fail in the middle of a file", strike=_disk),
        Fault(name="clock", meaning="a wall clock wrong by up to two days", strike=_clock),
    )
}
"""All faults, by name."""


def _victim(federation: Federation, dice: random.Random) -> str:
    """A party at random: the coordinator in one case of four, otherwise an agent."""
    everybody = [COORDINATOR, *federation.names]
    weights = [len(federation.names) / 3, *(1.0 for _ in federation.names)]
    while True:
        found = dice.choices(everybody, weights)[0]
        if found not in federation.spared:
            return found


def _under(federation: Federation, weather: Weather, seconds: float) -> float:
    proxy = _proxy(federation)
    proxy.weather = weather
    time.sleep(seconds)
    proxy.weather = FAIR
    return seconds


def _proxy(federation: Federation) -> Proxy:
    if federation.proxy is None:
        raise TestbedError("this fault needs the proxy")
    return federation.proxy
