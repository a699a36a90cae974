"""Questions over a deployed fleet: the same sums as in a simulation, and what owners allow."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

from client.policy import ApprovedTask, Policy, QueryPolicy
from client.task_model import TaskModel
from fedsys.audit import audit_run
from fedsys.config import Config, dump, validate
from fedsys.privacy import read_ledger
from fedsys.secret_files import write_secret
from fedsys.tasks import load
from server.deployed.round import Randomness
from server.flower_host import run_job
from server.home.folder import Home
from server.home.state import JobRow
from simulations import harness
from simulations.randomness import SeededRandomness
from tests.flower.grid import InProcessGrid
from tests.flower.test_contract import SILOS, home, nodes, silo, task_identity
from tests.simulations.test_asking import EVERY_QUERY

__all__ = ["home", "task_identity"]  # fixtures


def asking(**job: Any) -> Config:
    return validate(
        {
            "job": {"kind": "query", **job},
            "task": {"name": "digits"},
            "population": {"partition": "iid", "clients": SILOS},
            "cohort": {"expected": SILOS, "cap": SILOS, "min_survivors": 2},
            "privacy": {"noise_multiplier": 1.5, "delta": 1e-5},
            "aggregation": {"dropout": 0.0, "corrupt": 0.0},
            "query": {"questions": EVERY_QUERY},
        }
    )


def allow(folder: Path, **queries: Any) -> None:
    """Write the owner's policy."""
    from fedsys.tasks.code import code_of

    approved = ApprovedTask(sha256=code_of(load("digits", {})).sha256)
    policy = Policy.fresh("digits", approved, corrupt=0.0)
    policy = dataclasses.replace(
        policy, queries=QueryPolicy(**queries), explain=True, epsilon=math.inf
    )
    write_secret(folder / "policy.toml", policy.dump().encode())


def over_flower(home: Home, tmp_path: Path, config: Config, seed: bytes) -> JobRow:
    source = SeededRandomness(seed)
    job = run_job(
        InProcessGrid(nodes(tmp_path, seed), None),
        home,
        dump(config),
        models=TaskModel,
        poll=0.02,
        randomness=Randomness(seeds=source.sampling),
    )
    return asyncio.run(asyncio.wait_for(job, 280))


def test_a_fleet_gives_the_answers_of_a_simulation_to_the_bit(home: Home, tmp_path: Path) -> None:
    seed = b"equal answers"
    simulated = harness.run(asking(), out=tmp_path / "run", randomness=SeededRandomness(seed))
    expected = read_ledger(simulated.folder / "ledger.jsonl").rounds[0].body
    for number in range(SILOS):
        allow(
            tmp_path / f"a{number}", allow=("query",), columns=("label", "x20", "x21"), min_bins=5
        )
    row = over_flower(home, tmp_path, asking(), seed)
    assert row.status == "completed", row.reason
    run = home.jobs / row.id
    found = read_ledger(run / "ledger.jsonl").rounds[0]
    assert found.reserve["kind"] == "query"
    assert found.body["answer_sha256"] == expected["answer_sha256"]
    assert found.body["aggregate_sha256"] == expected["aggregate_sha256"]
    assert audit_run(run).passed
    answers = json.loads((run / "summary.json").read_text())["query"]["answers"]
    assert sum(each["value"] for each in answers[0]["estimates"]) > 1000


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        ({"allow": ()}, "queries.allow is []"),
        ({"columns": ("label",)}, "reads column 'x20'"),
        ({"min_bins": 11}, "fewer than the owner's queries.min_bins 11"),
    ],
)
def test_a_question_that_an_owner_does_not_allow_is_not_answered(
    home: Home, tmp_path: Path, queries: dict[str, Any], said: str
) -> None:
    for number in range(SILOS):
        allow(tmp_path / f"a{number}", **queries)
    row = over_flower(home, tmp_path, asking(), b"refused")
    assert row.status == "failed"
    assert said in row.reason
    assert read_ledger(home.jobs / row.id / "ledger.jsonl").rounds == ()


def between() -> Config:
    """Two rounds of training, after each of which the silos evaluate."""
    tree = silo(rounds=2).model_dump(exclude_none=True)
    tree["population"]["held_out"] = 0.25
    tree["privacy"] = {"noise_multiplier": 1.5, "clip": 0.5, "delta": 1e-5}
    tree["evaluation"] = {
        "data": "none",
        "on_devices_every": 1,
        "questions": [
            {"ask": "count", "name": "rows", "rows": 500},
            {"ask": "mean", "name": "accuracy", "column": "accuracy", "low": 0, "high": 1},
        ],
    }
    return validate(tree)


def test_a_fleet_evaluates_between_rounds_of_training_as_a_simulation_does(
    home: Home, tmp_path: Path
) -> None:
    seed = b"between rounds"
    simulated = harness.run(between(), out=tmp_path / "run", randomness=SeededRandomness(seed))
    expected = read_ledger(simulated.folder / "ledger.jsonl").rounds
    for number in range(SILOS):
        allow(tmp_path / f"a{number}", allow=("evaluate",), columns=())
    row = over_flower(home, tmp_path, between(), seed)
    assert row.status == "completed", row.reason
    run = home.jobs / row.id
    found = read_ledger(run / "ledger.jsonl").rounds
    assert [each.reserve["kind"] for each in found] == ["train", "evaluate"] * 2
    for name in ("aggregate_sha256", "weights_sha256", "answer_sha256"):
        assert [each.body.get(name) for each in found] == [each.body.get(name) for each in expected]
    assert (run / "answers.jsonl").read_text() == (simulated.folder / "answers.jsonl").read_text()
    assert audit_run(run).passed


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        ({"allow": ("query",)}, "a job of kind 'evaluate', where the owner's queries.allow is"),
        ({"min_bins": 20, "columns": ()}, "fewer than the owner's queries.min_bins 20"),
    ],
)
def test_an_owner_who_answers_no_evaluations_takes_no_part_in_a_job_with_them(
    home: Home, tmp_path: Path, queries: dict[str, Any], said: str
) -> None:
    for number in range(SILOS):
        allow(tmp_path / f"a{number}", **queries)
    tree = between().model_dump(exclude_none=True)
    tree["evaluation"]["questions"].append({"ask": "devices", "name": "by device"})
    row = over_flower(home, tmp_path, validate(tree), b"refused")
    assert row.status == "failed"
    assert said in row.reason
    assert read_ledger(home.jobs / row.id / "ledger.jsonl").rounds == ()


@pytest.mark.slow
def test_a_fleet_evaluates_a_model_that_it_trained_on_rows_that_it_held_out(
    home: Home, tmp_path: Path
) -> None:
    for number in range(SILOS):
        allow(tmp_path / f"a{number}", allow=("evaluate",))
    population = {"partition": "iid", "clients": SILOS, "held_out": 0.25}
    trained = over_flower(
        home,
        tmp_path,
        silo(rounds=2).model_copy(
            update={"population": silo().population.model_copy(update=population)}
        ),
        b"trained",
    )
    assert trained.status == "completed", trained.reason
    asked = [
        {"ask": "count", "name": "rows", "rows": 500},
        {"ask": "mean", "name": "accuracy", "column": "accuracy", "low": 0, "high": 1, "rows": 200},
    ]
    tree = asking().model_dump(exclude_none=True) | {
        "job": {"kind": "evaluate"},
        "population": population,
        "query": {"model": str(home.jobs / trained.id), "questions": asked},
        "privacy": {"mechanism": "none"},
    }
    row = over_flower(home, tmp_path, validate(tree), b"evaluated")
    assert row.status == "completed", row.reason
    run = home.jobs / row.id
    assert audit_run(run).passed
    answers = json.loads((run / "summary.json").read_text())["query"]["answers"]
    assert answers[0]["estimates"][0]["value"] == pytest.approx(1437 * 0.25, rel=0.1)
    weights = read_ledger(home.jobs / trained.id / "ledger.jsonl").rounds[-1].body["weights_sha256"]
    assert read_ledger(run / "ledger.jsonl").header["initial_weights_sha256"] == weights
