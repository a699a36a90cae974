"""The coordinator's noise for the next round, drawn while the present one is being stored.

A round's noise costs milliseconds of one core, as flushing files costs waiting; the two fit side by
side, best in a process that trains and has nothing else to do then. Only noise that does not depend
on what a round brings is drawn so: one draw for the whole sum, at a clipping norm that stays. It
comes from its own round's source of entropy, lives in memory alone, and is dropped unless that very
round takes it: nothing of it outlives a crash or an abort.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy import Mechanism
from simulations.engine.base import Engine
from simulations.engine.chunk import top_up_once
from simulations.randomness import Randomness

__all__ = ["NoiseAhead"]

Noise = NDArray[np.int64]


class NoiseAhead:
    """Draws for one round to come; does nothing where noise cannot be drawn beforehand.

    Args:
        mechanism: of all rounds.
        randomness: of the coordinator's noise.
        engine: whose processes have nothing to do meanwhile; else a thread draws.
        possible: whether one draw serves each sum and the mechanism stays as it is.
    """

    def __init__(
        self, mechanism: Mechanism, randomness: Randomness, engine: Engine, *, possible: bool
    ) -> None:
        self._mechanism, self._randomness, self._engine = mechanism, randomness, engine
        self._possible = possible and mechanism.draws_ahead
        self._executor: ThreadPoolExecutor | None = None
        self._round = 0
        self._drawn: Callable[[], Noise | None] | None = None

    def begin(self, round: int) -> None:
        """Start to draw for this round; what was drawn for another is dropped."""
        if not self._possible:
            return
        self._round = round
        if self._engine.draw_ahead(round):
            self._drawn = lambda: self._engine.take_drawn(round)
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="noise")
        self._drawn = self._executor.submit(
            top_up_once, self._mechanism, self._randomness, round
        ).result

    def take(self, round: int) -> Noise | None:
        """This round's noise (length,), handed out once; None where none was drawn for it."""
        drawn, self._drawn = self._drawn, None
        return drawn() if drawn is not None and round == self._round else None

    def close(self) -> None:
        """Drop what was drawn and end the thread."""
        self._drawn = None
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
