"""Training in the background: one thread, which lives for as long as there is work.

A device that trains for long would otherwise leave the committee of its epoch waiting, and would
not hear of new versions of the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Background"]

Work = Callable[[], None]


class Background:
    """Runs work in a thread of its own, one piece at a time.

    Only the newest piece of waiting work is kept: a new request supersedes older ones, and a queue
    of models would fill the memory.

    When the process ends, it waits for that thread, as it does for training elsewhere.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: Work | None = None
        self._busy = False

    def run(self, work: Work) -> None:
        """Run `work` soon, in place of any work that waits."""
        with self._lock:
            self._next = work
            if self._busy:
                return
            self._busy = True
        threading.Thread(target=self._work, name="training").start()

    def _work(self) -> None:
        while True:
            with self._lock:
                work, self._next = self._next, None
                if work is None:
                    self._busy = False
                    return
            work()
            del work  # it holds a model, which must not stay in memory while nothing is trained
