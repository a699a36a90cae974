"""Exact tails against fractions summed from binomial coefficients."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest

from secure_agg import hypergeometric


def _chance(population: int, marked: int, draws: int, value: int) -> Fraction:
    if not 0 <= value <= draws:
        return Fraction(0)
    ways = comb(marked, value) * comb(population - marked, draws - value)
    return Fraction(ways, comb(population, draws))


def _above(population: int, marked: int, draws: int, value: int) -> Fraction:
    return sum(
        (_chance(population, marked, draws, j) for j in range(value + 1, draws + 1)), Fraction(0)
    )


CASES = [
    (population, marked, draws, bits)
    for population in (1, 2, 7, 30, 61)
    for marked in sorted({0, 1, population // 10, population // 2, population - 1, population})
    for draws in sorted({0, 1, population // 3, population - 1, population})
    for bits in (1, 5, 30, 104)
]


def test_upper_is_the_least_bound() -> None:
    for population, marked, draws, bits in CASES:
        x = hypergeometric.upper(population=population, marked=marked, draws=draws, bits=bits)
        limit = Fraction(1, 2**bits)
        least = max(0, draws - (population - marked))
        assert _above(population, marked, draws, x) <= limit
        assert x == least or _above(population, marked, draws, x - 1) > limit


def test_lower_is_the_greatest_bound() -> None:
    for population, marked, draws, bits in CASES:
        y = hypergeometric.lower(population=population, marked=marked, draws=draws, bits=bits)
        limit = Fraction(1, 2**bits)
        assert 1 - _above(population, marked, draws, y - 1) <= limit
        most = min(marked, draws)
        assert y == most or 1 - _above(population, marked, draws, y) > limit


def test_a_tail_at_the_bound_counts_as_met() -> None:
    # Two marked of four, one drawn: P[X > 0] is exactly one half.
    assert hypergeometric.upper(population=4, marked=2, draws=1, bits=1) == 0
    assert hypergeometric.upper(population=4, marked=2, draws=1, bits=2) == 1


def test_large_committees() -> None:
    """The sizes that cohorts of 10,000 lead to, against scipy's floats where those are exact."""
    from scipy.stats import hypergeom

    for draws in (200, 1000):
        x = hypergeometric.upper(population=10_000, marked=1000, draws=draws, bits=40)
        assert hypergeom.sf(x, 10_000, 1000, draws) <= 2.0**-40
        assert hypergeom.sf(x - 1, 10_000, 1000, draws) > 2.0**-40


@pytest.mark.parametrize(
    ("population", "marked", "draws"), [(10, 11, 5), (10, -1, 5), (10, 5, 11), (10, 5, -1)]
)
def test_counts_outside_the_population_are_refused(
    population: int, marked: int, draws: int
) -> None:
    with pytest.raises(ValueError, match="from 0 to population"):
        hypergeometric.upper(population=population, marked=marked, draws=draws, bits=10)
