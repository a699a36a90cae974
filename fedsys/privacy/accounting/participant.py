"""The participant's view: c curious clients, who know the cohorts that they were in."""

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
    """The amplified steps, with the ``shared`` cheapest of them replaced by ``together``."""
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
    """The privacy loss against curious clients: rounds shared with the target count unamplified.

    Every invited member sees who else was invited, so neighbours are the target's update or zero,
    not its presence or absence; see `fedsys.privacy.events.base`. The loss is that of the target
    with the most shared rounds. Its other rounds cost what they cost an outsider; the shared ones
    cost what the noise without the curious clients' own shares allows. Rounds in which a curious
    client sees that the target is absent cost nothing, but are counted as amplified ones.

    Where the sampling's randomness does not count (min-separation, arrivals, unit ``example``), all
    of the target's turns count as shared.

    Args:
        plan: the job's plan.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        self._unknown = 0
        self._apart: Counter[GaussianStep] = Counter()
        self._together: Counter[GaussianStep] = Counter()
        self.meetings = Meetings(population=plan.population, colluders=max(plan.colluders, 1))

    def add(self, event: Event, sampled: NDArray[np.int64] | None) -> None:
        """Charges one round; if its cohort is unknown, everybody may have met everybody.

        Args:
            event: the round's event.
            sampled: (k,) the cohort's distinct clients; None if unknown.
        """
        self._apart[outsider_step(event)] += 1
        self._together[together_step(event)] += 1
        if sampled is None:
            self._unknown += 1
        else:
            self.meetings.add(sampled)

    def steps(self, next_event: Event | None = None) -> Counter[GaussianStep]:
        """The steps that count against the client with the most shared rounds, including the next
        event at its worst if given."""
        plan, apart, together = self._plan, Counter(self._apart), Counter(self._together)
        shared = self.meetings.most + self._unknown
        if next_event is not None:
            apart[outsider_step(next_event)] += 1
            together[together_step(next_event)] += 1
            shared += 1
        rounds = apart.total()
        if not rounds:
            return Counter()
        turns = plan.turns(rounds)
        if turns < rounds:
            apart = Counter({worst_step(apart): turns})
        if plan.by_turns or plan.unit == "example":
            shared = turns
        return participant_steps(apart, worst_step(together), min(shared, turns))

    def epsilon(self, next_event: Event | None = None) -> float:
        """Epsilon spent so far, or at worst once ``next_event`` is charged too."""
        plan = self._plan
        found = steps_epsilon(self.steps(next_event), plan.delta_of("participant"))
        return plan.charges.covered("participant", found)
