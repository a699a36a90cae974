"""The whole battery on simulated runs: honest, with excess noise, and with too little."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedsys.audit.canary_claim import Claimed, planned
from fedsys.audit.canary_protocol import TESTS, register
from fedsys.audit.canary_tests import WEAKENED, Battery, simulated
from fedsys.privacy import make_plan
from simulations.benchmarks.honest_canaries import simulate_runs


def claim(*, clients: int, rounds: int, z: float) -> Claimed:
    return planned(
        make_plan(
            mechanism="distributed-gaussian",
            population=1937,
            expected_cohort=clients,
            rounds=rounds,
            dimension=650,
            clip=1.0,
            delta=1e-5,
            noise_multiplier=z,
        )
    )


def battery(claimed: Claimed) -> Battery:
    return Battery(claimed, register(claimed, canaries=500, dimension=650, commitment="0" * 64))


CLAIMS = [(1937, 1, 0.56), (1937, 1, 2.0), (135, 40, 0.65)]
"""Everybody in one release at epsilon 8.7 and 2, and the quickstart at 8.7."""


@pytest.mark.parametrize(("clients", "rounds", "z"), CLAIMS)
@pytest.mark.parametrize("weaker", [1.0, 0.9, 0.2])
def test_honest_runs_and_excess_noise_are_not_refuted(
    clients: int, rounds: int, z: float, weaker: float
) -> None:
    """100 runs at a false-alarm rate of 1e-4 and a fixed seed."""
    tests, generator = battery(claim(clients=clients, rounds=rounds, z=z)), np.random.default_rng(1)
    assert tests.claimed.law is not None
    for _ in range(100):
        scores = simulated(tests.claimed.law, tests.protocol, generator, weaker=weaker)
        assert list(tests.refuted_by(scores)) == []


@pytest.mark.parametrize(("clients", "rounds", "z"), CLAIMS)
def test_weak_noise_is_caught_and_what_has_no_power_is_named(
    clients: int, rounds: int, z: float
) -> None:
    tests = battery(claim(clients=clients, rounds=rounds, z=z))
    power = tests.power()
    assert (1.5, 2.0, math.inf) == WEAKENED
    assert min(power.by_any) >= 0.99
    assert power.catches("chi-square")
    assert power.catches("kolmogorov-smirnov")
    assert power.catches("gaussian-scores")
    assert power.catches("one-shot")
    assert power.catches("f-dp") == power.catches("one-run") == (z == 2.0)


def test_the_quick_verdicts_are_those_of_the_p_values() -> None:
    tests, generator = battery(claim(clients=1937, rounds=1, z=2.0)), np.random.default_rng(2)
    assert tests.claimed.law is not None
    for weaker in (1.0, 1.3, 1.5, 2.0, 4.0, math.inf):
        scores = simulated(tests.claimed.law, tests.protocol, generator, weaker=weaker)
        findings = tests.findings(scores)
        assert list(findings) == list(TESTS)
        by_p = {
            test
            for test, found in findings.items()
            if found.p_value is not None and found.p_value <= tests.protocol.level
        }
        assert by_p == set(tests.refuted_by(scores))


def test_what_cannot_be_carried_out_says_why() -> None:
    tests = battery(claim(clients=1937, rounds=1, z=0.56))
    assert tests.claimed.law is not None
    scores = simulated(tests.claimed.law, tests.protocol, np.random.default_rng(3))
    found = tests.findings(scores)["one-run"]
    assert found.p_value is None
    assert "no number of guesses" in found.why_not
    bare = planned(
        make_plan(
            mechanism="none",
            population=100,
            expected_cohort=100,
            rounds=1,
            dimension=650,
            clip=1.0,
            delta=1e-5,
        )
    )
    nothing = battery(bare)
    assert {each.why_not for each in nothing.findings(scores).values()} == {"no epsilon is claimed"}
    assert nothing.power().by_any == (0.0, 0.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("z", [0.56, 2.0])
def test_a_thousand_honest_runs_are_not_refuted(z: float) -> None:
    """`simulations/RESULTS.md` has the figures; by chance with a probability of 0.1 at most."""
    outcome = simulate_runs(claim(clients=1937, rounds=1, z=z), canaries=500, runs=1000, seed=4)
    assert outcome["noise as claimed"]["refuted"] == 0
    assert outcome["noise times 1.5"]["refuted"] == 0
    assert outcome["noise divided by 1.5"]["refuted"] >= 990
    assert outcome["noise divided by 2"]["refuted"] == 1000
    assert outcome["no noise"]["refuted"] == 1000
