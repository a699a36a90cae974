"""The participant's view: c curious clients who know the cohorts that they were in."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy.accounting.costs import outsider_step, steps_epsilon, together_step
from fedsys.privacy.accounting.meetings import Meetings
from fedsys.privacy.accounting.outsider import worst_step
from fedsys.privacy.events import Event, GaussianStep
from fedsys.privacy.plan import PrivacyPlan

__all__ = ["ParticipantLoss", "participant_steps"]


def participant_steps(
    apart: Counter[GaussianStep], together: GaussianStep, shared: int
) -> Counter[GaussianStep]:
    """The amplified rounds, less ``shared`` of the cheapest of them, plus as many unamplified."""
    counts, left = Counter(apart), shared
    for step in sorted(apart, reverse=True):  # the most noise first
        taken = min(left, counts[step])
        counts[step] -= taken
        left -= taken
    counts = +counts
    if shared:
        counts[together] += shared
    return counts


class ParticipantLoss:
    """Rounds that a curious client shared with its target count unamplified, the others amplified.

    Every invited member sees who else was invited, so the question is what a target's update was,
    its update or zero, not whether the target was there; see `fedsys.privacy.events.base`. For the
    target with the most shared rounds: what its other rounds cost an outsider, and the shared ones
    at the noise that is left without the curious clients' own shares. Rounds in which a curious
    client sees that the target is absent cost nothing and are counted as amplified ones all the
    same.

    Where no randomness of the sampling counts (min-separation, arrivals, unit ``example``), all
    turns of the target count as shared.

    Args:
        plan: of the job.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        self._unknown = 0
        self._apart: Counter[GaussianStep] = Counter()
        self._together: Counter[GaussianStep] = Counter()
        self.meetings = Meetings(
            population=plan.population, colluders=max(plan.colluders, 1), rounds=plan.rounds
        )

    def add(self, event: Event, sampled: NDArray[np.int64] | None) -> None:
        """Charges one round; in an unknown cohort everybody may have met everybody.

        Args:
            event: what it cost.
            sampled: (k,) distinct clients of the cohort; None if unknown.
        """
        self._apart[outsider_step(event)] += 1
        self._together[together_step(event)] += 1
        if sampled is None:
            self._unknown += 1
        else:
            self.meetings.add(sampled)

    def epsilon(self, next_event: Event | None = None) -> float:
        """Spent so far, or at worst once ``next_event`` is charged too."""
        plan, apart, together = self._plan, Counter(self._apart), Counter(self._together)
        shared = self.meetings.most + self._unknown
        if next_event is not None:
            apart[outsider_step(next_event)] += 1
            together[together_step(next_event)] += 1
            shared += 1
        rounds = apart.total()
        if not rounds:
            return 0.0
        turns = plan.turns(rounds)
        if turns < rounds:
            apart = Counter({worst_step(apart): turns})
        if plan.by_turns or plan.unit == "example":
            shared = turns
        counts = participant_steps(apart, worst_step(together), min(shared, turns))
        found = steps_epsilon(counts, plan.delta_of("participant"))
        return plan.charges.covered("participant", found)
