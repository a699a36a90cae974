"""A job under every fault of the testbed: real processes, the real commands, real sockets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulations.testbed.crowd import Crowd, crowd_job, survive
from simulations.testbed.faults import FAULTS
from simulations.testbed.federation import Federation
from simulations.testbed.trial import Report, Trial


def trial(root: Path, *names: str, agents: int, strikes: int, seed: int = 1) -> Report:
    faults = [FAULTS[name] for name in names]
    proxied = any(fault.network for fault in faults)
    with Federation.make(root, agents, proxied=proxied, seed=seed) as federation:
        return Trial(federation, faults, seed=seed).run(strikes=strikes)


def test_nothing_is_believed_of_what_was_changed_or_sent_again(tmp_path: Path) -> None:
    report = trial(tmp_path, "corrupt", "replay", agents=3, strikes=2)
    assert report.passed, report.broken


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FAULTS)
def test_a_job_survives(name: str, tmp_path: Path) -> None:
    report = trial(tmp_path, name, agents=5, strikes=6, seed=2)
    assert report.passed, report.broken


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_crowd_comes_back_to_a_coordinator_that_was_killed(tmp_path: Path) -> None:
    found = survive(tmp_path, 100, cohort=10)
    assert found["rounds"] == 6
    # two descriptors an agent would be one too many
    assert found["descriptors"] < 100 + 60


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_sessions_complete_a_secure_round(tmp_path: Path) -> None:
    """In two processes, over real sockets; a committee of some two hundred serves the others."""
    with Crowd.make(tmp_path, 1000, dimension=1000) as crowd:
        crowd.wait_connected()
        row = crowd.run(crowd_job(1000, 1000, rounds=1), seconds=1200)
        assert row.status == "completed", row.reason
        line = (crowd.home.jobs / row.id / "private.jsonl").read_text().splitlines()[-1]
        assert len(json.loads(line)["survivors"]) >= 990
