"""A round's parameters, and how many losses they withstand."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsys.config import load
from fedsys.errors import MechanismError
from fedsys.privacy.quorum import live_members
from secure_agg import SecAggParams
from secure_agg.errors import ParameterError
from server.coordinator import OpenRound
from server.job_settings import plan_for
from server.rounds import RoundAborted, SecureRound, round_params
from tests.client.devices import PLAN, Conversation, D, Devices


def test_a_sum_holds_more_than_those_who_may_collude() -> None:
    params = round_params(n=50, corrupt=0.1, dropout=0.1, modulus_bits=32, min_survivors=1)
    assert params.min_alive == params.colluders + 1 == 6
    assert params.secrecy_bits > 39


def test_parameters_withstand_more_than_the_expected_losses() -> None:
    """5 of 50 on average; the quorum of 28 leaves room for 22."""
    params = round_params(n=50, corrupt=0.1, dropout=0.1, modulus_bits=32, min_survivors=1)
    assert params.dropouts == 22
    assert params.quorum == 50 - 22
    assert params.threshold < 50 - 22
    large = round_params(n=1000, corrupt=0.1, dropout=0.1, modulus_bits=32, min_survivors=1)
    assert large.attempts == params.attempts == 4, "one silent member does not end a round"
    assert 100 + 6 * 9.5 < large.dropouts < 100 + 9 * 9.5


@pytest.mark.parametrize("corrupt", [0.0, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("dropout", [0.0, 0.05, 0.2, 0.4])
def test_the_accountant_knows_which_cohorts_can_be_summed(corrupt: float, dropout: float) -> None:
    """`fedsys.privacy` cannot ask `secure_agg`; both have to say the same for every size."""
    for n in (*range(2, 60), 100, 333):
        live = live_members(n, corrupt=corrupt, dropout=dropout)
        tolerated = (n - live) / n if live else dropout
        try:
            params = SecAggParams.derive(
                n=n, corrupt=corrupt, dropout=tolerated, correctness_bits=40
            )
        except ParameterError:
            assert live == 0
        else:
            assert params.min_alive == live
            assert params.threshold < live


def test_a_cohort_that_cannot_be_served_aborts() -> None:
    with pytest.raises(RoundAborted, match="secure aggregation") as caught:
        round_params(n=2, corrupt=0.1, dropout=0.1, modulus_bits=32, min_survivors=1)
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
    """A vector of 32 bits an element, and what stands before it, are all that a device may send."""
    devices = Devices(tmp_path)
    talk = Conversation(devices.terms(), devices.roster)
    secure = SecureRound(
        open=OpenRound(number=1, cohort=(0, 1, 2), assignment=talk.assignment),
        mechanism=PLAN.build_mechanism(),
        roster=devices.roster.roster,
        corrupt=0.0,
        dropout=0.0,
    )
    assert 4 * D < secure.largest_answer < 4 * D + 8192
