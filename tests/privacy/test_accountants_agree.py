"""Epsilons against other people's accountants, and against figures that were published."""

from __future__ import annotations

import itertools
import math
import warnings

import mpmath
import numpy as np
import pytest

from fedsys.privacy import make_plan, planned_outsider
from fedsys.privacy.calibration import bisect_noise
from fedsys.privacy.costs import outsider_cost
from fedsys.privacy.events import Sampling, skellam_event
from fedsys.privacy.exact_gaussian import gaussian_delta, gaussian_epsilon
from fedsys.privacy.pld import DISCRETIZATION, dp_accounting_rdp, gaussian_pld_epsilon
from fedsys.privacy.projection import project
from fedsys.privacy.rdp import (
    ORDERS,
    amplify,
    curve_of,
    epsilon_of,
    gaussian_loss,
    replacement_sampled,
)

GRID = list(
    itertools.product((0.7, 1.0, 2.0, 5.0), (0.001, 0.01, 0.05, 0.2), (1, 40, 1000), (1e-5, 1e-8))
)
INTEGERS = [float(order) for order in ORDERS if order == int(order)]


@pytest.mark.parametrize(("z", "q", "rounds", "delta"), GRID)
def test_renyi_orders_agree_with_dp_accounting(
    z: float, q: float, rounds: int, delta: float
) -> None:
    from dp_accounting import dp_event
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant, compute_epsilon

    theirs = RdpAccountant(orders=INTEGERS)
    theirs.compose(dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(z)), rounds)
    ours = rounds * amplify(gaussian_loss(z), q)
    at_integers = np.isin(ORDERS, INTEGERS)
    # theirs loses digits where the divergence is tiny (it adds up to 1 before the logarithm)
    np.testing.assert_allclose(ours[at_integers], theirs.rdp, rtol=1e-6, atol=rounds * 1e-12)
    known = np.asarray(INTEGERS)
    mine = epsilon_of(ours[at_integers], delta, known)
    assert mine == pytest.approx(theirs.get_epsilon(delta), rel=1e-6, abs=1e-9)
    assert mine == pytest.approx(compute_epsilon(INTEGERS, ours[at_integers], delta)[0], rel=1e-12)
    # fractional orders can only help
    assert epsilon_of(ours, delta) <= mine


@pytest.mark.parametrize(("z", "q", "rounds", "delta"), GRID[1::7])
def test_loss_distributions_agree_with_dp_accounting(
    z: float, q: float, rounds: int, delta: float
) -> None:
    from dp_accounting import dp_event
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    theirs = PLDAccountant(value_discretization_interval=DISCRETIZATION)
    theirs.compose(dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(z)), rounds)
    assert gaussian_pld_epsilon({(z, q): rounds}, delta) == pytest.approx(
        theirs.get_epsilon(delta), rel=1e-6, abs=1e-9
    )


@pytest.mark.parametrize(("z", "q", "rounds", "delta"), GRID[::9])
def test_renyi_orders_agree_with_opacus(z: float, q: float, rounds: int, delta: float) -> None:
    from opacus.accountants.analysis import rdp as opacus

    theirs = opacus.compute_rdp(q=q, noise_multiplier=z, steps=rounds, orders=INTEGERS)
    ours = rounds * amplify(gaussian_loss(z), q)[np.isin(ORDERS, INTEGERS)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=rounds * 1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the best order is the last one
        epsilon, _ = opacus.get_privacy_spent(orders=INTEGERS[:40], rdp=theirs[:40], delta=delta)
    mine = epsilon_of(np.asarray(ours)[:40], delta, np.asarray(INTEGERS[:40]))
    assert mine == pytest.approx(max(epsilon, 0.0), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("target", "sigma"), [(1.0, 3.942), (4.0, 1.386), (8.0, 0.936)])
def test_published_noise_for_poisson_sampling(target: float, sigma: float) -> None:
    found = bisect_noise(lambda z: gaussian_pld_epsilon({(z, 0.1): 100}, 1e-5), target, start=4.0)
    assert found == pytest.approx(sigma, abs=6e-4)


@pytest.mark.parametrize(("rho", "epsilon"), [(0.15068, 3.42401), (0.0143426, 0.99355)])
def test_published_keyboard_deployments(rho: float, epsilon: float) -> None:
    """A rho of zCDP from Gaussian noise, at delta = 1e-10; rho is published to five digits."""
    assert gaussian_epsilon(1e-10, 1 / math.sqrt(2 * rho)) == pytest.approx(epsilon, abs=1e-4)


def _balle_wang(epsilon: mpmath.mpf, z: mpmath.mpf) -> mpmath.mpf:
    half = 1 / (2 * z)
    return mpmath.ncdf(half - epsilon * z) - mpmath.exp(epsilon) * mpmath.ncdf(-half - epsilon * z)


@pytest.mark.parametrize("z", [0.1, 0.5, 1.0, 3.3, 20.0, 400.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-10, 1e-20])
def test_exact_gaussian_against_high_precision(z: float, delta: float) -> None:
    epsilon = gaussian_epsilon(delta, z)
    with mpmath.workdps(60):
        if epsilon > 0:
            there = _balle_wang(mpmath.mpf(epsilon), mpmath.mpf(z))
            assert abs(there / mpmath.mpf(delta) - 1) < 1e-6
        assert gaussian_delta(1.0, z) == pytest.approx(
            float(_balle_wang(mpmath.mpf(1), mpmath.mpf(z))), rel=1e-9, abs=1e-300
        )


def _skellam_epsilon(
    *, population: int, cohort: float, rounds: int, dimension: int, delta: float, bits: int | None
) -> float:
    event = skellam_event(
        dimension=dimension,
        clip=1.0,
        noise_multiplier=1.0,
        encoding="wide" if bits is None else "narrow",
        modulus_bits=32 if bits is None else bits,
        cap=100,
        min_survivors=1,
        expected_cohort=cohort,
        sampling=Sampling(kind="poisson", rate=cohort / population),
    )
    return epsilon_of(rounds * outsider_cost(event), delta)


@pytest.mark.parametrize(
    ("bits", "published"), [(None, 5.371), (12, 5.754), (14, 5.395), (16, 5.373)]
)
def test_worked_example_of_a_thousand_clients(bits: int | None, published: float) -> None:
    """Published at integer orders; fractional orders gain a few thousandths."""
    found = _skellam_epsilon(
        population=1000, cohort=50, rounds=200, dimension=60_000, delta=1e-5, bits=bits
    )
    assert published - 0.01 <= found <= published + 0.001


@pytest.mark.parametrize(("bits", "published"), [(16, 6.738), (20, 6.713)])
def test_worked_example_of_a_million_coordinates(bits: int, published: float) -> None:
    found = _skellam_epsilon(
        population=3400, cohort=100, rounds=1500, dimension=1_020_000, delta=1 / 3400, bits=bits
    )
    assert published - 0.02 <= found <= published + 0.001


def test_worked_example_in_all_views() -> None:
    plan = make_plan(
        mechanism="distributed-gaussian",
        population=1000,
        expected_cohort=50,
        rounds=200,
        dimension=60_000,
        clip=1.0,
        delta=1e-5,
        noise_multiplier=1.0,
    )
    assert planned_outsider(plan) == pytest.approx(5.371, abs=0.01)  # aborts in delta included
    event = plan.event()
    three = 197 * outsider_cost(event) + 3 * curve_of(gaussian_loss(1.0))
    assert epsilon_of(three, 1e-5) == pytest.approx(10.73, abs=0.01)
    projection = project(plan)
    assert projection.participations == 21
    assert 50 < projection.epsilon["server"]["rdp"] < 56
    assert 10 < projection.epsilon["participant"]["rdp"] < 16


def test_central_and_distributed_cost_the_same() -> None:
    central = dp_accounting_rdp({(1.0, 0.05): 200}, 1e-5)
    wide = _skellam_epsilon(
        population=1000, cohort=50, rounds=200, dimension=60_000, delta=1e-5, bits=None
    )
    assert wide == pytest.approx(central, abs=2e-3)


def test_fixed_size_sampling_is_accounted_soundly() -> None:
    """z = 2 against replacement is one sensitivity of z = 1: 14.05; a known trap says 5.38."""
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    sound = epsilon_of(100 * replacement_sampled(gaussian_loss(1.0), 0.1), 1e-5)
    assert sound == pytest.approx(14.05, abs=0.01)
    theirs = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    theirs.compose(
        dp_event.SampledWithoutReplacementDpEvent(1000, 100, dp_event.GaussianDpEvent(1.0)), 100
    )
    assert sound == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-6)
    trap = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    trap.compose(
        dp_event.SampledWithoutReplacementDpEvent(1000, 100, dp_event.GaussianDpEvent(2.0)), 100
    )
    assert trap.get_epsilon(1e-5) == pytest.approx(5.38, abs=0.01)
    plan = make_plan(
        mechanism="central-gaussian",
        population=1000,
        expected_cohort=100,
        rounds=100,
        dimension=100,
        clip=1.0,
        delta=1e-5,
        noise_multiplier=2.0,
        sampling="fixed",
    )
    assert planned_outsider(plan) == pytest.approx(14.05, abs=0.02)
