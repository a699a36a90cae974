"""A coordinator that is told to stop stops, at whatever moment the word comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from client.enrollment import join
from client.grpc_host import Backoff, ConnectionHost
from client.policy import Policy
from client.session import Session
from fedsys.privacy import read_ledger
from fedsys.wire import fleet_pb2
from server import grpc_host
from server.deployed.disk_work import to_its_end
from server.deployed.epoch import Buffer, DeployedEpoch
from server.deployed.fleet import Arrived, Fleet, Link
from server.deployed.job_model import ModelSource
from server.deployed.queue import Deployment
from server.grpc_service import run_coordinator
from server.home.folder import Home
from server.home.state import State
from server.rounds import SecureSum
from simulations.testbed.crowd import Still
from tests.server.deployed.test_buffer import Buffers

TURNS = range(6)
"""Turns of the event loop between an event and the cancellation: each is another interleaving."""


async def stops(task: asyncio.Task[Any]) -> bool:
    """Whether a cancelled task ends; the patience is used up only where it does not."""
    await asyncio.wait({task}, timeout=60)
    ended = task.done()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    return ended and task.cancelled()


async def turn(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


@pytest.mark.parametrize("turns", TURNS)
def test_a_deployment_woken_and_stopped_at_once_stops(turns: int, tmp_path: Path) -> None:
    home = Home.create(tmp_path / "home", hosts=["localhost"])
    state = State.open(home.path)

    async def scene() -> bool:
        deployment = Deployment(
            home=home,
            state=state,
            registry=home.registry(state),
            fleet=Fleet(),
            models=cast(ModelSource, None),  # no job comes
        )
        task = asyncio.create_task(deployment.serve())
        await turn(5)
        deployment.wake.set()
        await turn(turns)
        task.cancel()
        return await stops(task)

    try:
        assert asyncio.run(scene())
    finally:
        state.close()


@pytest.mark.parametrize("turns", TURNS)
def test_waiting_for_an_event_is_cancelled_though_one_comes(turns: int) -> None:
    async def scene() -> bool:
        fleet = Fleet()

        async def listen() -> None:
            while True:
                await fleet.next_event(60)

        task = asyncio.create_task(listen())
        await turn(3)
        fleet.events.put_nowait(Arrived(1))
        await turn(turns)
        task.cancel()
        return await stops(task)

    assert asyncio.run(scene())


def test_no_event_is_lost_to_a_deadline() -> None:
    async def scene() -> None:
        fleet = Fleet()
        assert await fleet.next_event(0.001) is None
        fleet.events.put_nowait(Arrived(7))
        assert await fleet.next_event(60) == Arrived(7)

    asyncio.run(scene())


def test_work_on_the_disk_is_never_left_half_way() -> None:
    may_go, begun, finished = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_go.wait(60)
        finished.set()

    async def scene() -> None:
        task = asyncio.create_task(to_its_end(work))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        for _ in range(3):  # an impatient operator
            task.cancel()
            await turn(3)
            assert not task.done()
        may_go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert finished.is_set()

    asyncio.run(scene())


def test_the_error_of_work_on_the_disk_is_the_callers() -> None:
    def work() -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        asyncio.run(to_its_end(work))


def test_a_session_that_is_still_ending_ends_before_its_loop_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """gRPC calls itself stopped once nothing is to be sent any more, no matter who is still at
    work; a loop that ends then cancels what is gRPC's own, and gRPC prints a traceback."""
    home = Home.create(tmp_path / "home", hosts=["127.0.0.1"])
    state = State.open(home.path)
    token = home.registry(state).issue_token("ward")
    state.close()
    stop, over, ended = asyncio.Event(), asyncio.Event(), list[str]()
    write, stopped = grpc_host._write, grpc_host.DevicePort.stop

    async def end() -> None:
        await over.wait()
        await turn(20)
        ended.append("by itself")

    async def slow(link: Link, context: Any) -> None:
        try:
            await write(link, context)
        finally:  # the device has hung up; gRPC cancels before or after the reader sees its end
            stop.set()
            ending = asyncio.create_task(end())
            while not ending.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.shield(ending)

    async def noted(self: grpc_host.DevicePort, grace: float = 2.0) -> None:
        await stopped(self, grace)
        over.set()

    monkeypatch.setattr(grpc_host, "_write", slow)
    monkeypatch.setattr(grpc_host.DevicePort, "stop", noted)

    def device(address: str) -> None:
        session = Session(
            credentials=join(address, token, tmp_path / "ward"), worker=Still(), policy=Policy
        )
        host = ConnectionHost(session, backoff=Backoff(first=0.01, most=0.01))
        handle = session.handle

        def hang_up(message: fleet_pb2.Down) -> fleet_pb2.Up | None:
            answer = handle(message)
            host.stop()
            return answer

        session.handle = hang_up  # type: ignore[method-assign]
        host.run()

    devices: list[threading.Thread] = []

    def ready(port: int) -> None:
        devices.append(threading.Thread(target=device, args=(f"127.0.0.1:{port}",), daemon=True))
        devices[0].start()

    async def scene() -> None:
        async with asyncio.timeout(60):
            await run_coordinator(
                home,
                listen="127.0.0.1:0",
                models=cast(ModelSource, None),  # no job comes
                ready=ready,
                stop=stop,
            )

    asyncio.run(scene())
    devices[0].join(60)
    assert ended == ["by itself"]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("when", ["its sum is opened", "the next one is filled"])
def test_a_shutdown_refunds_no_buffer_whose_sum_was_opened(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is handled after the thread that opened the sum has returned, whose epoch is then ready
    for the next one."""
    found = Buffers(tmp_path, 4)
    job = found.buffered(rounds=5, most=5)
    loops: list[asyncio.AbstractEventLoop] = []
    opened: list[int] = []
    close_stage, fill = SecureSum.close_stage, DeployedEpoch.fill

    def shut_down() -> None:
        loops[0].call_soon_threadsafe(found.deployment._running[job].task.cancel)

    def closing(self: SecureSum[Any]) -> Mapping[int, bytes]:
        messages = close_stage(self)
        if not messages and not opened:
            opened.append(1)
            if when == "its sum is opened":
                shut_down()
        return messages

    async def filling(self: DeployedEpoch, buffer: Buffer) -> None:
        if buffer.number == 2:
            shut_down()
        await fill(self, buffer)

    def over() -> bool:
        loops.append(asyncio.get_running_loop())
        work = found.deployment._running.get(job)
        return bool(opened) and (work is None or work.task.done())

    monkeypatch.setattr(SecureSum, "close_stage", closing)
    monkeypatch.setattr(DeployedEpoch, "fill", filling)
    found.run_until(over)
    rounds = read_ledger(found.home.jobs / job / "ledger.jsonl", allow_torn=True).rounds
    if when == "its sum is opened":
        assert [each.outcome for each in rounds] == ["abort"]
        assert rounds[0].body["before_unmask"] is False
        assert len(found.lines(job)[1]["survivors"]) == 4 - 1, "whose sum this coordinator has"
    else:
        assert [each.outcome for each in rounds] == ["commit", "abort"]
        assert rounds[1].body["before_unmask"] is True
        assert found.lines(job)[2]["survivors"] == []
    found.state.close()
