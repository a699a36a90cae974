"""Rounds in which secure aggregation visibly misses its quorum: how rare they are, and their cost.

A sum needs a committee, a quorum of which must stay to endorse one set of uploads and to answer for
it. In cohorts of up to 100 everybody is on the committee; in larger ones it is drawn from the
cohort without replacement. A round that loses more members than its committee withstands has no
sum, which everybody notices. Whether one client makes the difference depends on how many of the
others are lost. So parameters withstand more losses than expected: as many as are exceeded with
probability 2^-40, if the quorum leaves room for that. The remaining probability, which matters
mostly in small cohorts, is charged to delta.

Members are assumed to be lost independently, and a lost member is missing from the committee. So
the number of committee members that stay is binomial, however the committee was drawn.

>>> withstood(100, corrupt=0.1, dropout=0.1)
Withstood(losses=37, committee=None)
>>> withstood(1000, corrupt=0.1, dropout=0.1)
Withstood(losses=119, committee=170)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedsys.privacy.events import SamplingKind
from fedsys.privacy.numerics import binomial
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
"""Parameters fail to withstand a round's losses with probability 2^-40, if there is room."""

_SLACK = 1e-9  # 0.9 * 10 is 9.000000000000002 or 8.999999999999998 and means 9
_MARGINS = (1, 5, 10, 15, 20, 25, 30, 35, RARE_BITS)
"""Candidate margins: the cohort withstands losses that are exceeded with probability 2^-bits. The
drawn committee has a margin of its own, so the smallest candidate that suffices is used."""
_CLASSES = 4
"""Classes of cohort sizes per octave; a class shares the committee's size and margin, so that all
sizes of a job's cohorts can be evaluated in a fraction of a second."""
_WIDTH = 9
"""Standard deviations of a cohort's size that are evaluated one by one; mass 2^-60 is outside."""
_DROPOUTS = (0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0)
"""Dropout probabilities that a remedy may suggest."""


@dataclass(frozen=True, kw_only=True)
class Withstood:
    """What a cohort's parameters must withstand.

    Attributes:
        losses: the number of members that may be lost.
        committee: the committee's size; None if everybody is on it, or any size will do.
    """

    losses: int
    committee: int | None


@lru_cache(maxsize=65_536)
def withstood(n: int, *, corrupt: float, dropout: float, colluders: int = 0) -> Withstood | None:
    """What the parameters of a cohort of n must withstand; None if no parameters are useful.

    A committee of everybody withstands the losses that are exceeded with probability 2^-40, or as
    many as its quorum allows. If that is less than `dropout` of the cohort, there is no result.

    Args:
        n: the number of invited members.
        corrupt: the fraction of them that may collude with the server.
        dropout: the probability that a member is lost.
        colluders: the number of colluders in the roster, which counts if it is the larger bound.
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
    """The smallest margin, in bits, and the committee's size with which a cohort of n misses its
    quorum with probability at most 2^-40, or else the largest margin that leaves a quorum; None if
    none does."""
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
    """The committee that secure aggregation derives; None if there is none."""
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

    The additional loss is the one client in question. The result is 0 if dropout is 0.
    """
    if dropout == 0:
        return 0
    low, high = -1, n - 1  # `low` is too few, `high` is enough
    while high - low > 1:
        middle = (low + high) // 2
        if binomial.above(middle, n, dropout) <= 2.0**-bits:
            high = middle
        else:
            low = middle
    return min(high + 1, n - 1)


@dataclass(frozen=True, kw_only=True)
class Cohorts:
    """What a job states about its cohorts.

    Attributes:
        population: N.
        expected: n = q N.
        rounds: T.
        cap: n_cap; larger cohorts are charged elsewhere (`sampling.aborts`).
        min_survivors: m.
        corrupt: the fraction of a cohort that may collude.
        dropout: the assumed probability that a sampled client is lost, independently of others.
        colluders: the number of colluders in the roster.
        sampling: how cohorts are drawn.
        groups: the number of cyclic groups that take turns, each sampled at ``groups`` times the
            rate.
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
        """The committee of a cohort of n; None if it cannot be summed."""
        asked = withstood(n, corrupt=self.corrupt, dropout=self.dropout, colluders=self.colluders)
        return None if asked is None else _committee(n, self.corrupt, self.colluders, asked)

    def given_up(self, others: int, sizes: Sequence[int]) -> float:
        """P[a cohort of one of these sizes is given up, and min_survivors of `others` stay].

        Args:
            others: the number of members besides the client in question, who counts as lost.
            sizes: the sizes of the cohorts: with the client, or without and with it.
        """
        stays, few = 1 - self.dropout, _fewer(self.min_survivors, others, 1 - self.dropout)
        needed, apart = 0, 0.0
        for n in sizes:
            committee = self.committee(n)
            if committee is None:
                return 1.0 - few
            if self.dropout == 0:
                continue  # nobody is lost, so even a quorum of the whole committee is met
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

    With K others in the cohort, of whom L stay, it can depend on the client only if the cohort of K
    or that of K + 1 is given up, whether or not the client is lost. Committees of everybody give up
    on the same event, that L is too small; drawn committees are drawn separately, so their
    probabilities are added. Rounds in which fewer than `min_survivors` of the others stay are
    charged in `sampling.aborts`, not here.
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
    """One round's part of `quorum_delta` under Poisson sampling: E[given_up] over K others.

    K is Bin(N - 1, rate). Sizes far from the mean are not evaluated but count as given up.
    """
    mean = rate * population
    width = _WIDTH * math.sqrt(mean) + 40
    most = min(population - 1, cohorts.cap - 1)
    lowest = min(max(0, math.floor(mean - width)), most)
    widest = min(most, math.ceil(mean + width))
    others = range(lowest, widest + 1)
    chances = [cohorts.given_up(count, [count, count + 1]) for count in others]
    likely = [binomial.mass(count, population - 1, rate) for count in others]
    found = float(np.array(likely) @ np.array(chances))
    if lowest > 0:
        found += binomial.below(lowest - 1, population - 1, rate)
    if widest < most:
        found += binomial.above(widest, population - 1, rate)
    return found


def remedy(cohorts: Cohorts, allowed: float) -> str:
    """What would keep the charge within `allowed`, for a message; names only what would work.

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
        return f"no cohort of these {cohorts.population} clients is that reliable"
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
    return binomial.below(needed - 1, count, stays)
