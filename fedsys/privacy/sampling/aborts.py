"""Aborts that an outsider can see, and what they cost.

A round is aborted if its cohort exceeds n_cap or fewer than m clients survive. Whether *one* client
makes the difference depends on the others alone: it can only if n_cap or more of the N - 1 others
are sampled, Bin(N-1, q) >= n_cap, or at most m - 1 of them survive, Bin(N-1, q (1 - dropout)) <=
m - 1. Outside that event the release is the mechanism's with or without the client, for every fixed
choice of the others. So the event's probability over all rounds is added to delta, without a factor
exp(epsilon).

>>> choice = choose_cap_and_min_survivors(
...     population=1000, expected_cohort=50, rounds=200, delta=1e-5, dropout=0.05)
>>> choice.cap, choice.min_survivors, choice.delta_abort <= 1e-7
(99, 12, True)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.events import SamplingKind
from fedsys.privacy.numerics import binomial

__all__ = [
    "ABORT_SHARE",
    "AbortBounds",
    "abort_delta",
    "choose_cap_and_min_survivors",
]

ABORT_SHARE = 0.1
"""The largest part of delta that aborts may cost; a plan with more is refused."""

_CHOSEN_SHARE = 0.01
"""The part of delta that the bounds chosen here cost: wider bounds cost less than delta does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AbortBounds:
    """A cohort's bounds, and what crossing them costs over the whole job.

    Attributes:
        cap: n_cap, the largest cohort that is not aborted.
        min_survivors: m, the fewest survivors whose sum is released.
        delta_abort: the probability that in some round an abort depends on one client.
    """

    cap: int
    min_survivors: int
    delta_abort: float


def _overflow(*, population: int, rate: float, rounds: int, cap: int) -> float:
    """T P[Bin(N-1, q) >= n_cap]."""
    if cap > population - 1:
        return 0.0
    return rounds * binomial.above(cap - 1, population - 1, rate)


def _shortfall(*, others: int, rate: float, rounds: int, min_survivors: int) -> float:
    """T P[Bin(others, rate) <= m - 1]."""
    if others <= min_survivors - 1:
        return float(rounds)
    return rounds * binomial.below(min_survivors - 1, others, rate)


def abort_delta(
    *,
    population: int,
    expected_cohort: float,
    rounds: int,
    cap: int,
    min_survivors: int,
    dropout: float,
    sampling: SamplingKind = "poisson",
    groups: int = 1,
) -> float:
    """delta_abort: the probability that some round's abort depends on one client, by a union bound.

    Args:
        population: N.
        expected_cohort: n = q N.
        rounds: T.
        cap: n_cap.
        min_survivors: m.
        dropout: the assumed probability that a sampled client drops out; stated in the ledger.
        sampling: how cohorts are drawn; one of constant size cannot exceed a cap.
        groups: the number of cyclic groups that take turns, each sampled at ``groups`` times the
            rate.

    Raises:
        MechanismError: ``rounds`` or ``dropout`` is out of range.
    """
    validation.integer("rounds", rounds)
    validation.fraction("dropout", dropout, zero=True)
    smallest, largest = population // groups, -(-population // groups)
    rate = min(1.0, groups * expected_cohort / population)
    if sampling != "poisson":
        others = round(expected_cohort) - 1
        return min(
            1.0,
            _shortfall(others=others, rate=1 - dropout, rounds=rounds, min_survivors=min_survivors),
        )
    return min(
        1.0,
        _overflow(population=largest, rate=rate, rounds=rounds, cap=cap)
        + _shortfall(
            others=smallest - 1,
            rate=rate * (1 - dropout),
            rounds=rounds,
            min_survivors=min_survivors,
        ),
    )


def choose_cap_and_min_survivors(
    *,
    population: int,
    expected_cohort: float,
    rounds: int,
    delta: float,
    dropout: float,
    sampling: SamplingKind = "poisson",
    colluders: int = 0,
    above_colluders: bool = False,
    groups: int = 1,
) -> AbortBounds:
    """The smallest n_cap and largest m whose aborts together cost at most a hundredth of delta.

    Args:
        population: N.
        expected_cohort: n = q N.
        rounds: T.
        delta: the job's delta.
        dropout: the assumed probability that a sampled client drops out.
        sampling: how cohorts are drawn.
        colluders: c, at least 0.
        above_colluders: whether m must exceed c, as in the server guarantee, whose noise comes from
            m - c clients.
        groups: the number of cyclic groups that take turns.

    Raises:
        MechanismError: no m >= 1 (above c, for the server guarantee) keeps aborts that rare, or a
            value is out of range.
    """
    validation.integer("population", population)
    validation.integer("rounds", rounds)
    validation.fraction("delta", delta)
    validation.fraction("dropout", dropout, zero=True)
    validation.positive("expected_cohort", expected_cohort)
    if expected_cohort > population:
        raise MechanismError(
            f"expected_cohort={expected_cohort:g} exceeds population={population}: lower the cohort"
        )
    each = delta * _CHOSEN_SHARE / 2
    smallest, largest = population // groups, -(-population // groups)
    rate = min(1.0, groups * expected_cohort / population)
    if sampling == "poisson":
        cap = _least(
            lambda c: _overflow(population=largest, rate=rate, rounds=rounds, cap=c) <= each,
            low=1,
            high=population,
        )
        others, alive = smallest - 1, rate * (1 - dropout)
    else:
        cap = round(expected_cohort)
        others, alive = cap - 1, 1 - dropout
    too_many = _least(
        lambda m: _shortfall(others=others, rate=alive, rounds=rounds, min_survivors=m) > each,
        low=1,
        high=cap + 1,
    )
    survivors = too_many - 1
    least = colluders + 1 if above_colluders else 1
    if survivors < least:
        raise MechanismError(
            f"a cohort of {expected_cohort:g} with dropout={dropout:g} is too small: rounds with "
            f"fewer than {least} survivors have a chance above delta/200={each:.2g} over {rounds} "
            "rounds; raise cohort.expected or delta"
        )
    return AbortBounds(
        cap=cap,
        min_survivors=survivors,
        delta_abort=abort_delta(
            population=population,
            expected_cohort=expected_cohort,
            rounds=rounds,
            cap=cap,
            min_survivors=survivors,
            dropout=dropout,
            sampling=sampling,
            groups=groups,
        ),
    )


def _least(holds: Callable[[int], bool], *, low: int, high: int) -> int:
    """The smallest value in [low, high] at which a monotone condition holds (high if none)."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
