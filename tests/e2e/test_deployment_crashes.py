"""``kill -9`` of either side at every stage of a round: the job ends, and its ledger is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedsys.audit import audit_run
from fedsys.config import Config
from fedsys.errors import ConfigError
from fedsys.privacy import read_ledger
from simulations.replay import replay
from tests.e2e.processes import Federation, federation, silos

STAGES = ("upload", "endorse", "answer")
MESSAGES = ("OPENING", "DELIVERY", "PROPOSAL", "CERTIFICATE")


def job_of(*settings: str) -> Config:
    noise = [] if "privacy.mechanism=none" in settings else ["privacy.noise_multiplier=20"]
    return silos(*noise, "evaluation.data=none", *settings)


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "private.jsonl").read_text().splitlines()]


def survivors(fed: Federation, job: str) -> dict[int, list[int]]:
    return {line["round"]: line["survivors"] for line in lines_of(fed.home.jobs / job)}


def test_the_coordinator_is_killed_in_every_stage_of_a_round(tmp_path: Path) -> None:
    points = [("reserved", "after"), *((stage, "after") for stage in STAGES), ("", "before")]
    with federation(tmp_path, 3) as fed:
        for number in range(3):
            fed.start_agent(number, 3)
        assert fed.coordinator is not None
        fed.coordinator.kill()
        fed.coordinator.join(10)
        rounds = len(points) + 1
        job = fed.submit(job_of(f"rounds.count={rounds}"))
        for number, (stage, when) in enumerate(points, start=1):
            fed.start_coordinator(crash=(stage, number, when))
            fed.wait_for_death(fed.coordinator)
        fed.start_coordinator()
        row = fed.wait(job)
        assert row.status == "completed", row.reason
        # the last crash came after its round's commit: nothing of it was lost
        assert sorted(fed.commits(job)) == [rounds - 1, rounds]
        run = fed.home.jobs / job
        view = read_ledger(run / "ledger.jsonl")
        assert [each.round for each in view.rounds] == list(range(1, rounds + 1))
        assert [each.outcome for each in view.rounds] == [None] * 4 + ["commit"] * 2
        assert audit_run(run).passed
        summary = json.loads((run / "summary.json").read_text())
        assert summary["rounds"] == rounds
        # every round counts, the lost ones too: as much as if all had been released
        again = fed.submit(job_of(f"rounds.count={rounds}", "job.name=whole"))
        assert fed.wait(again).status == "completed"
        whole = json.loads((fed.home.jobs / again / "summary.json").read_text())
        lost, kept = (each["privacy"]["epsilon"]["outsider"] for each in (summary, whole))
        assert lost == kept


def test_a_coordinator_killed_while_it_closes_the_job_ends_it_at_its_next_start(
    tmp_path: Path,
) -> None:
    with federation(tmp_path, 3) as fed:
        for number in range(3):
            fed.start_agent(number, 3)
        job = fed.submit(job_of("rounds.count=1"))
        whole = fed.wait(job)
        run = fed.home.jobs / job
        before = json.loads((run / "summary.json").read_text())
        # as if it had died after closing the ledger
        assert fed.coordinator is not None
        fed.coordinator.kill()
        fed.coordinator.join(10)
        (run / "summary.json").unlink()
        bound = {key: value for key, value in before.items() if key != "ledger_head"}
        (run / "summary.pending.json").write_text(json.dumps(bound))
        fed.state.update_job(job, status="running", spent=None)
        fed.start_coordinator()
        again = fed.wait(job)
        assert (again.status, again.spent) == (whole.status, whole.spent)
        after = json.loads((run / "summary.json").read_text())
        forgotten = {"clients_trained", "train_seconds", "clients_per_second", "salt"}
        assert {key: after[key] for key in before.keys() - forgotten} == {
            key: before[key] for key in before.keys() - forgotten
        }
        assert audit_run(run).passed


def test_an_agent_is_killed_at_every_message_and_misses_no_round(tmp_path: Path) -> None:
    points = [(kind, when) for kind in MESSAGES for when in ("before", "after")]
    with federation(tmp_path, 3) as fed:
        job = fed.submit(job_of(f"rounds.count={len(points)}"))
        for number in (1, 2):
            fed.start_agent(number, 3)
        for number, (kind, when) in enumerate(points, start=1):
            fed.start_agent(0, 3, crash=(kind, number, when))
            fed.wait_for_death(fed.agents[0])
        fed.start_agent(0, 3)
        row = fed.wait(job)
        assert row.status == "completed", row.reason
        found = survivors(fed, job)
        assert sorted(fed.commits(job)) == list(range(1, len(points) + 1))
        assert found == {number: [0, 1, 2] for number in range(1, len(points) + 1)}
        assert audit_run(fed.home.jobs / job).passed


def test_what_a_crash_interrupted_is_replayed_to_the_bit(tmp_path: Path) -> None:
    with federation(tmp_path, 3) as fed:
        for number in range(3):
            fed.allow_anything(number)
            fed.start_agent(number, 3, shard=2 - number)
        job = fed.submit(job_of("privacy.mechanism=none", "rounds.count=4"))
        fed.wait(job, until="running")
        assert fed.coordinator is not None
        fed.coordinator.kill()
        fed.coordinator.join(10)
        fed.start_coordinator(crash=("upload", 3, "after"))
        fed.wait_for_death(fed.coordinator)
        fed.start_coordinator()
        row = fed.wait(job)
        assert row.status == "completed", row.reason
        run = fed.home.jobs / job
    found = replay(run, shards=["2/3", "1/3", "0/3"])
    assert found.difference is None
    assert found.deployed
    assert found.committed == found.replayed
    assert found.committed + found.lost == 4
    assert found.lost >= 1
    assert found.model_sha256 == json.loads((run / "summary.json").read_text())["model_sha256"]
    # other devices' data, or devices that were not there, are found out
    other = replay(run)
    assert other.difference is not None
    first = min(fed.commits(job))
    assert other.difference.what == f"round {first}'s aggregate"
    with pytest.raises(ConfigError, match="the run counts 3 clients, --shards names 2"):
        replay(run, shards=["2/3", "1/3"])
    with pytest.raises(ConfigError, match="'3/3' is not I/N"):
        replay(run, shards=["2/3", "1/3", "3/3"])


@pytest.mark.slow
def test_an_agent_that_dies_after_its_upload_costs_nothing(tmp_path: Path) -> None:
    """Its vector is in that round's sum; it is missing from the rounds after."""
    config = job_of(
        "population.clients=5",
        "cohort.expected=5",
        "cohort.cap=5",
        "cohort.min_survivors=3",
        "aggregation.dropout=0.2",
        "privacy.mechanism=none",
        "rounds.count=3",
    )
    with federation(tmp_path, 5) as fed:
        fed.configure(reconnect=1.0)
        fed.restart_coordinator()
        for number in range(5):
            crash = ("DELIVERY", 2, "before") if number == 4 else None
            fed.allow_anything(number)
            fed.start_agent(number, 5, crash=crash)
        fed.wait_connected()
        job = fed.submit(config)
        row = fed.wait(job)
        assert row.status == "completed", row.reason
        everybody = [0, 1, 2, 3, 4]
        assert survivors(fed, job) == {1: everybody, 2: everybody, 3: everybody[:4]}


def test_a_graceful_stop_keeps_the_job(tmp_path: Path) -> None:
    with federation(tmp_path, 3) as fed:
        for number in range(3):
            fed.start_agent(number, 3)
        job = fed.submit(job_of("rounds.count=20"))
        fed.wait(job, until="running")
        fed.restart_coordinator()
        assert fed.wait(job).status == "completed"
        assert audit_run(fed.home.jobs / job).passed
