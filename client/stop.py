"""A reentrant stop flag: safe to set in signal handlers and from other threads, at any time.

A signal handler runs between any two bytecodes of the main thread, which may at that moment hold
the lock of a `threading.Event` that it waits for: setting the same event would then deadlock. This
flag is a pipe that becomes readable and stays so: writing a byte is reentrant, wakes every waiter,
and `poll` counts its timeout right across signals (`queue.SimpleQueue.get` waits for ever where a
signal arrives as its timeout ends, python/cpython's _queuemodule.c of 3.11).
"""

from __future__ import annotations

import math
import os
import select
import signal
import weakref
from collections.abc import Callable

__all__ = ["Stop"]


_LONGEST = 86_400.0
"""Seconds of one wait at most: `poll` takes milliseconds of 31 bits."""


def _close(*descriptors: int) -> None:
    for each in descriptors:
        os.close(each)


class Stop:
    """A flag that is set once and never cleared."""

    def __init__(self) -> None:
        self._set = self._signalled = False
        self._readable, self._wake = os.pipe()
        weakref.finalize(self, _close, self._readable, self._wake)
        self._hooks: list[Callable[[], None]] = []

    @property
    def wanted(self) -> bool:
        """Whether it was set."""
        return self._set

    def set(self) -> None:
        """Wake every waiter and call the hooks."""
        first, self._set = not self._set, True
        if first:
            os.write(self._wake, b"!")
        for hook in tuple(self._hooks):
            hook()

    def wait(self, seconds: float) -> None:
        """Sleep for `seconds` (a day at most), or until the flag is set."""
        waiting = select.poll()
        waiting.register(self._readable, select.POLLIN)
        waiting.poll(math.ceil(min(seconds, _LONGEST) * 1000))

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
