"""The least noise that meets a target epsilon, by the accountant that is reported.

>>> from fedsys.privacy.planning import make_plan
>>> plan = make_plan(mechanism="central-gaussian", population=1000, expected_cohort=100,
...     rounds=100, dimension=1000, clip=1.0, delta=1e-5, noise_multiplier=1.0)
>>> abs(calibrate(4.0, plan) - 1.386) < 0.02  # published: 1.386, without aborts in delta
True
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.accounting.costs import (
    Steps,
    outsider_step,
    rdp_epsilon,
    squares_of,
    steps_epsilon,
)
from fedsys.privacy.accounting.exact_gaussian import composed_epsilon
from fedsys.privacy.accounting.noise_charges import NoiseTooCoarse
from fedsys.privacy.accounting.server import worst_server
from fedsys.privacy.encoding.rings import MAX_BITS
from fedsys.privacy.numerics.roots import brent
from fedsys.privacy.plan import LEAST_NOISE, PrivacyPlan

__all__ = ["bisect_noise", "calibrate", "guaranteed_epsilon", "least_noise", "planned_outsider"]

_LARGEST = 1e5
_RELATIVE = 1e-6


@lru_cache(maxsize=256)
def planned_outsider(plan: PrivacyPlan) -> float:
    """The outsider's epsilon after all T rounds, by the reported accountant.

    Infinite if no noise is added.
    """
    steps = {outsider_step(plan.event()): plan.turns(plan.rounds)}
    found = steps_epsilon(steps, plan.delta_of("outsider"))
    return plan.charges.covered("outsider", found)


def guaranteed_epsilon(plan: PrivacyPlan) -> float:
    """The guaranteed view's epsilon at the end of the job, in the worst case.

    Infinite if no noise is added.
    """
    if plan.guarantee == "outsider":
        return planned_outsider(plan)
    return worst_server(plan, plan.rounds)


def bisect_noise(
    epsilon_at: Callable[[float], float], target: float, *, start: float | None = None
) -> float:
    """The smallest noise multiplier z with ``epsilon_at(z) <= target``, rounded up at six digits.

    Brent's method on log z (Brent, "Algorithms for Minimization without Derivatives", 1973).

    Args:
        epsilon_at: epsilon by noise multiplier; non-increasing, may be infinite.
        target: the epsilon to meet.
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
    # Brent's method bisects, and interpolates where the curve is smooth. An infinite epsilon is
    # capped, because interpolation needs finite values.
    root = brent(
        lambda log_z: min(epsilon_at(math.exp(log_z)), 1e9 + 2 * target) - target,
        math.log(low),
        math.log(high),
        tolerance=_RELATIVE / 4,
    )
    found = math.exp(root) * (1 + _RELATIVE / 2)
    while epsilon_at(found) > target:
        found *= 1 + _RELATIVE
    return min(found, high)


def least_noise(steps_at: Callable[[float], Steps], target: float, delta: float) -> float:
    """The smallest noise multiplier whose steps meet a target by the reported accountant.

    Loss distributions are expensive to compute where there is little noise. So the search starts
    from the answer of cheaper upper bounds, which ask for slightly more noise, and goes below it
    only as far as necessary.

    Args:
        steps_at: the job's steps by noise multiplier.
        target: the epsilon to meet.
        delta: in (0, 1).

    Raises:
        MechanismError: even the largest multiplier does not meet the target.
    """

    start = bisect_noise(lambda z: _bound(steps_at(z), target, delta), target)
    if start == LEAST_NOISE:
        return start
    return bisect_noise(lambda z: steps_epsilon(steps_at(z), delta), target, start=start)


def calibrate(target_epsilon: float, plan: PrivacyPlan) -> float:
    """The least noise multiplier with which all of a plan's rounds meet a target.

    Args:
        target_epsilon: the epsilon to meet in the view ``plan.guarantee``, at ``plan.delta``.
        plan: the plan to calibrate; its own noise multiplier is ignored.

    Raises:
        MechanismError: the plan has no noise to calibrate, or nothing meets the target.
    """
    validation.positive("epsilon", target_epsilon)
    if not plan.protected:
        raise MechanismError(
            f"mechanism={plan.mechanism!r} adds no noise: no epsilon can be met; choose another"
        )

    def epsilon_at(multiplier: float) -> float:
        tried = _with_noise(plan, multiplier)
        return math.inf if tried is None else guaranteed_epsilon(tried)

    if plan.guarantee == "server" or plan.accountant != "pld":
        return bisect_noise(epsilon_at, target_epsilon)
    step, turns = outsider_step(plan.event()), plan.turns(plan.rounds)
    unit = step.multiplier / plan.noise_multiplier  # every view's multiplier is proportional to z

    def bound_at(multiplier: float) -> float:
        tried = dataclasses.replace(step, multiplier=multiplier * unit)
        return _bound({tried: turns}, target_epsilon, plan.delta / 2)

    start = bisect_noise(bound_at, target_epsilon)
    return bisect_noise(epsilon_at, target_epsilon, start=start)


def _bound(steps: Steps, target: float, delta: float) -> float:
    """An upper bound on epsilon, without loss distributions."""
    plain = composed_epsilon(delta, squares_of(steps))
    return plain if plain <= target else min(plain, rdp_epsilon(steps, delta))


def _with_noise(plan: PrivacyPlan, multiplier: float) -> PrivacyPlan | None:
    """The plan with another multiplier; None where that is too little noise to be accounted for."""
    widest = plan.modulus_bits if plan.encoding == "narrow" else MAX_BITS  # room for any noise
    try:
        return plan.changed(noise_multiplier=multiplier, budget=None, modulus_bits=widest)
    except NoiseTooCoarse:
        return None
