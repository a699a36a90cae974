"""Epsilons against other people's accountants, and against figures that were published."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import mpmath
import numpy as np
import pytest

from fedsys.privacy import make_plan, planned_outsider
from fedsys.privacy.accounting import pld
from fedsys.privacy.accounting.costs import outsider_step, rdp_epsilon, steps_epsilon
from fedsys.privacy.accounting.exact_gaussian import (
    composed_epsilon,
    gaussian_delta,
    gaussian_epsilon,
)
from fedsys.privacy.accounting.pld import gaussian_pld_epsilon
from fedsys.privacy.accounting.projection import project
from fedsys.privacy.accounting.rdp import (
    ORDERS,
    amplify,
    epsilon_of,
    gaussian_loss,
    replacement_sampled,
)
from fedsys.privacy.calibration import bisect_noise
from fedsys.privacy.events import GaussianStep, build_event

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

    ours, width, before = gaussian_pld_epsilon({(z, q): rounds}, delta), 4e-3, math.inf
    while True:  # narrowed until the other accountant's figure stands still, whatever ours does
        theirs = PLDAccountant(value_discretization_interval=width)
        theirs.compose(dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(z)), rounds)
        finer = theirs.get_epsilon(delta)
        if before - finer < 1e-3 * finer + 1e-7 or width < 2e-5:
            break
        before, width = finer, width / 4
    assert ours == pytest.approx(finer, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize(("q", "published"), [(0.00217, 0.301), (0.0022, 0.3058)])
def test_the_bin_follows_the_job(q: float, published: float) -> None:
    """A constant bin of 1e-3 says .318 at the first rate, and .323 at the second."""
    found = gaussian_pld_epsilon({(2.0, q): 2000}, 1e-10)
    assert found == pytest.approx(published, abs=1e-3)


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


@pytest.mark.parametrize(
    ("rounds", "delta"),
    [
        ({(1.0, 0.5): 3}, 0.95),
        ({(100.0, 0.001): 1}, 1e-3),
        ({(0.02, 0.5): 50}, 1e-5),
        ({(1.0, 1e-6): 10**6}, 1e-8),
    ],
)
def test_bins_are_halved_a_bounded_number_of_times(
    rounds: dict[tuple[float, float], int], delta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epsilon of nothing, of thousands, or of a loss that is tiny next to its range."""
    sizes = []
    single = pld._single

    def counted(multiplier: float, rate: float, width: float) -> Any:
        found = single(multiplier, rate, width)
        sizes.append(len(found.removed.probabilities))
        return found

    monkeypatch.setattr(pld, "_single", counted)
    assert 0 <= gaussian_pld_epsilon(rounds, delta) < 1e6
    assert len(sizes) <= 13
    assert max(sizes) < 1 << 19


def test_exact_composition_of_unamplified_rounds() -> None:
    """21 rounds at z = 1: mu = 4.58, 29.34; the server's view before shares are counted."""
    assert composed_epsilon(1e-5, 21.0) == pytest.approx(29.34, abs=0.005)
    assert steps_epsilon({GaussianStep(multiplier=1.0): 21}, 1e-5) == composed_epsilon(1e-5, 21.0)
    mixed = {GaussianStep(multiplier=1.0): 3, GaussianStep(multiplier=2.0, count=4): 2}
    assert steps_epsilon(mixed, 1e-5) == pytest.approx(composed_epsilon(1e-5, 5.0), rel=1e-12)
    for squares in (1e-6, 0.01, 1.0, 21.0, 400.0):
        single = gaussian_pld_epsilon({(1.0, 1.0): 1}, 1e-5) if squares == 1 else None
        found = composed_epsilon(1e-5, squares)
        assert found == pytest.approx(gaussian_epsilon(1e-5, squares**-0.5), rel=1e-12)
        assert single is None or found <= single <= found * (1 + 1e-3)


def test_mixed_rounds_cost_more_than_amplified_and_less_than_unamplified_ones() -> None:
    apart, together = GaussianStep(multiplier=1.0, rate=0.05), GaussianStep(multiplier=1.0)
    mixed = steps_epsilon({apart: 197, together: 3}, 1e-5)
    assert steps_epsilon({apart: 200}, 1e-5) < mixed < composed_epsilon(1e-5, 200.0)
    assert composed_epsilon(1e-5, 3.0) < mixed < rdp_epsilon({apart: 197, together: 3}, 1e-5)


WORKED: dict[str, Any] = {
    "mechanism": "distributed-gaussian",
    "population": 1000,
    "expected_cohort": 50,
    "rounds": 200,
    "dimension": 60_000,
    "clip": 1.0,
    "delta": 1e-5,
    "noise_multiplier": 1.0,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mechanism": "central-gaussian"},
        {"noise": "once"},
        {"encoding": "narrow", "modulus_bits": 12},
        {"encoding": "narrow", "modulus_bits": 16},
        {"mechanism": "central-gaussian", "encoding": "narrow"},
    ],
)
def test_worked_example_of_a_thousand_clients(changes: dict[str, Any]) -> None:
    """What distributed noise costs is what central noise costs, in either encoding."""
    plan = make_plan(**WORKED | changes)
    assert planned_outsider(plan) == pytest.approx(4.77, abs=0.01)


def test_worked_example_in_all_views() -> None:
    projection = project(make_plan(**WORKED))
    assert projection.participations == 21
    assert projection.epsilon["server"]["gaussian"] == pytest.approx(49.7, abs=0.1)
    assert projection.epsilon["participant"]["pld"] == pytest.approx(14.1, abs=0.1)


def test_the_quickstart() -> None:
    """Forty rounds of a hundred among 1437 at z = .7."""
    event = build_event(
        "distributed-gaussian",
        dimension=650,
        clip=0.3,
        noise_multiplier=0.7,
        expected_cohort=100,
        population=1437,
        cap=163,
        min_survivors=41,
    )
    assert steps_epsilon({outsider_step(event): 40}, 1e-5) == pytest.approx(7.33, abs=0.05)


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
    assert plan.accountant == "rdp"


def _tilted_delta(z: float, q: float, rounds: int, epsilon: float) -> float:
    """Delta of the same discretised losses, composed by a transform of the exponentially tilted
    distribution, whose tail beyond `epsilon` is its middle: it keeps the tail's own digits."""
    from fedsys.privacy.accounting.loss_distribution import gaussian_losses

    losses = gaussian_losses(z, q, pld._first_width(((z, q, rounds),)) / 2).removed
    held = losses.probabilities > 0
    places = (losses.first + np.arange(len(held)))[held] * losses.width
    logs = np.log(losses.probabilities[held])

    def tilted(slope: float) -> tuple[float, Any]:
        terms = slope * places + logs
        most = terms.max()
        total = most + math.log(np.exp(terms - most).sum())
        return total, np.exp(terms - total)

    low, high = 0.0, 1000.0
    for _ in range(60):
        slope = (low + high) / 2
        low, high = (
            (slope, high) if rounds * (tilted(slope)[1] @ places) < epsilon else (low, slope)
        )
    log_moment, weights = tilted(slope)
    size = 1 << 21
    whole = np.zeros(len(held))
    whole[held] = weights
    power = np.fft.irfft(np.fft.rfft(whole, size) ** rounds, size)
    around = round(rounds * float(weights @ places) / losses.width) - size // 4 + np.arange(size)
    points = around * losses.width
    above = points > epsilon
    likely = power[(around - rounds * losses.first) % size][above]
    shrunk = np.exp(rounds * log_moment - slope * points[above])
    return float((likely * shrunk) @ -np.expm1(epsilon - points[above]))


@pytest.mark.parametrize(
    ("z", "q", "rounds", "delta"),
    [(1.19, 0.0067, 494_306, 1e-8), (0.81, 0.013, 35_326, 1.5e-9), (5.0, 0.01, 100_000, 1e-8)],
)
def test_the_rounding_of_transforms_is_charged(
    z: float, q: float, rounds: int, delta: float
) -> None:
    found = gaussian_pld_epsilon({(z, q): rounds}, delta)
    assert math.isfinite(found)
    assert _tilted_delta(z, q, rounds, found) <= delta


def test_too_many_steps_for_a_small_delta_are_accounted_for_by_renyi_orders() -> None:
    """At 1e-12 the rounding of half a million transforms is larger than delta."""
    steps = {GaussianStep(multiplier=1.19, rate=0.0067): 494_306}
    assert gaussian_pld_epsilon({(1.19, 0.0067): 494_306}, 1e-12) == math.inf
    assert steps_epsilon(steps, 1e-12) == rdp_epsilon(steps, 1e-12) > 44.45
