"""An event loop of asyncio on virtual time: one thread, and an order that the dice decide.

What is ready runs in the order in which it became ready, as asyncio promises. Timers ring on the
world's clock. A thread's work is done at one instant between the moment it is handed over and the
moment its result is seen, and the dice choose both distances: messages, timers and deaths come
before, between and after. A process that dies takes its loop with it: whatever waits is dropped
where it stands.
"""

from __future__ import annotations

import asyncio
import asyncio.events
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any

from simulations.deterministic.clock import Clock
from simulations.deterministic.dice import Dice

__all__ = ["Loop"]

_AT_ONCE = 0.6
_LONGEST = 0.08
_MOST = 100_000
"""Callbacks in one instant: a loop that spins would never let time pass."""

Step = Callable[[Callable[[], None]], None]


class Loop(asyncio.AbstractEventLoop):
    """The loop of one life of one process.

    Args:
        clock: on which it runs.
        dice: for how long threads take.
        act: lets the process do something, unless it is dead.
        alive: asked after every callback; what is ready is left alone once it says no.

    Attributes:
        failures: what callbacks raised and nobody took.
    """

    def __init__(self, clock: Clock, dice: Dice, *, act: Step, alive: Callable[[], bool]) -> None:
        self.failures: list[BaseException] = []
        self._clock = clock
        self._dice = dice
        self._act = act
        self._alive = alive
        self._ready: deque[asyncio.Handle] = deque()
        self._tasks: list[asyncio.Task[Any]] = []
        self._armed = False
        self._dropped = False

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._clock.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Have a callback run now, after those that are ready already."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        self._arm()
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Have a callback run after so many seconds."""
        return self.call_at(self._clock.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Have a callback run at that time."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)

        def ring() -> None:
            if not handle.cancelled() and not self._dropped:
                self._ready.append(handle)
                self._arm()

        self._clock.after(when - self._clock.now, ring)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer rings unheard."""

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: object = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        """A task of this loop."""
        task = asyncio.Task(coro, loop=self, context=context)
        self._tasks = [each for each in self._tasks if not each.done()]
        self._tasks.append(task)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: None, function: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Do a thread's work at one instant, soon; its result is seen at another."""
        future = self.create_future()

        def work() -> None:
            try:
                result = function(*args)
            except Exception as error:
                self._after(self._while(), self._give, future, None, error)
            else:
                self._after(self._while(), self._give, future, result, None)

        self._after(self._while(), work)
        return future

    def _while(self) -> float:
        dice = self._dice
        return 0.0 if dice.chance(_AT_ONCE) else dice.uniform(0.0, _LONGEST)

    def _after(self, seconds: float, callback: Callable[..., object], *args: Any) -> None:
        if seconds:
            self.call_later(seconds, callback, *args)
        else:
            self.call_soon(callback, *args)

    @staticmethod
    def _give(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def get_debug(self) -> bool:
        """Never."""
        return False

    def is_running(self) -> bool:
        """As long as its process lives."""
        return not self._dropped

    def is_closed(self) -> bool:
        """Once its process is dead."""
        return self._dropped

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Note what a callback raised."""
        error = context.get("exception")
        if isinstance(error, BaseException) and not self._dropped:
            self.failures.append(error)

    def _arm(self) -> None:
        if not self._armed and not self._dropped:
            self._armed = True
            self._clock.after(0.0, self._wake)

    def _wake(self) -> None:
        self._armed = False
        if not self._dropped:
            self._act(self._run)

    def _run(self) -> None:
        asyncio.events._set_running_loop(self)
        try:
            for _ in range(_MOST):
                if not self._ready:
                    return
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
                if not self._alive():
                    return
            raise RuntimeError(f"{_MOST} callbacks, and no time passes")
        finally:
            asyncio.events._set_running_loop(None)

    def drop(self) -> None:
        """The process is dead. What still waited is unwound now, and not whenever Python collects
        it: what it lets go of, it lets go of before the next life begins."""
        self._dropped = True
        self._ready.clear()
        asyncio.events._set_running_loop(self)
        try:
            for task in self._tasks:
                coroutine = task.get_coro()
                with suppress(BaseException):  # of a process that does not exist any more
                    if coroutine is not None and not task.done():
                        coroutine.close()
        finally:
            asyncio.events._set_running_loop(None)
        self._tasks = []
