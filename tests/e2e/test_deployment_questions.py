"""Rounds that ask, over real sockets between real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedsys import report
from fedsys.audit import audit_run
from fedsys.config import Config, validate
from fedsys.privacy import read_ledger
from simulations import harness
from simulations.randomness import SeededRandomness
from simulations.replay import replay
from tests.e2e.processes import Federation, federation, silos
from tests.simulations.test_asking import EVERY_EVALUATION, EVERY_QUERY
from tests.verifier.verify import verify

pytestmark = pytest.mark.slow  # processes that import torch

SEED = b"equal answers"


def asking() -> Config:
    return validate(
        {
            "job": {"kind": "query"},
            "task": {"name": "digits"},
            "population": {"partition": "iid", "clients": 3},
            "cohort": {"expected": 3, "cap": 3, "min_survivors": 2},
            "privacy": {"noise_multiplier": 1.5, "delta": 1e-5},
            "aggregation": {"dropout": 0.0, "corrupt": 0.0},
            "query": {"questions": EVERY_QUERY},
        }
    )


def watched(**privacy: Any) -> Config:
    """Three rounds of training, an evaluation after the second and one after the last."""
    tree = silos().model_dump(exclude_none=True)
    tree["population"]["held_out"] = 0.3
    tree["privacy"] = {"clip": 0.5, "delta": 1e-5, **privacy}
    tree["evaluation"] = {"on_devices_every": 2, "questions": EVERY_EVALUATION}
    return validate(tree)


def digests(run: Path) -> list[tuple[object, ...]]:
    """What each round released."""
    names = "aggregate_sha256", "weights_sha256", "answer_sha256"
    return [tuple(each.body.get(n) for n in names) for each in read_ledger(run).rounds]


def run_with(fed: Federation, config: Config) -> Path:
    for number in range(3):
        fed.allow_anything(number)
        fed.start_agent(number, 3)
    job = fed.submit(config)
    row = fed.wait(job)
    assert row.status == "completed", row.reason
    return fed.home.jobs / job


def test_every_question_has_the_simulations_answer_to_the_bit(tmp_path: Path) -> None:
    simulated = harness.run(asking(), out=tmp_path / "run", randomness=SeededRandomness(SEED))
    with federation(tmp_path / "fed", 3, seed=SEED) as fed:
        run = run_with(fed, asking())
    assert digests(run / "ledger.jsonl") == digests(simulated.folder / "ledger.jsonl")
    assert audit_run(run).passed
    stated = json.loads((run / "summary.json").read_text())["query"]["answers"]
    assert [each["name"] for each in stated] == [each["name"] for each in EVERY_QUERY]


def test_devices_evaluate_between_rounds_as_in_a_simulation(tmp_path: Path) -> None:
    """The same model and the same answers to the bit; the audit holds, and the page shows them."""
    config = watched(noise_multiplier=1.5)
    simulated = harness.run(config, out=tmp_path / "run", randomness=SeededRandomness(SEED))
    with federation(tmp_path / "fed", 3, seed=SEED) as fed:
        run = run_with(fed, config)
    kinds = [each.reserve["kind"] for each in read_ledger(run / "ledger.jsonl").rounds]
    assert kinds == ["train", "train", "evaluate", "train", "evaluate"]
    assert digests(run / "ledger.jsonl") == digests(simulated.folder / "ledger.jsonl")
    found = audit_run(run)
    assert found.passed, [each.name for each in found.claims if each.holds is False]
    assert verify(run).plan.rounds == 5
    assert json.loads((run / "summary.json").read_text())["clients_trained"] == 9
    page = report.build(run, found, private=True).read_text()
    for question in EVERY_EVALUATION:
        assert question["name"] in page


def test_evaluations_on_devices_are_replayed_to_the_bit(tmp_path: Path) -> None:
    with federation(tmp_path, 3) as fed:
        run = run_with(fed, watched(mechanism="none"))
    found = replay(run)
    assert found.difference is None
    assert (found.committed, found.replayed) == (5, 5)
    assert (found.trained, found.answered) == (9, 6)
    assert found.model_sha256 == json.loads((run / "summary.json").read_text())["model_sha256"]
    other = replay(run, shards=["1/3", "0/3", "2/3"])
    assert other.difference is not None
