"""Cohorts that secure aggregation cannot sum are refused, by protocol ideal too."""

from __future__ import annotations

import pytest

from fedsys.config import Config, load
from fedsys.errors import ConfigError
from fedsys.privacy import PrivacyPlan
from server.job_settings import plan_for
from simulations.secure_fit import check_secure

IMPOSSIBLE = (
    "aggregation.protocol=ideal", "cohort.expected=70", "rounds.count=2",
    "privacy.max_colluders=66",
)  # fmt: skip


def job(*settings: str) -> tuple[Config, PrivacyPlan]:
    config = load("quickstart", settings)
    return config, plan_for(config, population=1437, layers=(650,))


def test_what_no_devices_could_sum_is_refused_with_remedies_that_work() -> None:
    with pytest.raises(ConfigError, match="no devices could sum cohorts of") as refused:
        check_secure(*job(*IMPOSSIBLE))
    text = str(refused.value)
    ways = text.partition("dropout = 0.1: ")[2].split(", or ")
    assert ways[-1] == "aggregation.protocol = 'float', which is not a release"
    assert len(ways) > 1
    for way in ways:
        setting = way.partition(" if ")[0].partition(",")[0].replace(" ", "").replace("'", "")
        check_secure(*job(*IMPOSSIBLE, setting))
    assert check_secure(*job(*IMPOSSIBLE, "privacy.mechanism=none")) == text.partition(": ")[0]


def test_nothing_lower_than_nothing_is_advised() -> None:
    with pytest.raises(ConfigError) as refused:
        check_secure(*job(*IMPOSSIBLE, "aggregation.corrupt=0"))
    ways = str(refused.value).partition("dropout = 0.1: ")[2]
    assert "aggregation.corrupt" not in ways
    assert "aggregation.dropout = " in ways


def test_what_delta_would_not_pay_for_runs_with_a_line() -> None:
    said = check_secure(*job("aggregation.protocol=ideal", "cohort.expected=40"))
    assert "misses the quorum of secure aggregation too often" in said
    assert "raise the expected cohort to" in said
    assert check_secure(*job("aggregation.protocol=ideal")) == ""
    assert check_secure(*job("aggregation.protocol=float", "cohort.expected=40")) == ""
