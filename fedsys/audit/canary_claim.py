"""The claims of a ledger that canaries can contradict: epsilon, trade-off curve, law of scores.

>>> from fedsys.privacy import make_plan
>>> plan = make_plan(mechanism="distributed-gaussian", population=1437, expected_cohort=100,
...     rounds=40, dimension=650, clip=0.3, delta=1e-5, noise_multiplier=0.7)
>>> claimed = planned(plan)
>>> round(claimed.law.sigma, 3)  # 0.7 clipping norms a round, 40 rounds
4.427
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fedsys.audit.canary_scores import ScoreLaw
from fedsys.audit.tradeoff import Tradeoff, tradeoff_of
from fedsys.privacy import Event, PrivacyPlan, ViewAccountant
from fedsys.privacy.accounting.costs import Steps, steps_epsilon
from fedsys.privacy.events import BandedEvent, GaussianStep
from fedsys.privacy.factorization import inverse_series

__all__ = ["Claimed", "claimed_of", "planned", "score_law"]

_LEAST_MULTIPLIER = 0.3
"""Noise multiplier below which no loss distribution is computed just to show a figure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """The claim under test.

    Attributes:
        epsilon: the outsider's epsilon.
        delta: the job's delta.
        steps: the steps that can affect one client, as the outsider's accountant counts them.
        overhead: the part of delta that aborts and the noise's distance from a Gaussian take.
        noise_distance: bound on that distance in total variation, all rounds together.
        tradeoff: the curve of the steps; None where they promise nothing.
        law: the law of the scores; None where it is not known.
    """

    epsilon: float
    delta: float
    steps: Steps
    overhead: float
    noise_distance: float
    tradeoff: Tradeoff | None
    law: ScoreLaw | None

    def epsilon_for(self, delta: float) -> float:
        """The outsider's epsilon at another delta, which the same rounds promise as well.

        Args:
            delta: above ``overhead``; otherwise nothing is promised.
        """
        if delta == self.delta:
            return self.epsilon
        return (
            steps_epsilon(self.steps, delta - self.overhead) if delta > self.overhead else math.inf
        )

    def epsilon_at(self, ratio: float) -> float:
        """A lower bound on the outsider's epsilon at ``ratio`` times the claimed noise.

        Where hardly any noise is left, the figure is that of more noise, which is a bound as well.
        """
        least = min((step.multiplier for step in self.steps), default=0.0)
        if least <= 0:
            return math.inf
        ratio = max(ratio, min(1.0, _LEAST_MULTIPLIER / least))
        scaled = Counter(
            {
                GaussianStep(
                    multiplier=step.multiplier * ratio,
                    rate=step.rate,
                    replaces=step.replaces,
                    count=step.count,
                ): count
                for step, count in self.steps.items()
            }
        )
        return steps_epsilon(scaled, self.delta - self.overhead)


def claimed_of(plan: PrivacyPlan, steps: Steps, *, epsilon: float, law: ScoreLaw | None) -> Claimed:
    """The claim of a plan whose rounds took these steps."""
    overhead = plan.delta - plan.delta_of("outsider") if plan.protected else 0.0
    return Claimed(
        epsilon=epsilon,
        delta=plan.delta,
        steps=steps,
        overhead=overhead,
        noise_distance=plan.charges.of("outsider") if plan.protected else 0.0,
        tradeoff=tradeoff_of(steps, overhead=overhead) if plan.protected else None,
        law=law,
    )


def planned(plan: PrivacyPlan) -> Claimed:
    """The claim of a job before it begins, if every round is reserved and committed."""
    accountant, event = ViewAccountant(plan), plan.event()
    for _ in range(plan.rounds):
        accountant.outsider.add(event)
    law = score_law(
        plan,
        [(number, event) for number in range(1, plan.rounds + 1)],
        reserved=plan.rounds,
        slack=0.0,
    )
    return claimed_of(
        plan, accountant.outsider.steps(), epsilon=accountant.outsider.epsilon(), law=law
    )


def score_law(
    plan: PrivacyPlan,
    committed: Iterable[tuple[int, Event]],
    *,
    reserved: int,
    slack: float | None,
) -> ScoreLaw | None:
    """The law of scores that the ledger's events claim; None where they add no noise.

    Args:
        plan: the job's plan.
        committed: number and event of each round whose sum was released.
        reserved: number of rounds in all: a canary may have been sampled in any of them.
        slack: the slack that the planter states, without the rounding of the noise; None where real
            clients' contributions could not be subtracted exactly, so that the law is not known.
    """
    rounds = list(committed)
    if slack is None or not rounds or not plan.protected:
        return None
    variance, rounding = 0.0, 0.0
    for gain, deviation, event in _drawn(rounds):
        unit = event.scale * event.clip
        variance += (gain * deviation / unit) ** 2
        # each release's noise is rounded once, by at most half an integer per coordinate
        rounding += abs(gain) * math.sqrt(event.length) / (2 * unit)
    if variance <= 0:
        return None
    event = rounds[0][1]
    independent = event.sampling.kind == "poisson" and not isinstance(event, BandedEvent)
    return ScoreLaw(
        sigma=math.sqrt(variance),
        rounds=reserved,
        rate=event.sampling.counted_rate if independent else None,
        most=plan.contributions(reserved),
        slack=slack + rounding,
    )


def _drawn(rounds: list[tuple[int, Event]]) -> list[tuple[float, float, Event]]:
    """Of each independent draw: its weight in the sum of all releases, its deviation in integers,
    and its event."""
    event = rounds[0][1]
    if not isinstance(event, BandedEvent):
        return [(1.0, math.sqrt(each.total_variance), each) for _, each in rounds]
    # n_t = sum_u inverse[t - u] Z_u: a draw enters every later release that was committed
    last = max(number for number, _ in rounds)
    released = np.zeros(last)
    released[[number - 1 for number, _ in rounds]] = 1.0
    inverse = inverse_series(event.factors.coefficients, last)
    gains = np.correlate(released, inverse, mode="full")[last - 1 :]
    return [(float(gain), event.white_deviation, event) for gain in gains]
