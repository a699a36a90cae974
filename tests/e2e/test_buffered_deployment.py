"""Buffered rounds over real sockets: a straggler's upload counts, one too old does not; crashes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsys.audit import audit_run
from fedsys.config import Config, load
from fedsys.privacy import read_ledger
from fedsys.privacy.ledger import read_private
from simulations import harness
from tests.e2e.processes import Federation, federation

SETTINGS: dict[str, Any] = {
    "job.name": "buffers",
    "population.partition": "iid",
    "local.batch_size": 32,
    "server.strategy": "fedavg",
    "privacy.noise_multiplier": 20.0,
    "aggregation.protocol": "secure",
    "engine.path": "loop",
    "engine.chunk": 1,
    "evaluation.data": "none",
    "rounds.answer": "at-once",
    "rounds.buffer": 3,
    "rounds.max_staleness": 2,
    "rounds.epoch": 2,
    "faults.dropout": None,
    "faults.speed_spread": None,
    "faults.seconds_per_example": None,
}


def job_of(agents: int, *, rounds: int, most: int, **change: Any) -> Config:
    return load(
        "buffered",
        values={
            **SETTINGS,
            "population.clients": agents,
            "rounds.count": rounds,
            "rounds.concurrency": agents,
            "privacy.max_participations": most,
            **change,
        },
    )


def lines_of(run: Path) -> dict[int, Any]:
    found, torn = read_private(run / "private.jsonl")
    assert not torn
    return dict(found)


def wait(done: Callable[[], bool], fed: Federation) -> None:
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end, fed.log("coordinator")
        time.sleep(0.02)


def test_a_straggler_counts_until_it_is_too_late(tmp_path: Path) -> None:
    gates = tmp_path / "gates"
    gates.mkdir()

    def go(*names: str) -> None:
        for name in names:
            (gates / f"go-{name}").touch()

    def at(name: str) -> Callable[[], bool]:
        return (gates / f"at-{name}").exists

    with federation(tmp_path, 5) as fed:
        fed.configure(training=300.0)
        fed.restart_coordinator()
        for number in range(5):
            fed.allow_anything(number)
            fed.start_agent(number, 5, gates=gates)
        fed.wait_connected()  # an epoch has no members but those that are there when it begins
        config = job_of(5, rounds=4, most=4)
        job = fed.submit(config)
        for number in range(5):
            wait(at(f"{number}-1"), fed)
        go("0-1", "1-1", "2-1")
        wait(at("2-2"), fed)
        go("0-2", "1-2", "2-2")
        wait(at("2-3"), fed)
        go("3-1", "0-3", "1-3")  # the first is two versions old
        wait(lambda: 3 in fed.commits(job), fed)
        go("4-1")  # three
        wait(at("4-4"), fed)
        (gates / "go").touch()
        row = fed.wait(job)
        assert row.status == "completed", row.reason
        run = fed.home.jobs / job
        lines = lines_of(run)
        assert [lines[number]["survivors"] for number in (1, 2)] == [[0, 1, 2]] * 2
        assert lines[3]["survivors"] == [0, 1, 3]
        assert lines[3]["most_staleness"] == 2
        assert lines[4]["too_stale"] == 1
        assert lines[4]["most_staleness"] <= 1
        assert sum(line["too_stale"] for line in lines.values()) == 1
        audited = audit_run(run)
        assert audited.passed
    simulated = harness.run(config, out=tmp_path / "simulated").folder
    claims = {each.name: each for each in audit_run(simulated).claims}
    deployed = {each.name: each for each in audited.claims}
    assert deployed.keys() - claims.keys() == {"Countersignatures", "Members"}
    assert deployed["Countersignatures"].holds
    assert deployed["Members"].holds
    assert all(deployed[name].holds == each.holds for name, each in claims.items())
    for view in ("outsider", "participant"):  # the server's is of the buffers that came about
        name = f"Epsilon, {view} view"
        assert deployed[name].claimed == claims[name].claimed


@pytest.mark.slow
def test_the_coordinator_is_killed_in_every_stage_of_a_buffer(tmp_path: Path) -> None:
    stages = ("reserved", "upload", "endorse", "answer")
    points = [*((stage, "after") for stage in stages), ("", "before")]
    with federation(tmp_path, 4) as fed:
        for number in range(4):
            fed.allow_anything(number)
            fed.start_agent(number, 4)
        assert fed.coordinator is not None
        fed.coordinator.kill()
        fed.coordinator.join(10)
        rounds = len(points) + 1
        job = fed.submit(job_of(4, rounds=rounds, most=rounds))
        for number, (stage, when) in enumerate(points, start=1):
            fed.start_coordinator(crash=(stage, number, when))
            fed.wait_for_death(fed.coordinator)
        fed.start_coordinator()
        row = fed.wait(job)
        assert row.status == "completed", row.reason
        assert sorted(fed.commits(job)) == [rounds - 1, rounds]
        run = fed.home.jobs / job
        view = read_ledger(run / "ledger.jsonl")
        assert [each.outcome for each in view.rounds] == [None] * 4 + ["commit"] * 2
        assert audit_run(run).passed


@pytest.mark.slow
def test_an_agent_is_killed_at_every_message_and_misses_no_buffer(tmp_path: Path) -> None:
    kinds = ("invitation", "begin", "collect", "DELIVERY", "PROPOSAL", "CERTIFICATE", "outcome")
    points = [(kind, when) for kind in kinds for when in ("before", "after")]
    with federation(tmp_path, 3) as fed:
        none = {"aggregation.dropout": 0.0, "aggregation.corrupt": 0.0}
        job = fed.submit(job_of(3, rounds=len(points), most=2 * len(points), **none))
        for number in range(3):
            fed.allow_anything(number)
        for number in (1, 2):
            fed.start_agent(number, 3)
        for number, (kind, when) in enumerate(points, start=1):
            # an epoch of two buffers has its invitation in the first of them
            fed.start_agent(
                0, 3, crash=(kind, number - (kind == "invitation" and number % 2 == 0), when)
            )
            fed.wait_for_death(fed.agents[0])
        fed.start_agent(0, 3)
        row = fed.wait(job)
        assert row.status == "completed", row.reason
        run = fed.home.jobs / job
        assert sorted(fed.commits(job)) == list(range(1, len(points) + 1))
        assert all(line["survivors"] == [0, 1, 2] for line in lines_of(run).values())
        assert audit_run(run).passed
