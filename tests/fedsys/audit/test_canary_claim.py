"""What a plan claims that canaries can contradict."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedsys.audit.canary_claim import planned, score_law
from fedsys.privacy import AesCtrStream, PrivacyPlan, make_plan
from fedsys.privacy.events import BandedEvent
from fedsys.privacy.mechanisms.banded import CorrelatedNoise


def plan_of(**choices: object) -> PrivacyPlan:
    usual: dict[str, object] = {
        "mechanism": "distributed-gaussian",
        "population": 1437,
        "expected_cohort": 100,
        "rounds": 40,
        "dimension": 650,
        "clip": 0.3,
        "delta": 1e-5,
        "noise_multiplier": 0.7,
    }
    return make_plan(**(usual | choices))  # type: ignore[arg-type]


@pytest.mark.parametrize("mechanism", ["distributed-gaussian", "central-gaussian"])
def test_noise_adds_up_over_released_rounds_alone(mechanism: str) -> None:
    plan = plan_of(mechanism=mechanism)
    rounds = [(number, plan.event()) for number in (1, 2, 5, 9)]
    law = score_law(plan, rounds, reserved=10, slack=0.5)
    assert law is not None
    assert law.sigma == pytest.approx(0.7 * 2)
    assert (law.rounds, law.most) == (10, 10)
    assert law.rate == pytest.approx(100 / 1437)
    assert law.slack == pytest.approx(0.5 + 4 / 128)


def test_a_local_mechanism_adds_the_noise_of_the_whole_cap() -> None:
    plan = plan_of(mechanism="local-gaussian")
    law = score_law(plan, [(1, plan.event())], reserved=1, slack=0.0)
    assert law is not None
    assert law.sigma == pytest.approx(0.7 * math.sqrt(plan.event().cap))


def test_correlated_noise_adds_up_as_drawn() -> None:
    """Rounds 1, 2, 4 and 5 of six were released: against the noise that the mechanism draws."""
    plan = plan_of(
        mechanism="banded-mf",
        rounds=6,
        dimension=20_000,
        min_separation=3,
        sampling="min-separation",
        max_participations=2,
    )
    event = plan.event()
    assert isinstance(event, BandedEvent)
    released = (1, 2, 4, 5)
    law = score_law(plan, [(number, event) for number in released], reserved=5, slack=0.0)
    assert law is not None
    assert law.rate is None
    noise, stream = CorrelatedNoise(event), AesCtrStream(bytes(32))
    drawn = [noise.skip(stream) for _ in range(6)]
    total = sum(drawn[number - 1] for number in released) / (event.scale * event.clip)
    # 20,000 coordinates: the deviation is within 3% but for a probability of 1e-8
    assert float(np.std(total)) == pytest.approx(law.sigma, rel=0.03)


def test_what_is_not_known_has_no_law() -> None:
    plan = plan_of()
    assert score_law(plan, [(1, plan.event())], reserved=1, slack=None) is None
    assert score_law(plan, [], reserved=1, slack=0.0) is None
    bare = plan_of(mechanism="none", noise_multiplier=None)
    assert score_law(bare, [(1, bare.event())], reserved=1, slack=0.0) is None
    assert planned(bare).tradeoff is None


def test_less_noise_costs_more_and_a_smaller_delta_too() -> None:
    claimed = planned(plan_of())
    assert claimed.epsilon_at(1.0) == pytest.approx(claimed.epsilon)
    assert claimed.epsilon_at(0.7) > claimed.epsilon > claimed.epsilon_at(1.5)
    assert claimed.epsilon_at(1e-9) == claimed.epsilon_at(0.3 / 0.7)
    assert claimed.epsilon_for(claimed.delta) == claimed.epsilon
    assert claimed.epsilon_for(1e-6) > claimed.epsilon
    assert claimed.epsilon_for(claimed.beside) == math.inf
