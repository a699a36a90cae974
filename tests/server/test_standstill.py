"""Jobs that end before their last round, because their metric no longer improves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsys.audit import audit_run
from fedsys.audit.population import linked
from fedsys.config import Config, load
from fedsys.errors import ConfigError, LedgerClosed
from fedsys.privacy import Signer, guaranteed_epsilon, plan_of, read_ledger
from server.standstill import check_metric, standstill
from simulations import harness
from tests.fedsys.audit.forge import close_again, edit_json

SMALL = [
    "rounds.count=9", "cohort.expected=40", "aggregation.protocol=ideal", "aggregation.corrupt=0",
    "engine.path=batched", "engine.chunk=64", "engine.processes=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))


def stopping(*settings: str) -> Config:
    return load("quickstart", [*SMALL, "evaluation.stop.metric=accuracy", *settings])


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose accuracy is best in its second round."""
    values = iter([0.5, 0.7, 0.6, 0.7, 0.9, 0.9, 0.9])
    from client.training import Trainer

    plain = Trainer.evaluate

    def evaluate(self: Trainer, weights: object, examples: object, whole: object = ()) -> object:
        found = plain(self, weights, examples, whole)  # type: ignore[arg-type]
        return found if len(examples) == 1 else found | {"accuracy": next(values)}  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    said: list[object] = []
    config = stopping("evaluation.stop.patience=2")
    folder = harness.run(config, out=tmp_path / "run", observer=said.append).folder
    assert said[-1] == (
        "stopped early: accuracy has not improved for 2 evaluations; best in round 2 (0.7)"
    )
    return folder


def test_a_run_ends_when_its_metric_stands_still_and_its_audit_says_what_covers_that(
    ended: Path,
) -> None:
    summary = json.loads((ended / "summary.json").read_text())
    view = read_ledger(ended / "ledger.jsonl")
    plan = plan_of(view.header)
    assert (summary["status"], summary["rounds"], len(view.rounds)) == ("stopped-early", 4, 4)
    assert view.closed is not None
    assert view.closed["reason"] == "stopped-early"
    planned = guaranteed_epsilon(plan)
    assert summary["stopped"] == {
        "metric": "accuracy", "best_round": 2, "best": 0.7, "planned_rounds": 9,
        "planned_epsilon": planned,
    }  # fmt: skip
    assert summary["privacy"]["epsilon"]["outsider"] < planned
    audit = audit_run(ended)
    assert audit.passed
    (claim,) = [claim for claim in audit.claims if claim.name == "Stopped early"]
    assert claim.holds
    assert "all 9 planned rounds" in str(claim.rederived)
    assert any(note.startswith("stopped early") for note in audit.notes)
    with pytest.raises(LedgerClosed):
        harness.resume(ended)


@pytest.mark.slow
def test_runs_after_it_count_all_planned_rounds(ended: Path) -> None:
    (ended.parent / "population.toml").write_text("epsilon = 100.0\ndelta = 1e-5\n")
    plan = plan_of(read_ledger(ended / "ledger.jsonl").header)
    before = linked(ended.parent, plan)
    assert before is not None
    assert before["epsilon"] == pytest.approx(guaranteed_epsilon(plan), rel=1e-3)


@pytest.mark.slow
def test_another_story_fails_the_audit(ended: Path, tmp_path: Path) -> None:
    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda body: body["stopped"].update(best_round=1),
        lambda body: body["stopped"].update(planned_epsilon=0.1),
        lambda body: body.pop("stopped"),
    ]
    for at, change in enumerate(changes):
        copy = Path(shutil.copytree(ended, tmp_path / str(at)))
        edit_json(copy, change)
        close_again(copy, Signer.load_or_create())
        failed = {claim.name for claim in audit_run(copy).claims if claim.holds is False}
        assert "Stopped early" in failed


def test_a_run_that_still_improves_goes_on() -> None:
    lines = [{"round": at, "accuracy": at / 10} for at in range(1, 9)]
    config = stopping("evaluation.stop.patience=1")
    assert standstill(config, lines) is None
    for nothing in (float("nan"), float("inf"), 10**400, True, "0.9"):
        assert standstill(config, [*lines, {"round": 9, "accuracy": nothing}]) is not None
    assert standstill(load("quickstart", SMALL), [*lines, lines[0]]) is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["evaluation.data=none"], "clients' figures would cost epsilon"),
        (["evaluation.stop.metric=delay"], "evaluation.stop.better = 'less' or 'more'"),
        (["evaluation.stop.patience=0"], "evaluation.stop.patience"),
    ],
)
def test_a_metric_that_is_not_the_coordinators_or_has_no_direction(
    settings: list[str], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        stopping(*settings)


def test_a_metric_that_no_evaluation_has_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="evaluations of this job have loss, accuracy"):
        harness.run(stopping("evaluation.stop.metric=auc"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="the coordinator has no test data"):
        check_metric(stopping(), None)
