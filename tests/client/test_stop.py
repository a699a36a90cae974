"""An agent ends when it is told to, whatever it is doing at that instant."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from client import grpc_host
from client.grpc_host import ConnectionHost
from client.stop import Stop
from tests.e2e.deployment import running_port


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The process's own handlers come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Idle(ConnectionHost):
    """Three sessions that fail at once, with a short wait after each; then it is told to stop."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(session=None, stop=stop)  # type: ignore[arg-type]
        self.attempts = 0
        self.after_the_signal = 0
        self.signalled = False

    def _attempt(self) -> float:
        self.attempts += 1
        self.after_the_signal += self.signalled
        if self.attempts == 3:
            self.stop()
        return 1e-6

    def _status(self, connection: str) -> None:
        pass


def run_signalled(at: int | None) -> tuple[Idle, int]:
    """Run to the end with SIGTERM before the bytecode of that number; the number of all of them."""
    stop, seen = Stop(), 0
    stop.on_signals()
    host = Idle(stop)
    own = {each.__code__ for each in (grpc_host.ConnectionHost.run, Stop.wait)}

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal seen
        if frame.f_code not in own:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen == at:
                host.signalled = True
                signal.raise_signal(signal.SIGTERM)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        host.run()
    finally:
        sys.settrace(before)
    return host, seen


def test_a_signal_before_any_bytecode_of_the_loop_ends_it() -> None:
    quiet, instants = run_signalled(None)
    assert (quiet.attempts, instants > 60) == (3, True)
    for at in range(1, instants + 1):
        host, _ = run_signalled(at)
        assert host.after_the_signal <= 1, f"at bytecode {at}: it went on"


def test_told_before_it_begins_it_does_not_dial() -> None:
    stop = Stop()
    host = Idle(stop)
    stop.set()
    host.run()
    assert host.attempts == 0


def test_every_thread_that_waits_is_woken() -> None:
    stop, woken = Stop(), list[int]()

    def wait(number: int) -> None:
        stop.wait(60)
        woken.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    stop.set()
    for thread in threads:
        thread.join(10)
    assert sorted(woken) == [0, 1, 2]


def test_signals_do_not_prolong_a_wait() -> None:
    stop, ticks = Stop(), 0

    def tick(_number: int, _frame: object) -> None:
        nonlocal ticks
        ticks += 1

    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 2e-4, 2e-4)
    try:
        for _ in range(300):
            stop.wait(2e-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ticks > 10, "signals arrived while it waited"


def test_a_hook_is_called_also_when_it_comes_late() -> None:
    stop, called = Stop(), []
    stop.call(lambda: called.append("early"))
    assert not called
    stop.set()
    stop.call(lambda: called.append("late"))
    assert called == ["early", "late"]


def test_the_second_signal_interrupts() -> None:
    stop = Stop()
    stop.on_signals()
    signal.raise_signal(signal.SIGTERM)
    assert stop.wanted
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


SIGNALLED = """
import signal, sys
from {module} import {owner}
original = {owner}.{name}
def told(*args, **kwargs):
    signal.raise_signal(signal.SIGTERM)
    return original(*args, **kwargs)
{owner}.{name} = {kind}(told)
from fedsys.cli import main
sys.argv = ["fedsys", "agent", "run", {folder!r}, "--data", "digits"]
main()
"""


@pytest.mark.parametrize(
    ("module", "owner", "name", "kind"),
    [
        pytest.param(
            *("client.identity", "Credentials", "load", "staticmethod"), marks=pytest.mark.slow
        ),
        ("client.grpc_host", "ConnectionHost", "__init__", ""),
    ],
)
def test_told_while_it_starts_it_leaves_without_a_session(
    module: str, owner: str, name: str, kind: str, tmp_path: Path
) -> None:
    with running_port(tmp_path / "coordinator") as port:
        port.enroll("ward", tmp_path / "ward")
        folder = str(tmp_path / "ward")
        code = SIGNALLED.format(module=module, owner=owner, name=name, kind=kind, folder=folder)
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not port.fleet.links
        assert port.fleet.events.empty(), "no session was ever opened"
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "stopped"
    assert "Traceback" not in done.stderr
