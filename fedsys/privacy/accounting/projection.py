"""Projects what a planned job will cost in each view, by every accountant that applies.

>>> from fedsys.privacy.planning import make_plan
>>> plan = make_plan(mechanism="distributed-gaussian", population=1000, expected_cohort=50,
...     rounds=200, dimension=60_000, clip=1.0, delta=1e-5, noise_multiplier=1.0)
>>> projection = project(plan)
>>> round(projection.reported, 2), projection.participations, projection.meetings
(4.77, 21, 6)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedsys.privacy.accounting.costs import (
    Accountant,
    Steps,
    accountant_of,
    outsider_step,
    second_opinion,
    server_step,
    steps_epsilon,
    together_step,
)
from fedsys.privacy.accounting.participant import participant_steps
from fedsys.privacy.numerics import binomial
from fedsys.privacy.plan import PrivacyPlan
from fedsys.privacy.views import View, epsilon_to_json

__all__ = ["Projection", "outsider_epsilons", "project", "typical_maximum"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """The epsilons of a job that runs all its rounds.

    Attributes:
        epsilon: epsilon by view, then by accountant.
        reported: the outsider's epsilon, by the plan's accountant.
        participations: the typical number of rounds of the client that takes part most often.
        meetings: the typical number of rounds that some client shares with curious clients.
        survivors: the number of clients in a sum that the server's view assumes.
    """

    epsilon: Mapping[View, Mapping[str, float]]
    reported: float
    participations: int
    meetings: int
    survivors: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object; an infinite epsilon is the string "inf"."""
        return {
            "epsilon": {
                view: {name: epsilon_to_json(value) for name, value in values.items()}
                for view, values in self.epsilon.items()
            },
            "reported": epsilon_to_json(self.reported),
            "participations": self.participations,
            "meetings": self.meetings,
            "survivors": self.survivors,
        }


def typical_maximum(*, trials: int, probability: float, candidates: float) -> int:
    """The smallest k such that, by a union bound, all of ``candidates`` variables distributed as
    Bin(trials, probability) are at most k with probability 1/2 or more.

    Args:
        trials: the number of rounds.
        probability: the probability of a success in each.
        candidates: the number of variables.
    """
    low, high = 0, trials
    while low < high:
        middle = (low + high) // 2
        if candidates * binomial.above(middle, trials, probability) <= 0.5:
            high = middle
        else:
            low = middle + 1
    return low


def project(plan: PrivacyPlan) -> Projection:
    """Epsilon by view and accountant after all of a plan's rounds.

    The outsider's is a promise. The participant's and the server's depend on how often clients
    happen to take part: they are projected for typical maxima here, and counted during the run.
    """
    event, turns = plan.event(), plan.turns(plan.rounds)
    participations = typical_maximum(
        trials=plan.rounds, probability=plan.rate, candidates=plan.population
    )
    limit = plan.rounds if plan.max_participations is None else plan.max_participations
    participations = min(participations, limit, turns)
    colluders = max(plan.colluders, 1)
    pairs = plan.population * (plan.population - 1) / 2
    together = typical_maximum(trials=plan.rounds, probability=plan.rate**2, candidates=pairs)
    meetings = min(together * colluders, participations)
    survivors = max(
        plan.min_survivors, min(math.floor(plan.expected_cohort * (1 - plan.dropout)), plan.cap)
    )
    apart = {outsider_step(event): turns}
    if plan.by_turns or plan.unit == "example":
        meetings = turns  # nothing is left that amplifies
    seen: dict[View, Steps] = {
        "participant": participant_steps(Counter(apart), together_step(event), meetings),
        "server": {server_step(event, survivors): participations},
    }
    outsider = outsider_epsilons(apart, plan.delta_of("outsider"))
    reported = next(iter(outsider.values()))
    epsilon: dict[View, Mapping[str, float]] = {"outsider": outsider}
    for view, steps in seen.items():
        delta = plan.delta_of(view)
        found = plan.charges.covered(view, steps_epsilon(steps, delta))
        epsilon[view] = {accountant_of(steps, delta): found}
    return Projection(
        epsilon=epsilon,
        reported=reported,
        participations=participations,
        meetings=meetings,
        survivors=survivors,
    )


def outsider_epsilons(steps: Steps, delta: float) -> dict[str, float]:
    """The outsider's epsilon for these steps: the reported accountant's first, then a check.

    Args:
        steps: the steps of all rounds that count.
        delta: in (0, 1).

    Returns:
        Epsilon by accountant; the check is dp-accounting's Rényi accountant, where it applies.

    Raises:
        MechanismError: ``delta`` is out of range.
    """
    reported: Accountant = accountant_of(steps, delta)
    values: dict[str, float] = {reported: steps_epsilon(steps, delta)}
    check = second_opinion(steps, delta)
    if reported != "rdp" and check is not None:
        values["rdp"] = check
    return values
