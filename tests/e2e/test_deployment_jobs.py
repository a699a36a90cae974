"""Jobs over real sockets between real processes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedsys.audit import audit_run
from fedsys.config import load
from fedsys.privacy import guaranteed_epsilon, plan_of, read_ledger
from fedsys.run_folder import RunFolder
from secure_agg.committee import SUITE_NAMES
from simulations import harness
from simulations.randomness import SeededRandomness
from tests.e2e.processes import federation, silos

SILOS = Path(__file__).with_name("silos.toml")


def test_the_silo_job_passes_fresh_policies_and_its_audit(tmp_path: Path) -> None:
    with federation(tmp_path, 3) as fed:
        for number in range(3):
            fed.start_agent(number, 3)
        job = fed.submit(load("silo"))
        row = fed.wait(job)
        assert row.status == "completed", row.reason
        run = fed.home.jobs / job
        assert audit_run(run).passed
        summary = json.loads((run / "summary.json").read_text())
        assert summary["status"] == "completed"
        assert summary["rounds"] == 5
        assert summary["privacy"]["unit"] == "example"
        assert summary["metrics"]["accuracy"] > 0.85
        assert row.spent == pytest.approx(summary["privacy"]["epsilon"]["outsider"], rel=1e-6)
        assert row.spent is not None
        assert row.spent <= 8.0 + 1e-6
        assert sorted(fed.commits(job)) == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_job_ends_early_by_its_coordinator_s_own_metric(tmp_path: Path) -> None:
    """Only rounds that train are evaluated; those that ask devices neither count nor are owed."""
    asked = {"ask": "mean", "name": "right", "column": "accuracy", "low": 0, "high": 1, "rows": 99}
    settings = (
        "rounds.count=6",
        "server.learning_rate=1e-60",  # the model stays as it is
        "population.held_out=0.2",
        "evaluation.on_devices_every=2",
        "evaluation.stop.metric=accuracy",
        "evaluation.stop.patience=2",
    )
    with federation(tmp_path, 3) as fed:
        for number in range(3):
            fed.allow_anything(number)
            fed.start_agent(number, 3)
        config = load(SILOS, settings, {"evaluation.questions": [asked]})
        job = fed.submit(config)
        row = fed.wait(job)
        assert (row.status, row.round) == ("stopped-early", 4), row.reason
        assert row.reason.startswith("stopped early: accuracy has not improved for 2 evaluations")
        later = fed.submit(silos("privacy.epsilon=9", "rounds.count=1"))
        assert fed.wait(later).status == "completed", "the devices are free, and work on"
        run = fed.home.jobs / job
        audit = audit_run(run)
        assert audit.passed, [each for each in audit.claims if each.holds is False]
        summary = json.loads((run / "summary.json").read_text())
        plan = plan_of(read_ledger(run / "ledger.jsonl").header)
        assert summary["stopped"]["planned_rounds"] == plan.rounds == 9
        assert summary["stopped"]["planned_epsilon"] == guaranteed_epsilon(plan)
        assert [line["round"] for line in RunFolder(run).evaluations()] == [1, 2, 4]
        assert len((run / "answers.jsonl").read_text().splitlines()) == 1
        assert len((run / "model.pt").read_bytes()) > 2000


def digests(commit: Mapping[str, Any]) -> tuple[str, str]:
    """Of a round's aggregate, and of the model that it led to."""
    return commit["aggregate_sha256"], commit["weights_sha256"]


@pytest.mark.parametrize(
    "suite", ["x25519", pytest.param("x25519-mlkem768", marks=pytest.mark.slow)]
)
def test_in_process_and_over_grpc_every_round_gives_the_same_aggregate(
    tmp_path: Path, suite: str
) -> None:
    seed = b"equal hosts"
    config = silos("rounds.count=3", "privacy.epsilon=9", f"aggregation.suite={suite}")
    simulated = harness.run(config, out=tmp_path / "run", randomness=SeededRandomness(seed))
    view = read_ledger(simulated.folder / "ledger.jsonl")
    expected = {each.round: digests(each.body) for each in view.rounds}
    with federation(tmp_path / "fed", 3, seed=seed) as fed:
        for number in range(3):
            fed.start_agent(number, 3)
        job = fed.submit(config)
        assert fed.wait(job).status == "completed"
        deployed = {round: digests(body) for round, body in fed.commits(job).items()}
        prekeys = fed.home.registry(fed.state).prekeys
        kept = prekeys.counts((1, 2, 3), suite=SUITE_NAMES["x25519-mlkem768"])
        assert all(kept.values()) is (suite == "x25519-mlkem768"), "devices have sent such keys"
    assert len(expected) == 3
    assert deployed == expected


def test_without_noise_the_model_is_the_simulators_to_the_bit(tmp_path: Path) -> None:
    config = silos("privacy.mechanism=none", "privacy.clip=1", "cohort.min_survivors=2")
    simulated = harness.run(config, out=tmp_path / "run")
    with federation(tmp_path / "fed", 3) as fed:
        for number in range(3):
            fed.start_agent(number, 3)
        job = fed.submit(config)
        refused = fed.wait(job)
        assert refused.status == "failed"
        assert "it would spend more than the owner allows" in refused.reason
        for number in range(3):
            policy = fed.root / f"a{number}" / "policy.toml"
            while not policy.exists():  # its device may be the last to start
                time.sleep(0.05)
            policy.write_text(policy.read_text().replace("epsilon = 10.0", "epsilon = inf"))
        job = fed.submit(config)
        assert fed.wait(job).status == "completed"
        model = (fed.home.jobs / job / "model.pt").read_bytes()
    assert model == (simulated.folder / "model.pt").read_bytes()


@pytest.mark.slow
def test_a_job_over_the_owners_budget_is_refused_with_its_reason(tmp_path: Path) -> None:
    with federation(tmp_path, 3) as fed:
        for number in range(3):
            fed.start_agent(number, 3)
        first = fed.submit(silos("privacy.epsilon=6"))
        assert fed.wait(first).status == "completed"
        second = fed.submit(silos("privacy.epsilon=8"))  # together 10.7
        row = fed.wait(second)
        assert row.status == "failed"
        assert "it would spend more than the owner allows" in row.reason
        assert "10" not in row.reason.partition("Refused:")[2], "the owner's limit is their own"
        assert not fed.commits(second)
        assert [line["kind"] for line in fed.ledger(second)] == ["header", "closed"]
        third = fed.submit(silos("privacy.epsilon=3"))  # together 7.0
        assert fed.wait(third).status == "completed"


@pytest.mark.slow
def test_two_jobs_at_once_survive_a_kill_and_a_third_waits_for_both(tmp_path: Path) -> None:
    """Real processes: the coordinator is killed while both are in a round."""
    gates = tmp_path / "gates"
    gates.mkdir()

    def for_devices(*numbers: int) -> str:
        names = " ".join(f"silo-{number}" for number in numbers)
        return fed.submit(silos(f"population.devices={names}", "rounds.count=3"))

    with federation(tmp_path / "fed", 6) as fed:
        for number in range(6):
            fed.allow_anything(number)
            fed.start_agent(number, 6, gates=gates)
        first, second = for_devices(0, 1, 2), for_devices(3, 4, 5)
        third = for_devices(1, 2, 3)

        def training(round: int) -> None:
            expected = [gates / f"at-{number}-{round}" for number in range(6)]
            end = time.monotonic() + 240
            while not all(path.exists() for path in expected):
                assert time.monotonic() < end, fed.log("coordinator")
                time.sleep(0.05)

        training(1)  # all six at once: neither of the two jobs waits for the other
        row = fed.state.job(third)
        assert row.stage == f"queued: its devices serve jobs {first}, {second} first"
        assert fed.coordinator is not None
        fed.coordinator.kill()
        fed.coordinator.join(30)
        fed.start_coordinator()
        (gates / "go").touch()
        for job in (first, second, third):
            row = fed.wait(job, seconds=240)
            assert row.status == "completed", row.reason
            assert audit_run(fed.home.jobs / job).passed
        begun = [fed.state.job(job).started_at or 0.0 for job in (first, second, third)]
        ended = [fed.state.job(job).ended_at or 0.0 for job in (first, second)]
        assert begun[2] >= max(ended)


@pytest.mark.slow
def test_a_job_over_the_populations_budget_never_starts(tmp_path: Path) -> None:
    with federation(tmp_path, 3, epsilon=8.0) as fed:
        for number in range(3):
            fed.start_agent(number, 3)
        first = fed.submit(silos("privacy.epsilon=6"))
        assert fed.wait(first).status == "completed"
        row = fed.wait(fed.submit(silos("privacy.epsilon=5")))  # together 8.3
        assert row.status == "failed"
        assert "population's budget is epsilon 8" in row.reason
        assert not (fed.home.jobs / row.id).exists()
        none = fed.wait(fed.submit(silos("privacy.mechanism=none")))
        assert "no limit" in none.reason


def test_a_task_that_is_not_on_the_list_is_refused(tmp_path: Path) -> None:
    with federation(tmp_path, 3) as fed:
        for number in range(3):
            fed.start_agent(number, 3)
        row = fed.wait(fed.submit(silos("task.name=synthetic")))
        assert row.status == "failed"
        assert "its task, options or code are not what this device was given" in row.reason


def test_a_job_without_enough_agents_is_paused(tmp_path: Path) -> None:
    with federation(tmp_path, 3) as fed:
        fed.configure(patience=1.0)
        fed.restart_coordinator()
        fed.start_agent(0, 3)
        row = fed.wait(fed.submit(silos()))
        assert row.status == "paused"
        assert "1 of 3 connected (silo-1, silo-2 away), needs 3" in row.reason
        fed.state.cancel_job(row.id)
        assert fed.wait(row.id).status == "cancelled"
        assert RunFolder(fed.home.jobs / row.id).summary.exists()


def test_agents_countersign_every_round_the_last_one_too(tmp_path: Path) -> None:
    from server.home.state import CountersignatureRow

    with federation(tmp_path, 3) as fed:
        for number in range(3):
            fed.start_agent(number, 3)
        job = fed.submit(silos("rounds.count=2"))
        assert fed.wait(job).status == "completed"
        heads = {
            line["body"]["round"]: line["hash"]
            for line in fed.ledger(job)
            if line["kind"] == "commit"
        }
        found: dict[tuple[int, int], tuple[str, int]] = {}
        end = time.monotonic() + 120
        while len(found) < 6 and time.monotonic() < end:
            time.sleep(0.05)
            with fed.state.transaction() as session:
                rows = session.query(CountersignatureRow).all()
                stated = {(row.round, row.node): json.loads(row.line) for row in rows}
                found = {
                    which: (line["ledger_head"], line["uploads"]) for which, line in stated.items()
                }
        assert found == {
            (round, node): (heads[round], round) for round in (1, 2) for node in (1, 2, 3)
        }
        run = fed.home.jobs / job
        while len((run / "countersignatures.jsonl").read_bytes().splitlines()) < 6:
            assert time.monotonic() < end
            time.sleep(0.05)
        result = audit_run(run, authority=fed.home.roster_key.hex())
        assert result.passed
        said = next(claim for claim in result.claims if claim.name == "Countersignatures")
        assert "3 agents on 2 of 2 concluded rounds" in said.rederived
