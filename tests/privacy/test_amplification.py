"""The tight amplification bound: high precision, both directions, fractional orders, soundness."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray

from fedsys.privacy.rdp import (
    INTEGER_GRID,
    ORDERS,
    amplify,
    curve_of,
    epsilon_of,
    gaussian_loss,
    skellam_loss,
)

Array = NDArray[np.float64]


def _by_mpmath(l2: float, l1: float, variance: float, q: float, order: int) -> float:
    """The same formula, term by term, with 60 digits."""
    with mpmath.workdps(60):
        mu, d2, d1 = mpmath.mpf(variance), mpmath.mpf(l2), mpmath.mpf(l1)
        rate = mpmath.mpf(q)

        def eps(a: int) -> mpmath.mpf:
            if a < 2:
                return mpmath.mpf(0)
            second = min(((2 * a - 1) * d2**2 + 6 * d1) / (4 * mu**2), 3 * d1 / (2 * mu))
            return a * d2**2 / (2 * mu) + second

        total = mpmath.fsum(
            mpmath.binomial(order, j)
            * (1 - rate) ** (order - j)
            * rate**j
            * mpmath.exp((j - 1) * eps(j))
            for j in range(order + 1)
        )
        amplified = mpmath.log(total) / (order - 1)
        return float(min(amplified, eps(order)))


@pytest.mark.parametrize(
    ("d", "z", "q"), list(itertools.product((1, 650, 60_000), (0.5, 1.0, 4.0), (1e-4, 0.05, 0.5)))
)
def test_agrees_with_sixty_digits(d: int, z: float, q: float) -> None:
    l2 = 64 * math.sqrt(d)
    l1, variance = math.sqrt(d) * l2, (z * l2) ** 2
    curve = amplify(skellam_loss(l2, l1, variance), q)
    for order in (2, 3, 4, 7, 16, 64, 256, 1024):
        ours = float(curve[np.flatnonzero(order == ORDERS)[0]])
        assert ours == pytest.approx(_by_mpmath(l2, l1, variance, q, order), rel=1e-9)


@lru_cache(maxsize=8)
def _skellam(variance: float, reach: int) -> tuple[mpmath.mpf, ...]:
    with mpmath.workdps(60):
        return tuple(
            mpmath.exp(-mpmath.mpf(variance)) * mpmath.besseli(abs(k), mpmath.mpf(variance))
            for k in range(-reach, reach + 1)
        )


def _divergence(p: list[mpmath.mpf], q: list[mpmath.mpf], order: float) -> mpmath.mpf:
    a = mpmath.mpf(order)
    total = mpmath.fsum(x**a * y ** (1 - a) for x, y in zip(p, q, strict=True) if x > 0)
    return mpmath.log(total) / (a - 1)


@pytest.mark.parametrize(
    ("variance", "shift", "q"), [(4.0, 1, 0.1), (9.0, 2, 0.3), (30.0, 5, 0.02)]
)
def test_both_directions_in_one_dimension(variance: float, shift: int, q: float) -> None:
    """Enumeration: the bound from exact moments is met by one direction; the other is smaller."""
    reach = 60
    with mpmath.workdps(60):
        base = list(_skellam(variance, reach + shift))
        at_zero = base[shift:-shift]
        moved = base[: -2 * shift]
        mixed = [(1 - q) * x + q * y for x, y in zip(at_zero, moved, strict=True)]
        exact_loss = np.zeros_like(INTEGER_GRID)
        for whole in range(2, 9):
            exact_loss[whole] = float(_divergence(moved, at_zero, whole))
        exact_loss[9:] = 1e3  # not looked at below
        with np.errstate(over="ignore"):
            bound = amplify(exact_loss, q)
        paper = amplify(skellam_loss(float(shift), float(shift), variance), q)
        for order in (1.5, 2.0, 2.7, 3.0, 3.5, 5.0, 6.5, 8.0):
            index = int(np.flatnonzero(np.isclose(order, ORDERS))[0])
            add = float(_divergence(mixed, at_zero, order))
            remove = float(_divergence(at_zero, mixed, order))
            assert remove <= add * (1 + 1e-12)
            assert add <= float(bound[index]) * (1 + 1e-9)
            if order == int(order):
                assert add == pytest.approx(float(bound[index]), rel=1e-9)
            assert float(bound[index]) <= float(paper[index]) * (1 + 1e-9)


def test_both_directions_in_two_dimensions() -> None:
    """Enumeration over a square for shifts of one l2 norm: the axis and the diagonal."""
    reach, variance, q = 26, 6.0, 0.2
    with mpmath.workdps(40):
        one = list(_skellam(variance, reach + 4))
    single = np.array([float(value) for value in one])
    inner = slice(4, -4)
    for shift in ((4, 0), (0, 4), (2, 3), (-3, 2)):
        l2 = math.hypot(*shift)
        l1 = float(abs(shift[0]) + abs(shift[1]))
        at_zero = np.outer(single[inner], single[inner])
        rows = np.roll(single, shift[0])[inner]
        columns = np.roll(single, shift[1])[inner]
        moved = np.outer(rows, columns)
        mixed = (1 - q) * at_zero + q * moved
        paper = amplify(skellam_loss(l2, l1, variance), q)
        for whole in (2, 3, 4, 6):
            add = math.log(float((mixed**whole * at_zero ** (1.0 - whole)).sum())) / (whole - 1)
            remove = math.log(float((at_zero**whole * mixed ** (1.0 - whole)).sum())) / (whole - 1)
            bound = float(paper[np.flatnonzero(whole == ORDERS)[0]])
            assert remove <= add * (1 + 1e-9)
            assert add <= bound * (1 + 1e-9)


def _sampled_gaussian(z: float, q: float, order: float) -> float:
    """The exact divergence by numerical integration, the larger direction."""
    with mpmath.workdps(30):

        def integrand(x: mpmath.mpf) -> mpmath.mpf:
            likelihood = 1 - q + q * mpmath.exp((2 * x - 1) / (2 * z * z))
            return mpmath.npdf(x, 0, z) * likelihood**order

        points = [-12 * z, -4 * z, 0, 1, order / 2, order, order + 4 * z, order + 12 * z]
        value = mpmath.quad(integrand, sorted({float(point) for point in points}))
        return float(mpmath.log(value) / (order - 1))


@pytest.mark.parametrize(("z", "q"), [(0.7, 0.07), (1.0, 0.05), (2.0, 0.3), (1.0, 0.9)])
def test_fractional_orders_bound_the_sampled_gaussian(z: float, q: float) -> None:
    curve = amplify(gaussian_loss(z), q)
    plain = curve_of(gaussian_loss(z))
    for order in (1.25, 1.75, 2.1, 2.5, 2.7, 3.3, 4.5, 6.9):
        index = int(np.flatnonzero(np.isclose(order, ORDERS))[0])
        exact = _sampled_gaussian(z, q, order)
        assert exact <= float(curve[index]) <= float(plain[index]) * (1 + 1e-12)
        if q < 0.1 and 2 < order < 4:  # where jobs find their epsilon: close
            assert float(curve[index]) <= 1.13 * exact


@pytest.mark.parametrize("q", [1e-6, 1e-3, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("z", [0.05, 0.3, 1.0, 10.0, 1000.0])
def test_amplified_curves_are_monotone(z: float, q: float) -> None:
    curve = amplify(gaussian_loss(z), q)
    assert (curve >= 0).all()
    assert (curve <= curve_of(gaussian_loss(z)) * (1 + 1e-12)).all()
    assert (amplify(gaussian_loss(z), q / 2) <= curve * (1 + 1e-9)).all()
    assert (amplify(gaussian_loss(2 * z), q) <= curve * (1 + 1e-9)).all()
    whole = np.isin(ORDERS, np.arange(2, 1025))
    assert (np.diff(curve[whole]) >= -1e-9 * curve[whole][1:]).all()


def test_an_infinite_loss_stays_infinite() -> None:
    for curve in (amplify(gaussian_loss(0.0), 0.1), curve_of(skellam_loss(1.0, 1.0, 0.0))):
        assert np.isinf(curve).all()
        assert math.isinf(epsilon_of(curve, 1e-5))
