"""A round's parameters: what coordinator and device compute, and how many losses they withstand."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsys.config import load
from fedsys.errors import MechanismError
from fedsys.privacy.sampling.quorum import withstood
from fedsys.wire.round_params import round_params
from secure_agg import Roster, SecAggParams
from secure_agg.errors import ParameterError
from server.coordinator import OpenRound
from server.job_settings import plan_for
from server.rounds import RoundAborted, SecureRound, params_for
from tests.client.devices import PLAN, Conversation, D, Devices, params_of, plan_of

NO_NOISE = {"mechanism": "none", "noise_multiplier": 0.0}


def params(
    n: int, *, corrupt: float, dropout: float, colluders: int = 0, **more: int
) -> SecAggParams:
    plan = plan_of(n, corrupt=corrupt, dropout=dropout, **NO_NOISE, **{"min_survivors": 1, **more})
    return round_params(plan, n, length=D, modulus_bits=32, colluders=colluders)


def test_a_sum_hides_each_honest_input_behind_another() -> None:
    assert params(50, corrupt=0.1, dropout=0.1).min_included == 5 + 2
    assert params(50, corrupt=0.1, dropout=0.1, min_survivors=30).min_included == 30
    assert params(50, corrupt=0.1, dropout=0.1, colluders=11).min_included == 11 + 2


def test_parameters_withstand_more_than_the_expected_losses() -> None:
    """5 of 50 on average; the quorum of 28 leaves room for 22."""
    small = params(50, corrupt=0.1, dropout=0.1)
    assert (small.committee, small.quorum, small.colluders) == (50, 28, 5)
    assert small.losses_if_colluders_answer == 22
    large = params(1000, corrupt=0.1, dropout=0.1)
    assert large.committee < 1000
    assert large.losses_if_colluders_answer > 0.1 * large.committee


@pytest.mark.parametrize("size", [4, 5, 10])
def test_small_fleets_are_served_with_a_tenth_corrupt_and_a_tenth_lost(size: int) -> None:
    found = params(size, corrupt=0.1, dropout=0.1)
    assert found.colluders == 1
    assert found.losses_if_colluders_answer >= 1
    assert found.min_included == 3


@pytest.mark.parametrize(("corrupt", "dropout"), [(0.0, 0.0), (0.0, 0.1), (0.1, 0.0)])
def test_three_are_served_where_nobody_colludes_or_nobody_is_lost(
    corrupt: float, dropout: float
) -> None:
    assert params(3, corrupt=corrupt, dropout=dropout).n == 3
    with pytest.raises(ParameterError, match=r"corrupt = 0 .* or dropout = 0"):
        params(3, corrupt=0.1, dropout=0.1)


def test_a_rosters_colluders_count_where_they_are_more() -> None:
    assert params(20, corrupt=0.1, dropout=0.0, colluders=5).colluders == 5
    assert params(20, corrupt=0.1, dropout=0.0, colluders=1).colluders == 2
    with pytest.raises(ParameterError):
        params(20, corrupt=0.1, dropout=0.1, colluders=100)


@pytest.mark.parametrize("corrupt", [0.0, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("dropout", [0.0, 0.05, 0.2, 0.4])
def test_the_accountant_knows_which_cohorts_can_be_summed(corrupt: float, dropout: float) -> None:
    plan = plan_of(1000, corrupt=corrupt, dropout=dropout, min_survivors=1, **NO_NOISE)
    for n in (*range(2, 60), 100, 333, 1000):
        asked = withstood(n, corrupt=corrupt, dropout=dropout)
        try:
            found = round_params(plan, n, length=D, modulus_bits=32)
        except ParameterError:
            assert asked is None
        else:
            assert asked is not None
            assert found.losses_if_colluders_answer >= asked.losses or found.committee < n


def test_a_cohort_that_cannot_be_served_aborts() -> None:
    plan = plan_of(3, dropout=0.1, **NO_NOISE)
    roster = Roster({k: bytes([k]) * 32 for k in range(3)})
    with pytest.raises(RoundAborted, match="secure aggregation") as caught:
        params_for(plan, plan.build_mechanism(), roster, 2)
    assert caught.value.nothing_summed


@pytest.mark.parametrize("protocol", ["secure", "ideal"])
def test_a_jobs_plan_pays_for_its_quorum_where_there_is_one(protocol: str) -> None:
    """Simulated, deployed and canary jobs alike: all have their plan from here."""
    settings = [f"aggregation.protocol={protocol}", "population.clients=1437"]
    plan = plan_for(load("quickstart", settings), population=1437, layers=[650])
    assert (plan.delta_quorum > 0) is (protocol == "secure")
    assert plan.delta_quorum <= plan.delta / 10
    small = load("quickstart", [*settings, "cohort.expected=40", "aggregation.dropout=0.2"])
    if protocol == "secure":
        with pytest.raises(MechanismError, match="misses the quorum of secure aggregation"):
            plan_for(small, population=1437, layers=[650])
    else:
        plan_for(small, population=1437, layers=[650])


def test_no_answer_of_a_round_is_larger_than_what_is_let_in(tmp_path: Path) -> None:
    """A vector, three shares and what stands before them are all that a device may send."""
    devices = Devices(tmp_path, running=0)
    talk = Conversation(devices, devices.terms())
    secure = SecureRound(
        open=OpenRound(number=1, cohort=(0, 1, 2), assignment=talk.assignment),
        mechanism=PLAN.build_mechanism(),
        roster=devices.roster.roster,
        params=talk.announced,
        prekeys={},
    )
    assert talk.announced.upload_bytes < secure.largest_answer < talk.announced.upload_bytes + 8192
    assert secure.nothing_summed
    with pytest.raises(RoundAborted, match="needed") as caught:  # nobody left a sealing key
        secure.begin()
    assert caught.value.nothing_summed


def test_parameters_of_another_cohort_are_no_rounds(tmp_path: Path) -> None:
    devices = Devices(tmp_path, count=4, plan=plan_of(4), running=0)
    talk = Conversation(devices, devices.terms())
    with pytest.raises(RoundAborted, match="parameters of 4 members"):
        SecureRound(
            open=OpenRound(number=1, cohort=(0, 1, 2), assignment=talk.assignment),
            mechanism=devices.plan.build_mechanism(),
            roster=devices.roster.roster,
            params=params_of(talk.terms, devices.roster, 4),
            prekeys={},
        )
