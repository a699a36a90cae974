"""The fault plan: the same losses for the same seed, at the stated rates; the simulated clock."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsys.audit import audit_run
from fedsys.config import Config
from fedsys.privacy.ledger import read_private
from fedsys.release.publication import publish_run
from fedsys.report import build
from fedsys.report.terminal import print_run
from simulations import harness
from simulations.faults import DAY, STAGES, FaultPlan, SimulatedClock

Configure = Callable[..., Config]
MANY = 20_000


def within(successes: int, chance: float, tries: int = MANY) -> bool:
    """At most 5.5 deviations off: false alarm below 1e-7."""
    return abs(successes - chance * tries) < 5.5 * math.sqrt(chance * (1 - chance) * tries)


def test_nothing_goes_wrong_by_default() -> None:
    assert not any(FaultPlan().lost(round=1, client=client) for client in range(100))


def test_dropouts_at_the_stated_rate_at_every_stage() -> None:
    plan = FaultPlan(dropout=0.2, seed=3)
    lost = Counter(plan.lost(round=4, client=client) for client in range(MANY))
    assert within(MANY - lost[None], 0.2)
    assert all(within(lost[stage], 0.2 / 3) for stage in STAGES)
    again = Counter(plan.lost(round=4, client=client) for client in range(MANY))
    assert lost == again
    other = [FaultPlan(dropout=0.2, seed=4).lost(round=4, client=client) for client in range(50)]
    assert other != [plan.lost(round=4, client=client) for client in range(50)]


def test_reachability_follows_each_clients_own_hours() -> None:
    plan = FaultPlan(availability=0.9, diurnal=1.0, seed=5)
    rates = []
    for client in range(20):
        by_hour = [
            np.mean(
                [
                    plan.reachable(round=round, client=client, now=hour / 24 * DAY)
                    for round in range(400)
                ]
            )
            for hour in range(24)
        ]
        assert max(by_hour) > 0.75
        assert min(by_hour) < 0.1
        rates.append(int(np.argmax(by_hour)))
    assert len(set(rates)) > 5
    whole_day = [plan.reachable(round=at, client=at, now=at % 24 / 24 * DAY) for at in range(MANY)]
    assert within(sum(whole_day), 0.45)  # the wave's mean is one half


def test_those_out_of_reach_never_upload() -> None:
    plan = FaultPlan(availability=0.5, seed=1)
    lost = [plan.lost(round=1, client=client) for client in range(MANY)]
    assert set(lost) == {None, "upload"}
    assert within(lost.count(None), 0.5)


def test_speeds_are_log_normal_and_stragglers_are_given_up() -> None:
    plan = FaultPlan(speed_spread=0.5, seconds_per_example=2.0, deadline=40.0, seed=9)
    seconds = np.array([plan.seconds(client=client, examples=10) for client in range(MANY)])
    logs = np.log(seconds / 20)
    assert abs(logs.mean()) < 5.5 * 0.5 / math.sqrt(MANY)
    assert abs(logs.std() / 0.5 - 1) < 5.5 / math.sqrt(2 * MANY)
    late = seconds > 40
    lost = [plan.lost(round=1, client=client, examples=10) for client in range(MANY)]
    assert [stage == "upload" for stage in lost] == late.tolist()
    assert 0.05 < late.mean() < 0.12


def test_a_round_lasts_as_long_as_its_slowest_client_or_the_deadline() -> None:
    clock, plan = SimulatedClock(), FaultPlan(seconds_per_example=1.0)
    assert clock.advance(plan, {1: 5, 2: 9}) == 9
    assert clock.advance(FaultPlan(seconds_per_example=1.0, deadline=6.0), {1: 5, 2: 9}) == 15
    assert clock.advance(plan, {}) == 15


@pytest.mark.parametrize("protocol", ["ideal", "secure"])
def test_a_run_with_stragglers_keeps_simulated_time(
    protocol: str, configure: Configure, tmp_path: Path
) -> None:
    config = configure(
        f"aggregation.protocol={protocol}",
        "aggregation.dropout=0.3",
        "privacy.mechanism=none",
        "faults.dropout=0",
        "faults.speed_spread=1.0",
        "faults.seconds_per_example=3.0",
        "faults.deadline=10",
    )
    run = harness.run(config, out=tmp_path / "run")
    rounds, _ = read_private(run.folder / "private.jsonl")
    times = [rounds[number]["simulated_seconds"] for number in sorted(rounds)]
    assert times == [10.0, 20.0, 30.0]
    assert all(rounds[number]["dropped"]["upload"] > 0 for number in rounds)
    simulated = json.loads((run.folder / "summary.json").read_text())["simulated"]
    assert simulated["seconds"] == 30.0
    assert simulated["to_accuracy"]["0.1"] in (10.0, 20.0, 30.0)
    assert list(simulated["to_accuracy"].values()) == sorted(simulated["to_accuracy"].values())
    audit = audit_run(run.folder)
    page = build(run.folder, audit, private=True).read_text()
    assert "Accuracy over simulated time" in page
    assert "Dropouts by stage" in page
    told = io.StringIO()
    print_run(run.folder, audit, file=told)
    assert "simulated time       30.0 s" in told.getvalue()
    published = publish_run(run.folder, tmp_path / "published")
    assert "simulated" not in published.summary.read_text()
    assert "simulated_seconds" not in json.dumps(
        (run.folder / "metrics.jsonl").read_text() + (run.folder / "ledger.jsonl").read_text()
    )
