"""What a planned job will cost in each view, by every accountant that applies.

>>> from fedsys.privacy.plan import make_plan
>>> plan = make_plan(mechanism="distributed-skellam", population=1000, expected_cohort=50,
...     rounds=200, dimension=60_000, clip=1.0, delta=1e-5, noise_multiplier=1.0)
>>> projection = project(plan)
>>> round(projection.reported, 2), projection.participations, projection.meetings
(5.37, 21, 6)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy.special import bdtrc

from fedsys.privacy.costs import (
    apart_cost,
    outsider_cost,
    outsider_epsilons,
    server_cost,
    together_cost,
)
from fedsys.privacy.plan import PrivacyPlan
from fedsys.privacy.rdp import epsilon_of
from fedsys.privacy.views import View, epsilon_to_json

__all__ = ["Projection", "project", "typical_maximum"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """Epsilons of a job that runs all its rounds.

    Attributes:
        epsilon: by view, then by accountant.
        reported: the outsider's, by the plan's accountant.
        participations: rounds of the client that takes part most often, as is typical.
        meetings: rounds that some client shares with its most frequent companion, as is typical.
        survivors: clients in a sum, as assumed for the server view.
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
    """The smallest k that all of ``candidates`` Bin(trials, probability) stay within, more often
    than not (by a union bound).

    Args:
        trials: rounds.
        probability: of a success in each.
        candidates: how many such numbers there are.
    """
    low, high = 0, trials
    while low < high:
        middle = (low + high) // 2
        if candidates * float(bdtrc(middle, trials, probability)) <= 0.5:
            high = middle
        else:
            low = middle + 1
    return low


def project(plan: PrivacyPlan) -> Projection:
    """Epsilon by view and accountant once all of a plan's rounds are done.

    The outsider's is a promise. The participant's and the server's depend on how often clients
    happen to take part; they are given for typical maxima, and counted exactly during the run.
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
    outsider = outsider_epsilons(event, turns, plan.delta_released)
    reported = outsider[plan.accountant]
    if not plan.protected:
        participant = server = math.inf
    elif plan.unit == "example" or plan.accountant == "gaussian":
        participant = reported
        server = epsilon_of(participations * server_cost(event), plan.delta_server)
    else:
        if plan.sampling == "min-separation":
            apart, meetings = 0 * outsider_cost(event), turns
        else:
            apart = (turns - meetings) * apart_cost(event)
        participant = epsilon_of(apart + meetings * together_cost(event), plan.delta_released)
        server = epsilon_of(participations * server_cost(event, survivors), plan.delta_server)
    return Projection(
        epsilon={
            "outsider": outsider,
            "participant": {"rdp": participant},
            "server": {"rdp": server},
        },
        reported=reported,
        participations=participations,
        meetings=meetings,
        survivors=survivors,
    )
