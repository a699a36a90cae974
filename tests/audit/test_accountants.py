"""Second opinions: other people's accountants say what is reported, and would say otherwise."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from fedsys.audit.accountants import cross_checks, gaussian_rounds
from fedsys.audit.opacus_accounting import prv_epsilon
from fedsys.audit.spending import Spending
from fedsys.privacy import Event, PrivacyPlan, ViewAccountant, make_plan
from fedsys.privacy.pld import gaussian_pld_epsilon

USUAL: dict[str, Any] = {
    "population": 1000,
    "expected_cohort": 100,
    "rounds": 100,
    "dimension": 1000,
    "clip": 1.0,
    "delta": 1e-5,
}
JOBS: list[dict[str, Any]] = [
    {"mechanism": "central-gaussian", "noise_multiplier": 1.386},
    {"mechanism": "central-gaussian", "noise_multiplier": 0.6, "rounds": 1000},
    {"mechanism": "central-gaussian", "noise_multiplier": 1.386, "sampling": "fixed"},
    {
        "mechanism": "central-gaussian",
        "noise_multiplier": 5.0,
        "sampling": "fixed",
        "participation": 0.5,
    },
    {"mechanism": "local-gaussian", "noise_multiplier": 0.3},
    {"mechanism": "distributed-skellam", "noise_multiplier": 1.0},
    {
        "mechanism": "distributed-skellam",
        "noise_multiplier": 1.0,
        "encoding": "narrow",
        "modulus_bits": 16,
        "dimension": 60_000,
    },
    {
        "mechanism": "banded-mf",
        "noise_multiplier": 2.0,
        "sampling": "min-separation",
        "min_separation": 10,
        "max_participations": 5,
    },
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


def done(plan: PrivacyPlan) -> tuple[Counter[Event], Spending]:
    accountant = ViewAccountant(plan)
    for _ in range(plan.rounds):
        accountant.charge(plan.event())
    spending = Spending(spent=accountant.spent(), curve=(), accountant=accountant)
    return Counter({plan.event(): plan.rounds}), spending


@pytest.mark.parametrize("settings", JOBS, ids=lambda s: "-".join(map(str, s.values())))
def test_second_opinions_agree_on_honest_figures_and_refuse_understated_ones(
    settings: dict[str, Any],
) -> None:
    plan = make_plan(**(USUAL | settings))
    events, spending = done(plan)
    assert [claim.holds for claim in cross_checks(plan, events, spending)].count(True) >= 1
    assert all(claim.holds for claim in cross_checks(plan, events, spending))
    half = dataclasses.replace(spending.spent, outsider=spending.spent.outsider / 2)
    understated = dataclasses.replace(spending, spent=half)
    found = list(cross_checks(plan, events, understated))
    assert any(claim.holds is False for claim in found), found


def test_without_noise_nobody_has_an_opinion() -> None:
    plan = make_plan(**(USUAL | {"mechanism": "none", "cap": 1000, "min_survivors": 1}))
    assert gaussian_rounds(plan, Counter({plan.event(): 3})) is None


@pytest.mark.parametrize("rate", [0.01, 0.1])
@pytest.mark.parametrize("noise", [0.8, 1.5, 4.0])
@pytest.mark.parametrize("rounds", [10, 300])
def test_opacus_and_dp_accounting_agree(rate: float, noise: float, rounds: int) -> None:
    """Opacus' PRV states its result with an error of .01 added."""
    ours = gaussian_pld_epsilon({(noise, rate): rounds}, 1e-5)
    assert prv_epsilon([(noise, rate, rounds)], 1e-5) == pytest.approx(ours + 0.01, abs=0.01)


def test_opacus_composes_rounds_of_several_kinds() -> None:
    steps = [(1.0, 0.05, 20), (2.0, 0.1, 50)]
    ours = gaussian_pld_epsilon({(z, q): times for z, q, times in steps}, 1e-5)
    assert prv_epsilon(steps, 1e-5) == pytest.approx(ours + 0.01, abs=0.01)
