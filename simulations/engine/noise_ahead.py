"""The coordinator's noise for the next round, drawn while the current one is being stored.

Drawing a round's noise takes milliseconds of one core, and flushing files is mostly waiting, so the
two overlap well, best in a training process that is idle at that time. Only noise that does not
depend on the round's outcome is drawn ahead: one draw for the whole sum, at a constant clipping
norm. It comes from its own round's seed, is kept only in memory, and is dropped unless
that very round takes it, so none of it outlives a crash or an abort.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy import Mechanism
from simulations.engine.base import Engine
from simulations.engine.chunk import top_up_once

__all__ = ["NoiseAhead"]

Noise = NDArray[np.int64]


class NoiseAhead:
    """Draws noise for one later round; does nothing where noise cannot be drawn ahead.

    Args:
        mechanism: The mechanism of all rounds.
        engine: Draws in an idle process if it has one; otherwise a thread draws.
        possible: Whether one draw serves each sum, the mechanism never changes, and clients add
            nothing to the coordinator's randomness.
    """

    def __init__(self, mechanism: Mechanism, engine: Engine, *, possible: bool) -> None:
        self._mechanism, self._engine = mechanism, engine
        self._possible = possible and mechanism.draws_ahead
        self._executor: ThreadPoolExecutor | None = None
        self._round = 0
        self._drawn: Callable[[], Noise | None] | None = None

    def begin(self, round: int, key: Callable[[], bytes]) -> None:
        """Start drawing for this round; noise drawn for another is dropped.

        Args:
            round: The round.
            key: Returns the key of its noise's stream; called where noise can be drawn ahead.
        """
        if not self._possible:
            return
        self._round, secret = round, key()
        if self._engine.draw_ahead(round, secret):
            self._drawn = lambda: self._engine.take_drawn(round)
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="noise")
        self._drawn = self._executor.submit(top_up_once, self._mechanism, secret).result

    def take(self, round: int) -> Noise | None:
        """This round's noise (length,), returned once only; None where none was drawn for it."""
        drawn, self._drawn = self._drawn, None
        return drawn() if drawn is not None and round == self._round else None

    def close(self) -> None:
        """Drop the noise drawn ahead and end the thread."""
        self._drawn = None
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
