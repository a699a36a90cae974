"""Plans, events, aborts, calibration: impossible numbers are one clear line."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsys.errors import MechanismError
from fedsys.privacy import (
    PrivacyPlan,
    abort_delta,
    calibrate,
    choose_cap_and_min_survivors,
    event_from_json,
    guaranteed_epsilon,
    make_plan,
    planned_outsider,
)
from fedsys.privacy.accounting.projection import project, typical_maximum

BASE: dict[str, Any] = {
    "mechanism": "distributed-gaussian",
    "population": 1000,
    "expected_cohort": 50,
    "rounds": 100,
    "dimension": 5000,
    "clip": 1.0,
    "delta": 1e-5,
    "noise_multiplier": 1.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "wide": {},
    "narrow": {"encoding": "narrow", "modulus_bits": 18},
    "once": {"noise": "once"},
    "float": {"encoding": "float"},
    "central": {"mechanism": "central-gaussian"},
    "central fixed": {"mechanism": "central-gaussian", "sampling": "fixed"},
    "local": {"mechanism": "local-gaussian"},
    "banded": {
        "mechanism": "banded-mf",
        "sampling": "min-separation",
        "min_separation": 10,
        "max_participations": 6,
    },
    "banded cyclic": {"mechanism": "banded-mf", "min_separation": 10},
    "example": {"mechanism": "example-gaussian", "example_rate": 0.05, "steps": 3},
    "secret coin": {"participation": 0.2, "sampling": "fixed"},
    "server": {"guarantee": "server", "max_participations": 6, "colluders": 1},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier must be a finite number > 0, got 0.0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be"),
        ({"noise_multiplier": math.nan}, "noise_multiplier must be"),
        ({"noise_multiplier": None}, "either noise_multiplier or epsilon"),
        ({"epsilon": 1.0}, "either noise_multiplier or epsilon"),
        ({"noise_multiplier": None, "epsilon": 0.0}, "epsilon must be"),
        ({"delta": 1.0}, r"delta must be in \(0, 1\), got 1.0"),
        ({"delta": 0.0}, "delta must be"),
        ({"delta": math.nan}, "delta must be"),
        ({"rounds": 0}, "rounds must be an integer >= 1, got 0"),
        ({"rounds": 2.5}, "rounds must be an integer"),
        ({"rounds": True}, "rounds must be an integer"),
        ({"population": 40}, "expected_cohort=50 exceeds population=40"),
        ({"population": 0}, "population must be"),
        ({"population": 10**12}, "population must be"),
        ({"expected_cohort": math.inf}, "expected_cohort must be"),
        ({"dimension": 0}, "dimension must be"),
        ({"clip": 0.0}, "clip must be"),
        ({"clip": math.nan}, "clip must be"),
        ({"clip": 5e-324}, "out of the range in which updates can be scaled"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"cap": 60}, r"delta_abort=.* more than a tenth of delta=1e-05: raise cap=60"),
        ({"cap": 10**12}, r"cap=1000000000000 exceeds population=\d+: no cohort is that large"),
        ({"min_survivors": 40}, r"delta_abort=.* lower min_survivors=40"),
        ({"cap": 90, "min_survivors": 95}, "every round aborts|delta_abort"),
        ({"expected_cohort": 3}, "too small"),
        ({"modulus_bits": 16}, r"too small.*needs \d+ bits"),
        ({"noise_multiplier": 1e300}, "noise_multiplier=1e.300 with clip=.* beyond what a float"),
        ({"noise_multiplier": 1e140, "modulus_bits": 32}, "modulus_bits=32 is too small"),
        ({"noise_multiplier": 1e140}, "is too small|more than any ring holds"),
        ({"noise_multiplier": 0.1, "dimension": 1}, "too far from Gaussian noise"),
        ({"modulus_bits": 65}, "modulus_bits must be an integer from 2 to 64"),
        ({"encoding": "tiny"}, "encoding must be one of wide, narrow"),
        ({"mechanism": "magic"}, "mechanism must be one of distributed-gaussian"),
        ({"mechanism": "none", "encoding": "narrow"}, "narrow"),
        ({"sampling": "lottery"}, "sampling must be one of poisson, fixed, min-separation"),
        ({"sampling": "min-separation"}, "needs min_separation and max_participations"),
        ({"participation": 0.0}, "participation must be"),
        ({"guarantee": "server"}, "needs max_participations"),
        ({"guarantee": "nobody"}, "guarantee must be one of outsider, server"),
        (
            {"mechanism": "central-gaussian", "guarantee": "server", "max_participations": 3},
            "cannot hold",
        ),
        ({"mechanism": "banded-mf"}, "needs min_separation"),
        ({"mechanism": "banded-mf", "min_separation": 10, "rounds": 10**6}, "up to 4096 rounds"),
        ({"mechanism": "banded-mf", "min_separation": 30}, "exceeds a cyclic group"),
        ({"mechanism": "banded-mf", "min_separation": 5, "sampling": "fixed"}, "min-separation"),
        ({"mechanism": "example-gaussian"}, "needs example_rate"),
        ({"unit": "example"}, "does not go with"),
        ({"noise_multiplier": None, "epsilon": 1e-9, "rounds": 10_000}, "out of reach|too small"),
        ({"colluders": -1}, "colluders must be"),
    ],
)
def test_impossible_numbers_are_one_clear_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MechanismError, match=message) as caught:
        make_plan(**BASE | changes)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_plans_and_events_survive_json(variant: str) -> None:
    import json

    plan = make_plan(**BASE | VARIANTS[variant])
    assert PrivacyPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    event = plan.event()
    body = json.loads(json.dumps(event.to_json()))
    assert event_from_json(body) == event
    assert plan.covers(event_from_json(body))


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_value_of_an_event_can_be_changed_alone(variant: str) -> None:
    """Every derived value is derived again; every chosen one is out of the plan."""
    plan = make_plan(**BASE | VARIANTS[variant])
    body = plan.event().to_json()
    for name, value in body.items():
        if isinstance(value, bool) or value is None:
            continue
        if isinstance(value, str):
            changed: Any = value + "x"
        elif isinstance(value, int):
            changed = value + 1
        else:
            changed = value * 1.001 + (value == 0)
        try:
            event = event_from_json(body | {name: changed})
        except MechanismError:
            continue
        assert not plan.covers(event), name
    for broken in (
        {key: value for key, value in body.items() if key != "clip"},
        body | {"surprise": 1},
        body | {"mechanism": None},
        {},
    ):
        with pytest.raises(MechanismError):
            event_from_json(broken)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "local"])
def test_calibration_meets_its_target_and_wastes_nothing(variant: str) -> None:
    plan = make_plan(**BASE | VARIANTS[variant])
    any_ring = {} if plan.encoding == "narrow" else {"modulus_bits": 64}
    for target in (2.0, 8.0):
        multiplier = calibrate(target, plan)
        there = guaranteed_epsilon(plan.changed(noise_multiplier=multiplier, **any_ring))
        below = plan.changed(noise_multiplier=0.999 * multiplier, **any_ring)
        assert there <= target
        assert guaranteed_epsilon(below) > target
    with pytest.raises(MechanismError, match="epsilon must be"):
        calibrate(math.nan, plan)


def test_nothing_can_be_calibrated_without_noise() -> None:
    plan = make_plan(**BASE | {"mechanism": "none"})
    assert plan.noise_multiplier == 0.0
    with pytest.raises(MechanismError, match="adds no noise"):
        calibrate(1.0, plan)


def test_abort_delta_against_simulation() -> None:
    """A small job in which aborts are common; 6 standard deviations are one in 1e9."""
    rng = np.random.default_rng(0)
    trials, population, rate, dropout = 400_000, 40, 0.3, 0.2
    others = rng.binomial(population - 1, rate, trials)
    alive = rng.binomial(population - 1, rate * (1 - dropout), trials)
    observed = (others >= 18).mean() + (alive <= 4).mean()
    stated = abort_delta(
        population=population,
        expected_cohort=rate * population,
        rounds=1,
        cap=18,
        min_survivors=5,
        dropout=dropout,
    )
    assert observed == pytest.approx(stated, abs=6 * math.sqrt(stated / trials))
    fixed = abort_delta(
        population=population,
        expected_cohort=12,
        rounds=3,
        cap=12,
        min_survivors=6,
        dropout=dropout,
        sampling="fixed",
    )
    assert fixed == pytest.approx(3 * float(stats.binom.cdf(5, 11, 0.8)))


@pytest.mark.parametrize("dropout", [0.0, 0.05, 0.3])
def test_chosen_bounds_are_the_tightest(dropout: float) -> None:
    parameters: dict[str, Any] = {
        "population": 1000,
        "expected_cohort": 60,
        "rounds": 100,
        "dropout": dropout,
    }
    chosen = choose_cap_and_min_survivors(delta=1e-5, **parameters)
    each = 1e-5 / 200

    def cost(cap: int, least: int) -> float:
        return abort_delta(cap=cap, min_survivors=least, **parameters)

    lowest = cost(chosen.cap, 1)
    assert chosen.delta_abort <= 1e-7
    assert cost(1000, chosen.min_survivors) <= each < cost(1000, chosen.min_survivors + 1)
    assert lowest - cost(1000, 1) <= each < cost(chosen.cap - 1, 1) - cost(1000, 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_views_are_ordered_and_projected(variant: str) -> None:
    plan = make_plan(**BASE | VARIANTS[variant])
    projection = project(plan)
    outsider = projection.epsilon["outsider"]
    assert projection.reported == outsider[plan.accountant] == planned_outsider(plan)
    if "rdp" in outsider and plan.accountant != "rdp":
        assert outsider[plan.accountant] <= outsider["rdp"]
    (participant,) = projection.epsilon["participant"].values()
    assert participant >= projection.reported * (1 - 1e-9)
    (server,) = projection.epsilon["server"].values()
    assert math.isinf(server) == (plan.mechanism in ("central-gaussian", "banded-mf"))


def test_typical_maximum_is_typical() -> None:
    rng = np.random.default_rng(1)
    maxima = [int(rng.binomial(200, 0.05, 1000).max()) for _ in range(200)]
    stated = typical_maximum(trials=200, probability=0.05, candidates=1000)
    assert abs(float(np.median(maxima)) - stated) <= 1
    assert typical_maximum(trials=5, probability=1.0, candidates=1) == 5


def test_secret_participation_amplifies_against_the_server_too() -> None:
    parameters = BASE | {"population": 60, "expected_cohort": 60, "sampling": "fixed"}
    always = make_plan(**parameters, max_participations=50, guarantee="server")
    sometimes = make_plan(
        **parameters, max_participations=50, guarantee="server", participation=0.1
    )
    assert guaranteed_epsilon(sometimes) < 0.5 * guaranteed_epsilon(always)
    assert planned_outsider(sometimes) < 0.5 * planned_outsider(always)


def test_banded_costs_match_the_design() -> None:
    """k participations under the bands: one Gaussian of multiplier z / (2 sqrt(k)), exactly, since
    neighbours replace a client: twice the sensitivity."""
    from fedsys.privacy.accounting.exact_gaussian import gaussian_epsilon

    plan = make_plan(**BASE | VARIANTS["banded"])
    assert plan.turns(100) == 6
    assert plan.turns(25) == 3
    assert planned_outsider(plan) == pytest.approx(
        gaussian_epsilon(plan.delta_released, 1 / (2 * math.sqrt(6))), rel=1e-9
    )
    cyclic = make_plan(**BASE | VARIANTS["banded cyclic"])
    assert cyclic.turns(100) == 10
    from fedsys.privacy.accounting.pld import gaussian_pld_epsilon

    assert planned_outsider(cyclic) == pytest.approx(
        gaussian_pld_epsilon({(1.0, 0.5): 10}, cyclic.delta_released), rel=1e-9
    )
