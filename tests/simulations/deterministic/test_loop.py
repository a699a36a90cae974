"""asyncio on virtual time: its promises hold, no time is waited for, and death drops what waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from simulations.deterministic.clock import Clock
from simulations.deterministic.dice import Dice
from simulations.deterministic.loop import Loop


class Process:
    """One life of one process."""

    def __init__(self, seed: int = 0) -> None:
        self.clock, self.alive = Clock(), True
        self.loop = Loop(  # type: ignore[abstract]
            self.clock, Dice(seed, "threads"), act=self._act, alive=lambda: self.alive
        )

    def _act(self, action: Callable[[], None]) -> None:
        if self.alive:
            action()

    def run(self, main: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(main)
        while self.clock.step():
            pass
        return task


def test_timers_ring_in_the_order_of_their_times() -> None:
    process, seen = Process(), list[tuple[str, float]]()

    async def sleep(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, process.clock.now))

    async def main() -> None:
        await asyncio.gather(sleep("late", 3600.0), sleep("soon", 1.0))

    process.run(main()).result()
    assert seen == [("soon", 1.0), ("late", 3600.0)]


def test_a_timeout_is_one() -> None:
    process = Process()

    async def main() -> str:
        try:
            async with asyncio.timeout(5.0):
                await asyncio.Event().wait()
        except TimeoutError:
            return "too late"
        return "in time"

    assert process.run(main()).result() == "too late"
    assert process.clock.now == 5.0


def test_what_is_ready_runs_in_order() -> None:
    process, seen = Process(), list[int]()
    for number in range(5):
        process.loop.call_soon(seen.append, number)
    cancelled = process.loop.call_soon(seen.append, 5)
    cancelled.cancel()
    while process.clock.step():
        pass
    assert seen == [0, 1, 2, 3, 4]


def test_a_thread_takes_as_long_as_the_dice_say_and_raises_what_it_raises() -> None:
    times = set[float]()
    for seed in range(30):
        process = Process(seed)

        async def main() -> int:
            try:
                await asyncio.to_thread(int, "none")
            except ValueError:
                return await asyncio.to_thread(int, "7")
            return 0

        assert process.run(main()).result() == 7
        times.add(process.clock.now)
    assert 0.0 in times
    assert len(times) > 10


def test_a_process_that_dies_runs_nothing_more_and_is_unwound_at_once() -> None:
    process, seen = Process(), list[str]()

    async def waits() -> None:
        try:
            await asyncio.sleep(10.0)
            seen.append("it went on")
        finally:
            seen.append("unwound")

    async def dies() -> None:
        await asyncio.sleep(1.0)
        process.alive = False
        seen.append("dead")
        process.loop.call_soon(seen.append, "it went on")

    process.loop.create_task(waits())
    process.loop.create_task(dies())
    process.clock.after(2.0, process.loop.drop)
    while process.clock.step():
        pass
    assert seen == ["dead", "unwound"]
    assert process.loop.is_closed()
