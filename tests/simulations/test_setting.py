"""What is refused, or said, before a simulation begins."""

from __future__ import annotations

import pytest

from fedsys.config import load
from fedsys.errors import ConfigError
from fedsys.privacy import PrivacyPlan
from fedsys.privacy.planning import make_plan
from server.job_settings import check_rate
from simulations.setting import check_turns


def plan(rounds: int, most: int | None) -> PrivacyPlan:
    return make_plan(
        mechanism="distributed-gaussian",
        population=5000,
        expected_cohort=1000,
        rounds=rounds,
        dimension=100,
        clip=1.0,
        delta=1e-6,
        noise_multiplier=1.0,
        max_participations=most,
    )


def test_turns_that_end_long_before_the_rounds_are_refused() -> None:
    assert check_turns(plan(25, 5)) == ""
    assert check_turns(plan(200, None)) == ""
    assert "the turns of 5000 clients last about 25 rounds" in check_turns(plan(40, 5))
    with pytest.raises(ConfigError, match=r"rounds\.count = 25, or .*max_participations = 53"):
        check_turns(plan(200, 5))


def test_a_step_size_at_which_an_adaptive_strategy_stays_at_chance_is_said() -> None:
    for strategy in ("fedadagrad", "fedadam", "fedyogi"):
        chosen = [f"server.strategy={strategy}", "server.learning_rate=1"]
        assert "try server.learning_rate = 0.01" in check_rate(load("quickstart", chosen))
        assert check_rate(load("quickstart", [*chosen, "server.learning_rate=0.05"])) == ""
    assert check_rate(load("quickstart")) == ""
