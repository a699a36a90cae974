"""Delta pays for the noise's distance from a Gaussian, in each view with its own 1 + e^eps."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fedsys.errors import MechanismError
from fedsys.privacy import VIEWS, ViewAccountant, ledger_header, make_plan, plan_of
from fedsys.privacy.accounting.costs import outsider_step, server_step, steps_epsilon, together_step
from fedsys.privacy.accounting.noise_charges import CHARGE_SHARE, noise_charges
from fedsys.privacy.events import build_event
from fedsys.privacy.noise import rounding_distance, sampler_distance

COARSE: dict[str, Any] = {
    "mechanism": "distributed-gaussian",
    "population": 3000,
    "expected_cohort": 60,
    "rounds": 20,
    "dimension": 3,
    "clip": 1.0,
    "delta": 1e-5,
    "noise_multiplier": 0.9,
}
"""An update of three coordinates: 110 integers of norm among a hundred shares."""


def test_each_view_is_charged_with_its_own_factor() -> None:
    """(1 + e^eps) T d (tau + draws of the sampler) with an eps no smaller than the view's."""
    plan = make_plan(**COARSE)
    event = plan.event()
    whole = {
        "outsider": {outsider_step(event): 20},
        "participant": {together_step(event): 20},
        "server": {server_step(event): 20},
    }
    for view in ("outsider", "participant"):
        terms = event.terms(view)
        assert terms is not None
        distance = rounding_distance(terms.sigma, terms.fewest, terms.most)
        distance += terms.draws * sampler_distance(terms.sigma)
        epsilon = steps_epsilon(whole[view], plan.delta_of(view))
        charge = plan.charges.of(view)
        assert (1 + math.exp(epsilon)) * distance * 20 * 3 <= charge <= plan.delta * CHARGE_SHARE
        assert epsilon <= plan.charges.largest[view]
    assert event.terms("outsider").most == plan.cap  # type: ignore[union-attr]
    assert event.terms("participant").fewest == plan.cap - 1  # type: ignore[union-attr]
    assert event.terms("server").fewest == plan.min_survivors  # type: ignore[union-attr]


def test_the_parts_of_delta_add_up_and_the_header_states_them() -> None:
    plan = make_plan(**COARSE, corrupt=0.1)
    header = ledger_header(plan)
    parts = header["delta_parts"]
    for view in VIEWS:
        aborts = 0.0 if view == "server" else parts["aborts"]
        assert parts[view] + parts[f"noise_{view}"] + aborts == pytest.approx(plan.delta, rel=1e-12)
        assert parts[view] == plan.delta_of(view) < plan.delta * (1 + 1e-15)
    assert plan_of(header) == plan


def test_noise_too_coarse_for_its_epsilon_is_refused_with_the_remedy() -> None:
    """Shares of deviation half an integer: tau is of the order of 1e-2."""
    with pytest.raises(MechanismError, match=r"too far from Gaussian noise.*more modulus_bits"):
        make_plan(**COARSE | {"dimension": 1, "noise_multiplier": 0.09})
    plan = make_plan(**COARSE | {"dimension": 1, "noise_multiplier": 2.0})
    assert plan.charges.uncovered <= {"server", "participant"}
    make_plan(**COARSE | {"dimension": 1, "noise_multiplier": 0.09, "noise": "once"})


def test_a_view_beyond_what_its_charge_covers_has_no_bound() -> None:
    """Where e^eps times the distance exceeds delta, no epsilon can be claimed."""
    plan = make_plan(**COARSE | {"noise_multiplier": 0.4, "rounds": 300})
    accountant = ViewAccountant(plan)
    for _ in range(300):
        accountant.charge(plan.event())  # cohorts unknown: in all of them, at the worst case
    spent = accountant.spent()
    assert spent.outsider < math.inf
    assert spent.server == math.inf
    assert "server" in plan.charges.uncovered


def test_a_single_draw_is_accounted_as_one_term() -> None:
    shared, once = make_plan(**COARSE), make_plan(**COARSE, noise="once")
    assert shared.event().terms("outsider").most == shared.cap  # type: ignore[union-attr]
    assert once.event().terms("outsider").most == 1  # type: ignore[union-attr]
    assert once.event() != shared.event()
    assert once.event().to_json()["noise"] == "once"
    assert not shared.covers(once.event())
    assert 0 < once.charges.of("outsider") < shared.charges.of("outsider")
    for view in ("participant", "server"):  # those of the deployment that is simulated
        assert once.charges.of(view) == shared.charges.of(view)


def test_the_same_epsilons_however_the_sum_comes_about() -> None:
    """Shares in a secure sum, in the clear, or one draw: one cost."""
    job: dict[str, Any] = COARSE | {"dimension": 650, "noise_multiplier": 0.7}
    found = []
    for changes in ({}, {"noise": "once"}, {"corrupt": 0.1}):
        plan = make_plan(**job | changes)
        accountant = ViewAccountant(plan)
        for number in range(20):
            cohort = range(number, number + 60)
            accountant.charge(plan.event(), cohort, cohort[:-5])
        found.append(accountant.spent())
    for spent in found[1:]:
        for view in VIEWS:
            assert spent.of(view) == pytest.approx(found[0].of(view), rel=1e-4)


def test_no_view_relies_on_more_terms_than_there_are() -> None:
    for cap in (1, 2, 50):
        for colluders in (0, 1, 10, 100):
            for name in ("distributed-gaussian", "local-gaussian"):
                event = build_event(
                    name,
                    dimension=10,
                    clip=1.0,
                    noise_multiplier=1.0,
                    expected_cohort=1.0,
                    population=10,
                    cap=cap,
                    min_survivors=1,
                    colluders=colluders,
                )
                for view in VIEWS:
                    terms = event.terms(view)
                    assert terms is not None
                    assert 1 <= terms.fewest <= terms.most <= cap
                charges = noise_charges(event, delta=1e-5, rounds=3, turns=3, contributions=3)
                assert all(charge <= 1e-5 * CHARGE_SHARE for charge in charges.parts.values())
