"""The operator's socket: jobs are queued, shown, cancelled; nobody else can open it."""

from __future__ import annotations

import asyncio
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.task_model import TaskModel
from fedsys.cli.grpc_operator import Calls, operator
from fedsys.config import dump, load
from fedsys.errors import ConfigError
from server.grpc_service import run_coordinator
from server.home.folder import Home


@contextmanager
def running(home: Home) -> Iterator[Calls]:
    """A coordinator in a thread, and the operator's calls to it."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()
    service = run_coordinator(
        home,
        listen="127.0.0.1:0",
        models=TaskModel,
        ready=lambda _port: ready.set(),
        stop=stop,
    )
    thread = threading.Thread(target=loop.run_until_complete, args=(service,))
    thread.start()
    try:
        assert ready.wait(30)
        with operator(home.path) as calls:
            yield calls
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "c", hosts=["127.0.0.1"], epsilon=5.0)


def test_a_job_that_cannot_run_is_refused_when_it_is_submitted(home: Home) -> None:
    with running(home) as calls:
        assert stat.S_IMODE(home.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
        with pytest.raises(ConfigError, match="no node is on the roster; enrol devices first"):
            calls.submit(dump(load("silo")))
        assert calls.list() == []
        fleet = calls.fleet()
        assert (fleet.budget, fleet.spent, len(fleet.nodes)) == (5.0, 0.0, 0)
    assert not home.socket.exists()


def test_a_waiting_job_is_cancelled(home: Home, tmp_path: Path) -> None:
    from server.home.state import NodeRow, State

    state = State.open(home.path)
    with state.transaction() as session:
        for number in range(1, 4):
            identity = bytes([number]) * 32
            session.add(
                NodeRow(
                    id=number,
                    name=f"n{number}",
                    identity=identity,
                    status="active",
                    enrolled_at=0.0,
                )
            )
        session.flush()
        registry = home.registry(state)
        registry._sign_roster(session, registry._proposal(session))
    state.close()
    small = ["privacy.noise_multiplier=3", "privacy.epsilon=5"]
    with running(home) as calls:
        job = calls.submit(dump(load("silo", small)))
        for status in calls.watch(job.id):
            if status.status == "waiting":
                calls.cancel(job.id)
        assert status.status == "cancelled"
        with pytest.raises(ConfigError, match="is over already"):
            calls.cancel(job.id)


def test_mistakes_come_back_as_one_line(home: Home) -> None:
    with running(home) as calls:
        for call, message in (
            (lambda: calls.show("nope"), "there is none"),
            (lambda: list(calls.watch("nope")), "there is none"),
            (lambda: calls.submit("x ="), "not valid TOML"),
            (lambda: calls.submit("[job]\nnme = 'x'"), "did you mean name"),
        ):
            with pytest.raises(ConfigError, match=message):
                call()


def test_two_coordinators_on_one_folder_are_refused(home: Home) -> None:
    async def second() -> None:
        await run_coordinator(
            home, listen="127.0.0.1:0", models=TaskModel, ready=lambda _port: None
        )

    with running(home), pytest.raises(ConfigError, match="another coordinator is running"):
        asyncio.run(second())


def test_a_port_that_is_taken_is_one_line(home: Home, tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        async def serve() -> None:
            await run_coordinator(home, listen=address, models=TaskModel, ready=lambda _port: None)

        with pytest.raises(ConfigError, match=f"{address}: address already in use"):
            asyncio.run(serve())


def test_without_a_coordinator_the_command_says_so(home: Home, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no coordinator answers"), operator(home.path):
        pass
    with pytest.raises(ConfigError, match="no coordinator here"), operator(tmp_path):
        pass
