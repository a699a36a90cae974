"""Draws the cohorts that a plan asks for, and keeps what a resumed job must know of past ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

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

__all__ = ["Chooser", "CohortSampler"]

Chooser = Callable[
    [int, NDArray[np.int64], int, np.random.Generator], Sequence[int] | NDArray[np.int64]
]
"""Code of a job's own: of the round, the clients with turns left, the size of a cohort and random
numbers it makes the cohort. No claim rests on it, so it must see no client's data."""


class CohortSampler:
    """Draws each round's cohort; a cohort is never drawn again, refilled or over-selected.

    Args:
        plan: States the population, the expected cohort size and the kind of sampling.
        choose: What makes cohorts that are ``chosen``; None where none are drawn, as in an audit.

    Raises:
        ConfigError: The population is too small for such cohorts.
    """

    def __init__(self, plan: PrivacyPlan, choose: Chooser | None = None) -> None:
        self._plan = plan
        self._choose = choose
        self._size = round(plan.expected_cohort)
        self._separated: MinSeparation | None = None
        if plan.sampling in ("arrivals", "chosen"):
            _require_turns(plan, self._size)
        if plan.sampling in ("min-separation", "chosen"):
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
        if self._separated is not None and plan.sampling == "chosen":
            return self._chosen(self._separated, round, entropy)
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

    def _chosen(self, turns: MinSeparation, round: int, entropy: Entropy) -> NDArray[np.int64]:
        """A cohort of the job's own code, which is checked and recorded."""
        if self._choose is None:
            raise ConfigError("cohorts that the job's own code chooses are not drawn without it")
        left = turns.eligible(round)
        numbers = np.random.default_rng(int.from_bytes(entropy(16), "little"))
        where = f"cohort.sampling: round {round}: the job's own code"
        try:
            given = np.asarray(self._choose(round, left.copy(), self._size, numbers))
        except (Exception, SystemExit) as error:  # whatever a user's code raises
            words = " ".join(str(error).split())[:200]
            raise ConfigError(f"{where} failed: {type(error).__name__}: {words}") from error
        if given.ndim != 1 or given.dtype.kind not in "iu" or given.size != self._size:
            raise ConfigError(
                f"{where} returned {given.dtype} of shape {given.shape}; a cohort is "
                f"cohort.expected = {self._size} of the clients that it was given, as integers"
            )
        cohort = np.unique(given.astype(np.int64))
        if cohort.size != given.size:
            raise ConfigError(f"{where} returned a client twice")
        if not np.isin(cohort, left).all():
            raise ConfigError(
                f"{where} returned clients that it was not given: they do not exist, or took part "
                f"in privacy.max_participations = {self._plan.max_participations} rounds"
            )
        turns.record(round, cohort.tolist())
        return cohort

    def note(self, round: int, cohort: Iterable[int] | None) -> None:
        """Record who was invited; None for a cohort lost in a crash, which may be anybody."""
        if self._separated is None:
            return
        if cohort is None:
            self._separated.record_lost(round)
        else:
            self._separated.record(round, cohort)


def _require_turns(plan: PrivacyPlan, size: int) -> None:
    """Refuses more rounds than the population's turns can fill."""
    buffered = plan.sampling == "arrivals"
    what = f"buffers of {size} uploads" if buffered else f"cohorts of {size} clients"
    lower = "rounds.buffer" if buffered else "cohort.expected"
    most = plan.max_participations or plan.rounds
    if plan.rounds * size > plan.population * most:
        raise ConfigError(
            f"rounds.count = {plan.rounds} {what} with "
            f"privacy.max_participations = {most} need {-(-plan.rounds * size // most)} clients; "
            f"the population has {plan.population}: lower rounds.count or {lower}"
        )
