"""A task that goes wrong where clients train: killed, failing, out of memory, or hanging."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from torch import Tensor

from fedsys.tasks.digits import Digits

__all__ = ["Fragile"]


class Fragile(Digits):
    """Digits, until a worker process trains.

    Args:
        how: ``killed-once``, ``killed``, ``raises``, ``memory``, ``memory-once`` or ``hangs``.
        flag: a file that tells whether it happened already.
    """

    def __init__(self, how: str, flag: str) -> None:
        super().__init__({})
        self._how, self._flag = how, Path(flag)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, or what `how` says."""
        if Path(sys.argv[0]).name in ("worker.py", "default_worker.py"):
            self._go_wrong()
        return super().loss(outputs, targets)

    def _go_wrong(self) -> None:
        if self._how.endswith("-once") and not self._first():
            return
        if self._how.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._how == "raises":
            raise ValueError("the label is a cat")
        if self._how.startswith("memory"):
            raise MemoryError("no room")
        if self._how == "hangs":
            time.sleep(600)

    def _first(self) -> bool:
        try:
            self._flag.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
