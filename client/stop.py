"""A reentrant stop flag: safe to set in signal handlers and from other threads, at any time.

A signal handler runs between any two bytecodes of the main thread, which may at that moment hold
the lock of a `threading.Event` that it waits for: setting the same event would then deadlock. This
flag uses `queue.SimpleQueue`, whose `put` is reentrant.
"""

from __future__ import annotations

import contextlib
import queue
import signal
from collections.abc import Callable

__all__ = ["Stop"]


class Stop:
    """A flag that is set once and never cleared."""

    def __init__(self) -> None:
        self._set = self._signalled = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._hooks: list[Callable[[], None]] = []

    @property
    def wanted(self) -> bool:
        """Whether it was set."""
        return self._set

    def set(self) -> None:
        """Wake every waiter and call the hooks."""
        self._set = True
        self._wake.put(None)
        for hook in tuple(self._hooks):
            hook()

    def wait(self, seconds: float) -> None:
        """Sleep for `seconds`, or until the flag is set."""
        if not self._set:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=seconds)
                self._wake.put(None)  # wakes other threads that wait

    def call(self, hook: Callable[[], None]) -> None:
        """Have `hook` called when the flag is set; at once if it is set already."""
        self._hooks.append(hook)
        if self._set:
            hook()

    def on_signals(self) -> None:
        """Let SIGTERM and SIGINT set the flag; the second signal ends the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take)

    def _take(self, _number: int, _frame: object) -> None:
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True
        self.set()
