"""Exact tails of the hypergeometric distribution, in integers.

A committee of ``draws`` members is drawn without replacement from a cohort of ``population``, of
which ``marked`` are special (they collude, or they are alive). How many special members the
committee holds is hypergeometric. The bounds here are far below what a float resolves reliably
(2^-104), and both sides of a protocol must compute the same numbers, so everything is an integer:
the weight of j, ``comb(marked, j) comb(population - marked, draws - j)``, follows from that of a
neighbouring j by one multiplication and one exact division.

>>> upper(population=1000, marked=100, draws=180, bits=104)
67
>>> lower(population=1000, marked=900, draws=180, bits=30)
138
"""

from __future__ import annotations

import functools
import math

__all__ = ["lower", "upper"]


@functools.lru_cache(maxsize=65_536)
def upper(*, population: int, marked: int, draws: int, bits: int) -> int:
    """Return the least x with ``P[X > x] <= 2^-bits``.

    Args:
        population: Size of the cohort.
        marked: Special members in it, 0 to ``population``.
        draws: Size of the committee, 0 to ``population``.
        bits: Of the chance that the bound is exceeded.

    Raises:
        ValueError: A count is outside its range.
    """
    _check(population, marked, draws)
    total = math.comb(population, draws)
    least, most = max(0, draws - (population - marked)), min(marked, draws)
    weight = math.comb(marked, most) * math.comb(population - marked, draws - most)
    tail = 0  # the weight of everything above x
    x = most
    while x > least:
        if (tail + weight) << bits > total:
            break
        tail += weight
        # w(x-1) / w(x) = x (population - marked - draws + x) / ((marked - x + 1) (draws - x + 1))
        weight = (
            weight * (x * (population - marked - draws + x)) // ((marked - x + 1) * (draws - x + 1))
        )
        x -= 1
    return x


def lower(*, population: int, marked: int, draws: int, bits: int) -> int:
    """Return the greatest y with ``P[X < y] <= 2^-bits``.

    The unmarked members of the draw are its complement: ``X < y`` says that more than
    ``draws - y`` of them were drawn.

    Raises:
        ValueError: A count is outside its range.
    """
    return draws - upper(population=population, marked=population - marked, draws=draws, bits=bits)


def _check(population: int, marked: int, draws: int) -> None:
    if not (0 <= marked <= population and 0 <= draws <= population):
        raise ValueError(
            f"population={population}, marked={marked}, draws={draws}: "
            "marked and draws must be from 0 to population"
        )
