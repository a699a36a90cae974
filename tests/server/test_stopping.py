"""A coordinator that is told to stop stops, at whatever moment the word comes."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from server.deployment import Deployment
from server.disk_work import to_its_end
from server.fleet import Arrived, Fleet
from server.home import Home
from server.job_model import ModelSource
from server.state import State

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
