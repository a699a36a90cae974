"""The participant's view: c curious clients who know the cohorts that they were in."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy.costs import apart_cost, together_cost
from fedsys.privacy.events import Event
from fedsys.privacy.losses.meetings import Meetings
from fedsys.privacy.losses.outsider import OutsiderLoss
from fedsys.privacy.plan import PrivacyPlan
from fedsys.privacy.rdp import ORDERS, Vector, epsilon_of

__all__ = ["ParticipantLoss"]


class ParticipantLoss:
    """Rounds that a curious client shared with its target count unamplified, the others amplified.

    For the target with the most shared rounds k: the amplified rounds, less k of the cheapest of
    them, plus k of the dearest unamplified, at each order; exact where all rounds cost the same.
    Rounds in which a curious client sees that the target is absent cost nothing and are counted as
    amplified ones all the same.

    Where nothing amplifies (min-separation sampling, unit ``example``), all turns of the target
    count as shared.
    """

    def __init__(self, plan: PrivacyPlan, outsider: OutsiderLoss) -> None:
        self._plan = plan
        self._outsider = outsider
        self._rounds = 0
        self._unknown = 0
        self._cheapest_apart: Vector = np.full_like(ORDERS, math.inf)
        self._dearest_together: Vector = np.zeros_like(ORDERS)
        self.meetings = Meetings(
            population=plan.population, colluders=max(plan.colluders, 1), rounds=plan.rounds
        )

    def add(self, event: Event, sampled: NDArray[np.int64] | None) -> None:
        """Charges one round; in an unknown cohort everybody may have met everybody.

        Args:
            event: what it cost.
            sampled: (k,) distinct clients of the cohort; None if unknown.
        """
        self._rounds += 1
        self._cheapest_apart, self._dearest_together = self._with(event)
        if sampled is None:
            self._unknown += 1
        else:
            self.meetings.add(sampled)

    def _with(self, event: Event | None) -> tuple[Vector, Vector]:
        if event is None:
            return self._cheapest_apart, self._dearest_together
        return (
            np.minimum(self._cheapest_apart, apart_cost(event)),
            np.maximum(self._dearest_together, together_cost(event)),
        )

    def epsilon(self, next_event: Event | None = None) -> float:
        """Spent so far, or at worst once ``next_event`` is charged too."""
        plan = self._plan
        if plan.unit == "example" or plan.accountant == "gaussian":
            return self._outsider.epsilon(next_event)  # no share, no amplification to lose
        rounds = self._rounds + (next_event is not None)
        cheapest, dearest = self._with(next_event)
        if plan.sampling == "min-separation":
            return epsilon_of(plan.turns(rounds) * dearest, plan.delta_released)
        shared = self.meetings.most + self._unknown + (next_event is not None)
        shared = min(shared, plan.turns(rounds))
        apart = self._outsider.curve(next_event)
        if not shared:
            return epsilon_of(apart, plan.delta_released)
        curve = np.full_like(ORDERS, math.inf)
        finite = np.isfinite(cheapest) & np.isfinite(apart)
        rest = np.maximum(apart[finite] - shared * cheapest[finite], 0.0)
        curve[finite] = rest + shared * dearest[finite]
        return epsilon_of(curve, plan.delta_released)
