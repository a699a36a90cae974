"""Rounds that secure aggregation gives up for all to see: what it withstands, what the rest costs.

A cohort of n that loses more members than its parameters withstand has no sum, and everybody
notices. Whether one client tips it over depends on how many of the others are lost. So parameters
withstand more than the losses to be expected: as many as are exceeded with probability 2^-40, where
the quorum of floor((n + c) / 2) + 1 live members leaves room for that. What is left (small cohorts
above all, and the 2^-40 that a sparse graph fails by itself) is charged to delta.

A member that falls silent between its key and its graph nonce has the graph drawn again, in a
sparse graph another round begun; that is not among the losses counted here.

>>> live_members(100, corrupt=0.1, dropout=0.1)
63
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc

from fedsys.privacy.events import SamplingKind

__all__ = ["GRAPH_BITS", "live_members", "quorum_delta"]

GRAPH_BITS = 40
"""A sparse graph leaves somebody's secret without enough live holders less than once in 2^40."""

_MOST_MEMBERS = 65_535  # of one round of secure aggregation
_RARE = 2.0**-GRAPH_BITS
_SLACK = 1e-9  # 0.1 * 30 is 3.0000000000000004 and means 3

Integers = NDArray[np.int64]


def live_members(n: int, *, corrupt: float, dropout: float) -> int:
    """How many of a cohort of n have to stay to the end; 0 where no such cohort can be summed.

    Args:
        n: invited.
        corrupt: fraction of them that may collude with the server.
        dropout: probability that a member is lost.
    """
    return int(_live(np.array([n]), corrupt, dropout)[0])


def _live(n: Integers, corrupt: float, dropout: float) -> Integers:
    colluders = np.ceil(corrupt * n - _SLACK).astype(np.int64)
    least = np.maximum((n + colluders) // 2 + 1, np.maximum(colluders + 2, 2 * colluders + 1))
    live = np.maximum(least, n - _losses(n, dropout))
    fits = (n >= 2) & (least <= n) & (n <= _MOST_MEMBERS)
    return np.where(fits, live, 0)


def _losses(n: Integers, dropout: float) -> Integers:
    """One more than the fewest losses d with P[Bin(n, dropout) > d] <= 2^-40, by bisection.

    One more, so that the one client in question may be lost besides. None where none are expected.
    """
    if dropout == 0:
        return np.zeros_like(n)
    low, high = np.full_like(n, -1), n.copy()  # too few; enough
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = np.where(middle < 0, 1.0, bdtrc(np.maximum(middle, 0), n, dropout)) <= _RARE
        high, low = np.where(enough, middle, high), np.where(enough, low, middle)
    return high + 1


@lru_cache(maxsize=1024)
def quorum_delta(
    *,
    population: int,
    expected_cohort: float,
    rounds: int,
    cap: int,
    corrupt: float,
    dropout: float,
    sampling: SamplingKind = "poisson",
    groups: int = 1,
) -> float:
    """The probability that giving up some round depends on one client, by a union bound.

    With K others in the cohort, of whom L stay, it can only where L < max(live(K), live(K + 1)), or
    where one of the cohorts cannot be summed at all; or where the graph fails in either.

    Args:
        population: N.
        expected_cohort: n = q N.
        rounds: T.
        cap: n_cap; larger cohorts are charged elsewhere.
        corrupt: fraction of a cohort that may collude.
        dropout: the assumed probability that a sampled client is lost, independently.
        sampling: how cohorts come about.
        groups: cyclic groups that take turns, each sampled at ``groups`` times the rate.
    """
    if sampling == "poisson":
        rate = min(1.0, groups * expected_cohort / population)
        sizes = {population // groups, -(-population // groups)}
        missed = max(_missed(size, rate, cap, corrupt, dropout) for size in sizes)
    else:
        others = round(expected_cohort) - 1
        missed = float(_depends(np.array([others + 1]), others, corrupt, dropout)[0])
    return min(1.0, rounds * (missed + 2 * _RARE))


def _missed(population: int, rate: float, cap: int, corrupt: float, dropout: float) -> float:
    mean = rate * population
    widest = min(population - 1, cap - 1, math.ceil(mean + 12 * math.sqrt(mean) + 40))
    others = np.arange(0, widest + 1)
    either = np.maximum(
        _depends(others, others, corrupt, dropout),
        _depends(others + 1, others, corrupt, dropout),
    )
    found = float(np.sum(_chances(others, population - 1, rate) * either))
    return found + float(bdtrc(widest, population - 1, rate)) * (widest < min(population, cap) - 1)


def _depends(n: Integers, others: Any, corrupt: float, dropout: float) -> NDArray[np.float64]:
    """P[fewer of `others` than a cohort of n needs stay], 1 where it cannot be summed."""
    live = _live(n, corrupt, dropout)
    if dropout == 0:  # nobody is lost: a cohort is summed if it can be
        return np.where(live == 0, 1.0, 0.0)
    others = np.broadcast_to(others, n.shape)
    short = bdtr(np.clip(live - 1, 0, others), others, 1 - dropout)
    return np.where((live == 0) | (live > others), 1.0, short)


def _chances(k: Integers, n: int, rate: float) -> NDArray[np.float64]:
    """P[Bin(n, rate) = k]."""
    upper = bdtr(k, n, rate)
    found: NDArray[np.float64] = np.maximum(np.diff(upper, prepend=0.0), 0.0)
    return found
