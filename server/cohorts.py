"""Who is asked in a round: Poisson, fixed-size and min-separation sampling from given entropy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ConfigError
from fedsys.privacy import AesCtrStream, Entropy, PrivacyPlan

__all__ = ["CohortSampler"]

_WORD = 1 << 64


class CohortSampler:
    """Draws each round's cohort; a cohort is never drawn again, refilled or over-selected.

    Args:
        plan: population, expected cohort and kind of sampling.
        min_separation: rounds between two participations of one client, under ``min-separation``.

    Raises:
        ConfigError: no such cohorts exist.
    """

    def __init__(self, plan: PrivacyPlan, *, min_separation: int | None = None) -> None:
        self._plan = plan
        self._size = round(plan.expected_cohort)
        self._separation = min_separation or 1
        self._last: NDArray[np.int64] | None = None
        self._times: NDArray[np.int64] | None = None
        if plan.sampling == "min-separation":
            if self._size * self._separation > plan.population:
                raise ConfigError(
                    f"cohort.min_separation = {self._separation} with cohort.expected = "
                    f"{self._size} needs {self._size * self._separation} clients; the population "
                    f"has {plan.population}"
                )
            self._last = np.full(plan.population, -self._separation, dtype=np.int64)
            self._times = np.zeros(plan.population, dtype=np.int64)

    def draw(self, round: int, entropy: Entropy) -> tuple[int, ...]:
        """Increasing ids of the cohort of this round."""
        stream = AesCtrStream.from_entropy(entropy)
        population = self._plan.population
        if self._plan.sampling == "poisson":
            # at most 2^-64 from q in total variation, a client and round
            below = min(int(self._plan.rate * _WORD), _WORD - 1)
            chosen = np.flatnonzero(stream.words(population) < np.uint64(below))
            if self._plan.rate >= 1:
                chosen = np.arange(population)
        else:
            eligible = self._eligible(round)
            keys = stream.words(len(eligible))
            chosen = np.sort(eligible[np.argsort(keys, kind="stable")[: self._size]])
        cohort = tuple(int(client) for client in chosen)
        self.note(round, cohort)
        return cohort

    def note(self, round: int, cohort: Iterable[int] | None) -> None:
        """Remember who was asked; None is a cohort that a crash lost: it may have been anybody."""
        if self._last is None or self._times is None:
            return
        where = slice(None) if cohort is None else np.fromiter(cohort, dtype=np.int64)
        self._last[where] = round
        self._times[where] += 1

    def _eligible(self, round: int) -> NDArray[np.int64]:
        if self._last is None or self._times is None:
            return np.arange(self._plan.population)
        rested = round - self._last >= self._separation
        most = self._plan.max_participations
        if most is not None:
            rested &= self._times < most
        return np.flatnonzero(rested)
