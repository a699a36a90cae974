"""The coordinator's noise for the next round, drawn while the present one is being stored.

A round's noise costs milliseconds of one core, as flushing files costs waiting; the two fit side by
side. Only noise that does not depend on what a round brings is drawn so: one draw for the whole
sum, at a clipping norm that stays. It comes from its own round's source of entropy, lives in memory
alone, and is dropped unless that very round takes it: nothing of it outlives a crash or an abort.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy import Mechanism
from fedsys.privacy.events import SkellamEvent
from simulations.randomness import Randomness

__all__ = ["NoiseAhead"]

Noise = NDArray[np.int64]


class NoiseAhead:
    """Draws for one round to come; does nothing where noise cannot be drawn beforehand.

    Args:
        mechanism: of all rounds.
        randomness: of the coordinator's noise.
        possible: whether one draw serves each sum and the mechanism stays as it is.
    """

    def __init__(self, mechanism: Mechanism, randomness: Randomness, *, possible: bool) -> None:
        self._mechanism, self._randomness = mechanism, randomness
        self._executor: ThreadPoolExecutor | None = None
        if possible and isinstance(mechanism.event, SkellamEvent):
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="noise")
        self._round = 0
        self._drawn: Future[Noise] | None = None

    def begin(self, round: int) -> None:
        """Start to draw for this round; what was drawn for another is dropped."""
        if self._executor is not None:
            self._round, self._drawn = round, self._executor.submit(self._draw, round)

    def take(self, round: int) -> Noise | None:
        """This round's noise (length,), handed out once; None where none was drawn for it."""
        drawn, self._drawn = self._drawn, None
        return drawn.result() if drawn is not None and round == self._round else None

    def _draw(self, round: int) -> Noise:
        # Drawn at once, it depends on no number of survivors; the cap is always a possible one.
        return self._mechanism.top_up(self._mechanism.event.cap, self._randomness.top_up(round))

    def close(self) -> None:
        """Drop what was drawn and end the thread."""
        self._drawn = None
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
