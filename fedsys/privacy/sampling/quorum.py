"""Rounds that secure aggregation gives up for all to see: what it withstands, what the rest costs.

A sum needs a committee: so many of its members must stay to endorse one set of uploads and to
answer for it. Up to a cohort of 100 everybody is on the committee; above, it is drawn from the
cohort without replacement. A round that loses more members than its committee withstands has no
sum, and everybody notices. Whether one client tips it over depends on how many of the others are
lost. So parameters withstand more losses than are to be expected: as many as are exceeded with
probability 2^-40, where the quorum leaves room for that. What is left, in small cohorts above all,
is charged to delta.

Members are taken to be lost independently, and whoever is lost is missing from the committee. So
the number of a committee's members that stay is binomial, however the committee was drawn.

>>> withstood(100, corrupt=0.1, dropout=0.1)
Withstood(losses=37, committee=None)
>>> withstood(1000, corrupt=0.1, dropout=0.1)
Withstood(losses=101, committee=190)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc

from fedsys.privacy.events import SamplingKind
from secure_agg.committee import (
    EVERYBODY,
    MAX_COHORT,
    MAX_COMMITTEE,
    Committee,
    choose_committee,
    cohort_colluders,
)
from secure_agg.errors import ParameterError

__all__ = ["RARE_BITS", "Cohorts", "Withstood", "quorum_delta", "remedy", "withstood"]

RARE_BITS = 40
"""Losses that parameters do not withstand have a chance of 2^-40, where there is room for that."""

_SLACK = 1e-9  # 0.9 * 10 is 9.000000000000002 or 8.999999999999998 and means 9
_MARGINS = (1, 5, 10, 15, 20, 25, 30, 35, RARE_BITS)
"""Losses in the cohort that are exceeded with probability 2^-bits; the drawing of the committee has
a margin of its own, so that the least that does is taken."""
_CLASSES = 4
"""Cohorts of so many sizes an octave have committees of the same size, with the same margin: all
sizes that a job's cohorts may have can then be looked at in a fraction of a second."""
_WIDTH = 9
"""Standard deviations of a cohort's size that are looked at one by one; 2^-60 lies outside."""
_DROPOUTS = (0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0)
"""Probabilities of losses that a remedy may name."""


@dataclass(frozen=True, kw_only=True)
class Withstood:
    """What the parameters of a cohort are to withstand.

    Attributes:
        losses: members that may be lost.
        committee: size of the committee; None where everybody is on it, or any will do.
    """

    losses: int
    committee: int | None


@lru_cache(maxsize=65_536)
def withstood(n: int, *, corrupt: float, dropout: float, colluders: int = 0) -> Withstood | None:
    """What the parameters of a cohort of n are to withstand; None where none would be of use.

    A committee of everybody withstands the losses that are exceeded with probability 2^-40, or as
    many as its quorum leaves. Where that is less than `dropout` of the cohort, nothing is promised.

    Args:
        n: invited.
        corrupt: fraction of them that may collude with the server.
        dropout: probability that a member is lost.
        colluders: absolute number in the roster that may collude, where that is more.
    """
    if not 2 <= n <= MAX_COHORT:
        return None
    try:
        bad = cohort_colluders(n=n, corrupt=corrupt, colluders=colluders)
    except ParameterError:
        return None
    if n > EVERYBODY:
        octaves = math.ceil(_CLASSES * math.log2(n) - _SLACK)
        largest = min(max(n, math.floor(2 ** (octaves / _CLASSES))), MAX_COHORT)
        drawn = _drawn(largest, corrupt, dropout, colluders)
        if drawn is not None:
            bits, size = drawn
            found = Withstood(losses=_losses(n, dropout, bits), committee=size)
            if size <= n and _committee(n, corrupt, colluders, found) is not None:
                return found
        if n > MAX_COMMITTEE:
            found = Withstood(losses=_losses(n, dropout, RARE_BITS), committee=None)
            return None if _committee(n, corrupt, colluders, found) is None else found
    room = n - max((n + bad) // 2 + 1, max(bad, 1) + 1)
    if room < math.ceil(dropout * n - _SLACK):
        return None
    return Withstood(losses=min(room, _losses(n, dropout, RARE_BITS)), committee=None)


@lru_cache(maxsize=1024)
def _drawn(n: int, corrupt: float, dropout: float, colluders: int) -> tuple[int, int] | None:
    """The least margin, in bits, and the size of the committee with which a cohort of n is given up
    with probability 2^-40 at most, or nearly so; None where no margin leaves a quorum."""
    found = None
    for bits in _MARGINS:
        asked = Withstood(losses=_losses(n, dropout, bits), committee=None)
        committee = _committee(n, corrupt, colluders, asked)
        if committee is None:
            break
        found = bits, committee.size
        if _fewer(committee.needed, committee.size - 1, 1 - dropout) <= 2.0**-RARE_BITS:
            break
    return found


def _committee(n: int, corrupt: float, colluders: int, asked: Withstood) -> Committee | None:
    """The committee that secure aggregation derives."""
    try:
        return choose_committee(
            n=n,
            corrupt=corrupt,
            dropout=asked.losses / n,
            colluders=colluders,
            size=asked.committee,
        )
    except ParameterError:
        return None


@lru_cache(maxsize=65_536)
def _losses(n: int, dropout: float, bits: int) -> int:
    """One more than the fewest losses d with P[Bin(n, dropout) > d] <= 2^-bits, by bisection.

    One more, so that the one client in question may be lost besides. None where none are expected.
    """
    if dropout == 0:
        return 0
    low, high = -1, n - 1  # too few; enough
    while high - low > 1:
        middle = (low + high) // 2
        if bdtrc(middle, n, dropout) <= 2.0**-bits:
            high = middle
        else:
            low = middle
    return min(high + 1, n - 1)


@dataclass(frozen=True, kw_only=True)
class Cohorts:
    """What a job says of its cohorts.

    Attributes:
        population: N.
        expected: n = q N.
        rounds: T.
        cap: n_cap; larger cohorts are charged elsewhere.
        min_survivors: m.
        corrupt: fraction of a cohort that may collude.
        dropout: the assumed probability that a sampled client is lost, independently.
        colluders: absolute number in the roster that may collude.
        sampling: how cohorts come about.
        groups: cyclic groups that take turns, each sampled at ``groups`` times the rate.
    """

    population: int
    expected: float
    rounds: int
    cap: int
    min_survivors: int
    corrupt: float
    dropout: float
    colluders: int = 0
    sampling: SamplingKind = "poisson"
    groups: int = 1

    def committee(self, n: int) -> Committee | None:
        """Of a cohort of n; None where it cannot be summed."""
        asked = withstood(n, corrupt=self.corrupt, dropout=self.dropout, colluders=self.colluders)
        return None if asked is None else _committee(n, self.corrupt, self.colluders, asked)

    def given_up(self, others: int, sizes: Sequence[int]) -> float:
        """P[a cohort of one of these sizes is given up, and min_survivors of `others` stay].

        Args:
            others: members besides the client in question, who counts as lost.
            sizes: of the cohorts: with the client, or with it and without it.
        """
        stays, few = 1 - self.dropout, _fewer(self.min_survivors, others, 1 - self.dropout)
        needed, apart = 0, 0.0
        for n in sizes:
            committee = self.committee(n)
            if committee is None:
                return 1.0 - few
            if self.dropout == 0:
                continue  # nobody is lost, and all of a committee can be needed
            if committee.size == n:
                needed = max(needed, committee.needed)
                continue
            seats = committee.size - (n - others)  # the client may be on the committee
            honest = cohort_colluders(n=n, corrupt=self.corrupt, colluders=self.colluders) + 2
            apart += _fewer(committee.needed, seats, stays) + _fewer(honest, others, stays)
        together = max(0.0, _fewer(needed, others, stays) - few)
        return min(1.0 - few, together + apart)


@lru_cache(maxsize=1024)
def quorum_delta(cohorts: Cohorts) -> float:
    """The probability that giving up some round depends on one client, by a union bound.

    With K others in the cohort, of whom L stay, it can only where the cohort of K or that of K + 1
    is given up, the client lost or not. Committees of everybody give up on one event, that L is too
    small; drawn ones are drawn apart, and their chances are added. Rounds of which fewer than
    `min_survivors` of the others stay are charged as such (`sampling.aborts`), not here.
    """
    if cohorts.sampling == "poisson":
        rate = min(1.0, cohorts.groups * cohorts.expected / cohorts.population)
        sizes = {cohorts.population // cohorts.groups, -(-cohorts.population // cohorts.groups)}
        missed = max(_missed(size, rate, cohorts) for size in sizes)
    else:
        n = round(cohorts.expected)
        missed = cohorts.given_up(n - 1, [n])
    return min(1.0, cohorts.rounds * missed)


def _missed(population: int, rate: float, cohorts: Cohorts) -> float:
    mean = rate * population
    width = _WIDTH * math.sqrt(mean) + 40
    most = min(population - 1, cohorts.cap - 1)
    lowest = min(max(0, math.floor(mean - width)), most)
    widest = min(most, math.ceil(mean + width))
    others = np.arange(lowest, widest + 1)
    chances = [cohorts.given_up(count, [count, count + 1]) for count in others.tolist()]
    found = float(_chances(others, population - 1, rate) @ np.array(chances))
    if lowest > 0:
        found += float(bdtr(lowest - 1, population - 1, rate))
    if widest < most:
        found += float(bdtrc(widest, population - 1, rate))
    return found


def remedy(cohorts: Cohorts, allowed: float) -> str:
    """What would keep the charge within `allowed`, for a message; only what is possible is named.

    >>> small = Cohorts(population=500, expected=30, rounds=40, cap=30, min_survivors=8,
    ...     corrupt=0.1, dropout=0.1, sampling="fixed")
    >>> remedy(small, 1e-6)
    'raise the expected cohort to 44, or lower dropout to 0.07 if no more are lost'
    """
    ways = []
    expected = _enough(cohorts, allowed)
    if expected is not None:
        ways.append(f"raise the expected cohort to {expected}")
    lower = [dropout for dropout in _DROPOUTS if dropout < cohorts.dropout]
    for dropout in lower:
        if quorum_delta(dataclasses.replace(cohorts, dropout=dropout)) <= allowed:
            ways.append(f"lower dropout to {dropout:g} if no more are lost")
            break
    if not ways:
        return f"no cohort of these {cohorts.population} clients is served that reliably"
    return ", or ".join(ways)


def _enough(cohorts: Cohorts, allowed: float) -> int | None:
    """A larger expected cohort whose charge is within `allowed`, by bisection."""

    def fits(expected: int) -> bool:
        larger = dataclasses.replace(cohorts, expected=float(expected), cap=cohorts.population)
        return quorum_delta(larger) <= allowed

    low = round(cohorts.expected)
    high = min(cohorts.population, 2 * low)
    while not fits(high):
        if high >= min(cohorts.population, MAX_COHORT):
            return None
        low, high = high, min(cohorts.population, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _fewer(needed: int, count: int, stays: float) -> float:
    """P[Bin(count, stays) < needed]."""
    if needed > count:
        return 1.0
    return float(bdtr(needed - 1, count, stays)) if needed > 0 else 0.0


def _chances(k: NDArray[np.int64], n: int, rate: float) -> NDArray[np.float64]:
    """P[Bin(n, rate) = k] for consecutive k."""
    below = 0.0 if k[0] == 0 else float(bdtr(k[0] - 1, n, rate))
    found: NDArray[np.float64] = np.maximum(np.diff(bdtr(k, n, rate), prepend=below), 0.0)
    return found
