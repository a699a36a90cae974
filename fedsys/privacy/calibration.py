"""The least noise that meets a target: bracketed on the accountant that is reported.

>>> from fedsys.privacy.plan import make_plan
>>> plan = make_plan(mechanism="central-gaussian", population=1000, expected_cohort=100,
...     rounds=100, dimension=1000, clip=1.0, delta=1e-5, noise_multiplier=1.0)
>>> abs(calibrate(4.0, plan) - 1.386) < 0.02  # published: 1.386, without aborts in delta
True
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from scipy.optimize import brentq

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.costs import outsider_cost, reported_outsider, server_cost
from fedsys.privacy.plan import LEAST_NOISE, PrivacyPlan
from fedsys.privacy.rdp import ORDERS, SERVER_ORDERS, epsilon_of

__all__ = ["bisect_noise", "calibrate", "guaranteed_epsilon", "planned_outsider"]

_LARGEST = 1e5
_RELATIVE = 1e-6


def planned_outsider(plan: PrivacyPlan) -> float:
    """The outsider's epsilon once all T rounds are done, by the reported accountant.

    Infinite where nothing is protected.
    """
    event, turns = plan.event(), plan.turns(plan.rounds)
    return reported_outsider(event, turns, plan.delta_released)


def _rdp_outsider(plan: PrivacyPlan) -> float:
    turns = plan.turns(plan.rounds)
    return epsilon_of(turns * outsider_cost(plan.event()), plan.delta_released)


def guaranteed_epsilon(plan: PrivacyPlan) -> float:
    """Epsilon of the guaranteed view once the job is done, at its worst case.

    Infinite where nothing is protected.
    """
    if plan.guarantee == "outsider":
        return planned_outsider(plan)
    times = min(plan.rounds, plan.max_participations or plan.rounds)
    curve = times * server_cost(plan.event())
    return epsilon_of(curve[SERVER_ORDERS], plan.delta_server, ORDERS[SERVER_ORDERS])


def bisect_noise(
    epsilon_at: Callable[[float], float], target: float, *, start: float | None = None
) -> float:
    """The smallest noise multiplier with ``epsilon_at(z) <= target``, to six digits, never below.

    Brent's method on log z (Brent, "Algorithms for Minimization without Derivatives", 1973).

    Args:
        epsilon_at: falls with the multiplier.
        target: epsilon to meet.
        start: a multiplier near the answer, from which to bracket it.

    Raises:
        MechanismError: even the largest multiplier does not meet the target.
    """
    low, high = LEAST_NOISE, 1.0
    if start is not None:
        low, high = max(start / 1.2, LEAST_NOISE), max(start, LEAST_NOISE)
        while low > LEAST_NOISE and epsilon_at(low) <= target:
            low, high = max(low / 1.2, LEAST_NOISE), low
    while epsilon_at(high) > target:
        low, high = high, 2 * high
        if high > _LARGEST:
            raise MechanismError(
                f"epsilon={target:g} is out of reach: even noise_multiplier={_LARGEST:g} exceeds "
                "it; raise epsilon or delta, or lower rounds or the cohort"
            )
    if low == LEAST_NOISE and epsilon_at(low) <= target:
        return low
    # Brent's bracketing method: bisection that takes a shorter way where the curve is smooth
    root = brentq(
        lambda log_z: epsilon_at(math.exp(log_z)) - target,
        math.log(low),
        math.log(high),
        xtol=_RELATIVE / 4,
    )
    found = math.exp(root) * (1 + _RELATIVE / 2)
    while epsilon_at(found) > target:
        found *= 1 + _RELATIVE
    return min(found, high)


def calibrate(target_epsilon: float, plan: PrivacyPlan) -> float:
    """The least noise multiplier with which all of a plan's rounds fit under a target.

    Args:
        target_epsilon: in the view of ``plan.guarantee``, at ``plan.delta``.
        plan: its own noise multiplier is not looked at.

    Raises:
        MechanismError: the plan has no noise to calibrate, or nothing meets the target.
    """
    validation.positive("epsilon", target_epsilon)
    if not plan.protected:
        raise MechanismError(
            f"mechanism={plan.mechanism!r} adds no noise: no epsilon can be met; choose another"
        )

    def epsilon_at(multiplier: float) -> float:
        return guaranteed_epsilon(dataclasses.replace(plan, noise_multiplier=multiplier))

    if plan.guarantee == "server" or plan.accountant != "pld":
        return bisect_noise(epsilon_at, target_epsilon)
    # A loss distribution is dear where there is little noise: come from the Rényi answer, which
    # needs a little more noise, and look below it only as far as it takes.
    start = bisect_noise(
        lambda z: _rdp_outsider(dataclasses.replace(plan, noise_multiplier=z)), target_epsilon
    )
    return bisect_noise(epsilon_at, target_epsilon, start=start)
