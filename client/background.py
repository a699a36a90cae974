"""Training beside the conversation: one thread, which lives for as long as there is work.

A device that trains for long would otherwise leave the committee of its epoch waiting, and could
not be told of new versions of the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Background"]

Work = Callable[[], None]


class Background:
    """Runs what it is given in a thread of its own, one at a time.

    Of what waits for its turn only the newest is kept: whoever asks for something else no longer
    wants what was asked before, and a queue of models would fill the memory.

    The process waits for that thread when it ends, as it waits for training anywhere else.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: Work | None = None
        self._busy = False

    def run(self, work: Work) -> None:
        """Run it soon, in place of what waits."""
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
            del work  # a model, while there is nothing to train
