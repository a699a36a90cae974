"""Training beside the conversation: one thread, which lives for as long as there is work.

A device that trains for long would otherwise leave the committee of its epoch waiting, and could
not be told of new versions of the model.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

__all__ = ["Background"]

Work = Callable[[], None]


class Background:
    """Runs what it is given one after the other, in a thread of its own.

    The process waits for that thread when it ends, as it waits for training anywhere else.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Work] = deque()
        self._busy = False

    def run(self, work: Work) -> None:
        """Run it soon, after all that was given before."""
        with self._lock:
            self._waiting.append(work)
            if self._busy:
                return
            self._busy = True
        threading.Thread(target=self._work, name="training").start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy = False
                    return
                work = self._waiting.popleft()
            work()
