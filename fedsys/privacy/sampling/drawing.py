"""Draws the cohorts that a plan asks for, and keeps what a resumed job must know of past ones."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ConfigError
from fedsys.privacy import Entropy, PrivacyPlan
from fedsys.privacy.sampling.cohorts import (
    MinSeparation,
    cyclic_group,
    fixed_cohort,
    poisson_cohort,
)

__all__ = ["CohortSampler"]


class CohortSampler:
    """Draws each round's cohort; a cohort is never drawn again, refilled or over-selected.

    Args:
        plan: States the population, the expected cohort size and the kind of sampling.

    Raises:
        ConfigError: The population is too small for such cohorts.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        self._size = round(plan.expected_cohort)
        self._separated: MinSeparation | None = None
        if plan.sampling == "arrivals":
            _require_uploads(plan, self._size)
        if plan.sampling == "min-separation":
            separation = plan.min_separation or 1
            if self._size * separation > plan.population:
                raise ConfigError(
                    f"cohort.min_separation = {separation} with cohort.expected = {self._size} "
                    f"needs {self._size * separation} clients; the population has "
                    f"{plan.population}: lower one of the two"
                )
            self._separated = MinSeparation(
                population=plan.population,
                size=self._size,
                separation=separation,
                max_participations=plan.max_participations or plan.rounds,
            )

    def draw(self, round: int, entropy: Entropy) -> tuple[int, ...]:
        """This round's cohort as increasing ids; empty where uploads decide it as they arrive."""
        if self._plan.sampling == "arrivals":
            return ()
        return tuple(int(client) for client in self._draw(round, entropy))

    def _draw(self, round: int, entropy: Entropy) -> NDArray[np.int64]:
        plan = self._plan
        if self._separated is not None:
            return self._separated.draw(round, entropy)
        if plan.sampling == "fixed":
            return fixed_cohort(plan.population, self._size, entropy)
        if plan.mechanism == "banded-mf" and plan.min_separation is not None:
            # One of `min_separation` groups takes part in each round, so each of its clients is
            # sampled `min_separation` times as often for the same expected cohort.
            group = cyclic_group(round, plan.min_separation, plan.population)
            rate = min(1.0, plan.rate * plan.min_separation)
            return group[poisson_cohort(len(group), rate, entropy)]
        return poisson_cohort(plan.population, plan.rate, entropy)

    def note(self, round: int, cohort: Iterable[int] | None) -> None:
        """Record who was invited; None for a cohort lost in a crash, which may be anybody."""
        if self._separated is None:
            return
        if cohort is None:
            self._separated.record_lost(round)
        else:
            self._separated.record(round, cohort)


def _require_uploads(plan: PrivacyPlan, size: int) -> None:
    """Refuses more buffers than the population's uploads can fill."""
    most = plan.max_participations or plan.rounds
    if plan.rounds * size > plan.population * most:
        raise ConfigError(
            f"rounds.count = {plan.rounds} buffers of {size} uploads with "
            f"privacy.max_participations = {most} need {-(-plan.rounds * size // most)} clients; "
            f"the population has {plan.population}: lower rounds.count or rounds.buffer"
        )
