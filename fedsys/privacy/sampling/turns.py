"""How long clients' turns last, where each may contribute to a limited number of rounds."""

from __future__ import annotations

import math

__all__ = ["turns_last", "turns_needed"]


def turns_last(population: int, expected_cohort: float, max_participations: int) -> int:
    """The rounds after which clients have had `max_participations` turns each on average. From then
    on most of a cohort sends zeros, so that models gain noise and nothing else.

    >>> turns_last(5000, 1000, 5)
    25
    """
    return int(population * max_participations / expected_cohort)


def turns_needed(population: int, expected_cohort: float, rounds: int) -> int:
    """The least `max_participations` with which turns last for `rounds` rounds, for all but about
    one client in fifty: the mean and two standard deviations of how often one is drawn.

    >>> turns_needed(5000, 1000, 25)
    10
    """
    mean = rounds * expected_cohort / population
    return min(rounds, max(1, math.ceil(mean + 2 * math.sqrt(mean))))
