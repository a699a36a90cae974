"""Second opinions: what contradicts a reported epsilon is a lower bound above it, nothing else."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from fedsys.audit.accountants import cross_checks
from fedsys.audit.lower_bounds import epsilon_at_least
from fedsys.audit.opacus_accounting import prv_bounds
from fedsys.audit.spending import Spending
from fedsys.privacy import PrivacyPlan, ViewAccountant, make_plan
from fedsys.privacy.accounting.costs import second_opinion
from fedsys.privacy.accounting.exact_gaussian import gaussian_epsilon
from fedsys.privacy.accounting.pld import gaussian_pld_epsilon
from fedsys.privacy.events import GaussianStep

USUAL: dict[str, Any] = {
    "population": 1000,
    "expected_cohort": 100,
    "rounds": 100,
    "dimension": 1000,
    "clip": 1.0,
    "delta": 1e-5,
}
SHARED = {"mechanism": "distributed-gaussian", "noise_multiplier": 1.0}
CENTRAL = {"mechanism": "central-gaussian", "noise_multiplier": 1.386}
APART = {"sampling": "min-separation", "min_separation": 10, "max_participations": 5}
JOBS: list[dict[str, Any]] = [
    # twenty-five of fifty clients in a hundred rounds: much budget, half of all in every cohort
    SHARED | {"noise_multiplier": 2.0, "population": 50, "expected_cohort": 25, "dimension": 650},
    CENTRAL | {"noise_multiplier": 2.0, "population": 50, "expected_cohort": 25},
    SHARED,
    SHARED | {"noise": "once"},
    SHARED | {"noise_multiplier": 4.0, "sampling": "fixed"},
    SHARED | {"noise_multiplier": 4.0, "sampling": "fixed", "participation": 0.5},
    SHARED | {"noise_multiplier": 4.0, "participation": 0.5},
    SHARED | {"noise_multiplier": 4.0} | APART,
    SHARED | {"encoding": "narrow", "modulus_bits": 16, "dimension": 60_000},
    SHARED | {"guarantee": "server", "max_participations": 20},
    CENTRAL,
    CENTRAL | {"noise_multiplier": 0.6, "rounds": 1000},
    CENTRAL | {"delta": 1e-13},
    CENTRAL | {"sampling": "fixed"},
    CENTRAL | {"noise_multiplier": 5.0, "sampling": "fixed", "participation": 0.5},
    CENTRAL | APART,
    {"mechanism": "local-gaussian", "noise_multiplier": 0.3},
    {"mechanism": "local-gaussian", "noise_multiplier": 1.0, "sampling": "fixed"},
    {"mechanism": "banded-mf", "noise_multiplier": 2.0} | APART,
    {"mechanism": "banded-mf", "noise_multiplier": 2.0, "min_separation": 5},
    {
        "mechanism": "example-gaussian",
        "noise_multiplier": 1.0,
        "unit": "example",
        "example_rate": 0.1,
        "steps": 5,
        "max_participations": 10,
    },
]


def done(plan: PrivacyPlan) -> Spending:
    accountant = ViewAccountant(plan)
    for _ in range(plan.rounds):
        accountant.charge(plan.event())
    return Spending(spent=accountant.spent(), curve=(), accountant=accountant)


@pytest.mark.parametrize("settings", JOBS, ids=lambda s: "-".join(map(str, s.values())))
def test_honest_figures_pass_and_those_below_what_an_attack_achieves_do_not(
    settings: dict[str, Any],
) -> None:
    plan = make_plan(**(USUAL | settings))
    spending = done(plan)
    reported = spending.spent.outsider
    found = list(cross_checks(plan, spending))
    if plan.delta > 1e-12:
        assert [claim.holds for claim in found] == [True] * len(found) != []
    else:
        assert {claim.holds for claim in found} <= {True, None}, "too small to show anything"
    lower = epsilon_at_least(
        spending.accountant.outsider.steps().items(), plan.delta_of("outsider")
    )
    assert lower <= reported
    if plan.delta > 1e-12:
        below = dataclasses.replace(spending.spent, outsider=lower * 0.999)
        understated = dataclasses.replace(spending, spent=below)
        assert any(claim.holds is False for claim in cross_checks(plan, understated))
    for more in (reported * 3, math.inf):
        above = dataclasses.replace(spending.spent, outsider=more)
        overstated = dataclasses.replace(spending, spent=above)
        assert all(claim.holds is not False for claim in cross_checks(plan, overstated)), (
            "claiming too much cost is nobody's loss"
        )


@pytest.mark.parametrize("rate", [0.002, 0.1, 0.5])
@pytest.mark.parametrize("noise", [0.5, 1.5, 4.0])
@pytest.mark.parametrize("rounds", [1, 10, 1000])
def test_the_lower_bound_is_below_loss_distributions_and_close(
    rate: float, noise: float, rounds: int
) -> None:
    step, delta = GaussianStep(multiplier=noise, rate=rate), 1e-5
    lower = epsilon_at_least([(step, rounds)], delta)
    upper = gaussian_pld_epsilon({(noise, rate): rounds}, delta)
    assert 0 <= lower <= upper
    if upper > 0.5:
        assert lower > 0.93 * upper


@pytest.mark.parametrize("noise", [0.3, 1.0, 8.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-10])
def test_without_sampling_it_is_exact(noise: float, delta: float) -> None:
    steps = [(GaussianStep(multiplier=noise), 3), (GaussianStep(multiplier=2 * noise, count=4), 1)]
    together = 1 / math.sqrt(3 / noise**2 + 1 / noise**2)
    assert epsilon_at_least(steps, delta) == pytest.approx(
        gaussian_epsilon(delta, together), rel=1e-6
    )


@pytest.mark.parametrize("replaces", [False, True])
def test_one_round_is_never_more_than_its_exact_privacy_profile(replaces: bool) -> None:
    """One round's delta at an epsilon by integrating the excess itself, in both directions."""
    rate, multiplier, delta = 0.3, 0.8, 1e-4
    shift = 1 / multiplier if not replaces else 1 / (2 * multiplier)
    x = np.linspace(-40, 40, 2_000_001)
    with_it = (1 - rate) * norm.pdf(x) + rate * norm.pdf(x - shift)
    without = norm.pdf(x)
    if replaces:
        without = (1 - rate) * norm.pdf(x) + rate * norm.pdf(x + shift)

    def excess(epsilon: float) -> float:
        pairs = ((with_it, without), (without, with_it))
        width = float(x[1] - x[0])
        return max(width * float(np.maximum(a - math.exp(epsilon) * b, 0).sum()) for a, b in pairs)

    step = GaussianStep(multiplier=multiplier, rate=rate, replaces=replaces)
    lower = epsilon_at_least([(step, 1)], delta)
    assert excess(lower) == pytest.approx(delta, rel=0.01)
    assert excess(lower) >= delta * (1 - 1e-6)


def test_a_subset_of_all_but_one_protects_little() -> None:
    """100 of 101 clients, replaced: between what an attack achieves and what no sampling costs."""
    sampled = GaussianStep(multiplier=2.0, rate=100 / 101, replaces=True)
    whole = GaussianStep(multiplier=2.0, replaces=True)
    lower, exact = (epsilon_at_least([(step, 20)], 1e-5) for step in (sampled, whole))
    assert 11.3 < lower < exact < 11.5


def test_without_noise_nothing_bounds() -> None:
    assert epsilon_at_least([(GaussianStep(multiplier=0.0), 1)], 1e-5) == math.inf
    assert epsilon_at_least([], 1e-5) == 0


@pytest.mark.parametrize("rate", [0.01, 0.1])
@pytest.mark.parametrize("noise", [0.8, 1.5, 4.0])
@pytest.mark.parametrize("rounds", [10, 300])
def test_opacus_and_dp_accounting_agree(rate: float, noise: float, rounds: int) -> None:
    """Each upper bound is above each lower one; that is all that two accountants can say."""
    lower, upper = prv_bounds([(noise, rate, rounds)], 1e-5)
    ours = gaussian_pld_epsilon({(noise, rate): rounds}, 1e-5)
    step = GaussianStep(multiplier=noise, rate=rate)
    assert lower <= ours
    assert epsilon_at_least([(step, rounds)], 1e-5) <= upper
    assert upper - lower < 0.03
    renyi = second_opinion({step: rounds}, 1e-5)
    assert renyi is not None
    assert lower <= renyi


def test_opacus_composes_rounds_of_several_kinds() -> None:
    steps = [(1.0, 0.05, 20), (2.0, 0.1, 50)]
    lower, upper = prv_bounds(steps, 1e-5)
    ours = gaussian_pld_epsilon({(z, q): times for z, q, times in steps}, 1e-5)
    assert lower <= ours <= upper + 0.01
