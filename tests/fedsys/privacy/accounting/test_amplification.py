"""The tight amplification bound: high precision, both directions, fractional orders, soundness."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest

from fedsys.privacy.accounting.rdp import ORDERS, amplify, curve_of, epsilon_of, gaussian_loss


def _by_mpmath(z: float, q: float, order: int) -> float:
    """The same formula, term by term, with 60 digits."""
    with mpmath.workdps(60):
        rate, square = mpmath.mpf(q), 2 * mpmath.mpf(z) ** 2
        total = mpmath.fsum(
            mpmath.binomial(order, j)
            * (1 - rate) ** (order - j)
            * rate**j
            * mpmath.exp(j * (j - 1) / square)
            for j in range(order + 1)
        )
        return float(min(mpmath.log(total) / (order - 1), order / square))


@pytest.mark.parametrize(("z", "q"), list(itertools.product((0.5, 1.0, 4.0), (1e-4, 0.05, 0.5))))
def test_agrees_with_sixty_digits(z: float, q: float) -> None:
    curve = amplify(gaussian_loss(z), q)
    for order in (2, 3, 4, 7, 16, 64, 256, 1024):
        ours = float(curve[np.flatnonzero(order == ORDERS)[0]])
        assert ours == pytest.approx(_by_mpmath(z, q, order), rel=1e-9)


def _sampled_gaussian(z: float, q: float, order: float) -> float:
    """The exact divergence by numerical integration, the larger direction."""
    with mpmath.workdps(30):

        def integrand(x: mpmath.mpf) -> mpmath.mpf:
            likelihood = 1 - q + q * mpmath.exp((2 * x - 1) / (2 * z * z))
            return mpmath.npdf(x, 0, z) * likelihood**order

        points = [-12 * z, -4 * z, 0, 1, order / 2, order, order + 4 * z, order + 12 * z]
        value = mpmath.quad(integrand, sorted({float(point) for point in points}))
        return float(mpmath.log(value) / (order - 1))


@pytest.mark.parametrize(("z", "q"), [(0.7, 0.07), (1.0, 0.5), (2.0, 0.3)])
@pytest.mark.parametrize("order", [1.5, 2.0, 4.0, 9.0])
def test_removing_a_client_costs_no_more_than_adding_it(z: float, q: float, order: float) -> None:
    """D_a(Q || (1-q) Q + q P) by integration: the direction that the bound leaves out."""
    with mpmath.workdps(30):

        def integrand(x: mpmath.mpf) -> mpmath.mpf:
            likelihood = 1 - q + q * mpmath.exp((2 * x - 1) / (2 * z * z))
            return mpmath.npdf(x, 0, z) * likelihood ** (1 - order)

        points = [-20 * z, -4 * z, 0, 1, 4 * z, 20 * z]
        value = mpmath.quad(integrand, sorted({float(point) for point in points}))
        removed = float(mpmath.log(value) / (order - 1))
    assert removed <= _sampled_gaussian(z, q, order) * (1 + 1e-9)


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
    for curve in (amplify(gaussian_loss(0.0), 0.1), curve_of(gaussian_loss(0.0))):
        assert np.isinf(curve).all()
        assert math.isinf(epsilon_of(curve, 1e-5))
