"""A sum of two rounded Gaussians on two grids is as close to a Gaussian as it is charged."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import pytest

from fedsys.privacy.noise import sampler_distance
from fedsys.privacy.noise.grids import (
    FEWEST_ON_GRIDS,
    GRID_DISTANCE,
    MOST_ON_GRIDS,
    grid_distance,
    split,
)


def _series_bound(fine: mpmath.mpf, coarse: mpmath.mpf, step: int) -> mpmath.mpf:
    """(W + 1/2) sup_t sum of the mixed products of NOISE.md, in its closed form."""
    variance = fine**2 + step**2 * coarse**2
    rho = fine**2 * coarse**2 / variance
    width = 46 * mpmath.sqrt(variance) + mpmath.mpf(step + 1) / 2 + 1
    return (width + 0.5) * 5 * mpmath.exp(-2 * mpmath.pi**2 * rho)


@pytest.mark.parametrize(
    "sigma", [FEWEST_ON_GRIDS + 0.001, 3000.5, 40_000.0, 81_234.5, MOST_ON_GRIDS]
)
def test_the_charge_covers_the_bound(sigma: float) -> None:
    fine, coarse, step = split(sigma)
    assert Fraction(fine) ** 2 + step**2 * Fraction(coarse) ** 2 >= Fraction(sigma) ** 2
    assert max(fine, coarse) <= FEWEST_ON_GRIDS
    with mpmath.workprec(200):
        bound = _series_bound(mpmath.mpf(fine), mpmath.mpf(coarse), step)
        assert bound <= mpmath.mpf(GRID_DISTANCE) / 2
    assert sampler_distance(sigma) >= GRID_DISTANCE


def test_single_tables_and_quantiles_are_not_charged() -> None:
    assert grid_distance(FEWEST_ON_GRIDS) == grid_distance(MOST_ON_GRIDS * 1.01) == 0.0


@pytest.mark.parametrize(("fine", "coarse", "step"), [(2.0, 1.5, 3), (1.4, 3.0, 2), (5.0, 2.0, 6)])
def test_the_bound_holds_where_it_can_be_computed(fine: float, coarse: float, step: int) -> None:
    """The exact total variation between S + m C and round(G + m U), for deviations small enough to
    add up both laws."""
    with mpmath.workprec(120):
        deviation = mpmath.sqrt(mpmath.mpf(fine) ** 2 + (step * mpmath.mpf(coarse)) ** 2)
        reach = int(13 * deviation)

        def rounded(sigma: float, k: int) -> mpmath.mpf:
            x, root = mpmath.mpf(k), mpmath.mpf(sigma) * mpmath.sqrt(2)
            return (mpmath.erf((x + 0.5) / root) - mpmath.erf((x - 0.5) / root)) / 2

        def integral(x: mpmath.mpf) -> mpmath.mpf:
            """Antiderivative of P[G <= x]."""
            z = x / deviation
            return x * mpmath.ncdf(z) + deviation * mpmath.npdf(z)

        def below(x: mpmath.mpf) -> mpmath.mpf:
            """P[G + m U <= x]."""
            half = mpmath.mpf(step) / 2
            return (integral(x + half) - integral(x - half)) / step

        distance = mpmath.mpf(0)
        most = int(13 * coarse)
        coarse_law = {j: rounded(coarse, j) for j in range(-most, most + 1)}
        fine_law = {k: rounded(fine, k) for k in range(-int(13 * fine), int(13 * fine) + 1)}
        for k in range(-reach, reach + 1):
            summed = sum(
                (p * fine_law.get(k - step * j, mpmath.mpf(0)) for j, p in coarse_law.items()),
                mpmath.mpf(0),
            )
            ideal = below(mpmath.mpf(k) + 0.5) - below(mpmath.mpf(k) - 0.5)
            distance += abs(summed - ideal) / 2
        bound = _series_bound(mpmath.mpf(fine), mpmath.mpf(coarse), step)
        assert 0 < distance <= bound
        assert distance > bound / 10_000  # the bound is not idle
