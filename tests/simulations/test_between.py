"""Devices evaluate the model between rounds of training, under one plan, ledger and budget."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.training.held_out import kept_for
from fedsys import tasks
from fedsys.audit import audit_run, evidence
from fedsys.audit.asked import asked_claims
from fedsys.audit.evidence import gather
from fedsys.config import Config, validate
from fedsys.errors import ConfigError, DataError, FedsysError
from fedsys.privacy import Signer, plan_of, read_ledger
from fedsys.privacy.ledger.files import open_regular
from fedsys.records import AuditResult
from fedsys.release.publication import publish_run
from fedsys.report import html
from server.checkpoint import sha256_of_aggregate
from simulations import canaries, harness
from simulations.randomness import SeededRandomness
from simulations.recorded_run import RecordedRun
from simulations.replay import replay
from simulations.setting import partition_of
from tests.fedsys.audit import forge
from tests.simulations.test_asking import EVERY_EVALUATION
from tests.simulations.test_replay import edit_private
from tests.verifier.chain import Refused
from tests.verifier.verify import verify

ASKED: list[dict[str, Any]] = [
    {"ask": "count", "name": "rows", "rows": 100},
    {"ask": "mean", "name": "right", "column": "accuracy", "low": 0, "high": 1, "rows": 30},
    {"ask": "devices", "name": "accuracy by device"},
]


def training(protocol: str = "ideal", **settings: Any) -> Config:
    tree: dict[str, Any] = {
        "population": {"partition": "iid", "clients": 60, "held_out": 0.3},
        "cohort": {"expected": 40},
        "rounds": {"count": 3},
        "privacy": {"noise_multiplier": 1.0, "clip": 0.5},
        "local": {"learning_rate": 0.5},
        "aggregation": {"protocol": protocol},
        "engine": {"path": "loop", "chunk": 64, "processes": 1},
        "evaluation": {"on_devices_every": 2, "questions": ASKED},
    }
    for key, value in settings.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    if tree["privacy"].get("mechanism") == "none" or "epsilon" in tree["privacy"]:
        del tree["privacy"]["noise_multiplier"]
    return validate(tree)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]


def failed(folder: Path) -> set[str]:
    """Of the claims about rounds that ask; the other claims take seconds."""
    found = gather(folder)
    view = found.ledger.value
    assert view is not None
    claims = asked_claims(found, view, plan_of(view.header))
    return {each.name for each in claims if each.holds is False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(tmp_path_factory.mktemp("home")))
        out = tmp_path_factory.mktemp("runs") / "train"
        return harness.run(training(), out=out).folder


@pytest.fixture(scope="module")
def audited(trained: Path) -> AuditResult:
    return audit_run(trained)


def test_one_ledger_pays_for_training_and_evaluations(trained: Path, audited: AuditResult) -> None:
    view = read_ledger(trained / "ledger.jsonl")
    kinds = [each.reserve["kind"] for each in view.rounds]
    assert kinds == ["train", "train", "evaluate", "train", "evaluate"]
    audit = audited
    held = {each.name: each.holds for each in audit.claims}
    assert audit.passed
    assert held["Kind of rounds"] is held["Evaluations on devices"] is True
    assert verify(trained).plan.rounds == 5
    models = [each.body["weights_sha256"] for each in view.rounds]
    assert models[1] == models[2] != models[3] == models[4]
    summary = json.loads((trained / "summary.json").read_text())
    spent = {point.round: point.spent for point in audit.curve}
    for each in ("outsider", "participant", "server"):
        assert summary["privacy"]["epsilon"][each] == pytest.approx(getattr(spent[5], each))
        assert getattr(spent[3], each) > getattr(spent[2], each)
    measured = (trained / "metrics.jsonl").read_text().splitlines()
    tested = [json.loads(line)["round"] for line in measured]
    assert tested == [1, 2, 4]
    assert [(each["round"], each["trained"]) for each in lines(trained)] == [(3, 2), (5, 3)]


def test_the_page_shows_them_next_to_the_test_data(trained: Path, audited: AuditResult) -> None:
    page = html.render(trained, audited, private=True)
    assert "rows that they never trained on" in page
    assert "accuracy by device" in page
    config = (trained / "config.toml").read_text()
    assert 'column = "accuracy"' in config
    assert "devices&#39; own rows" in page or "devices' own rows" in page


def test_what_is_published_can_be_checked(trained: Path, tmp_path: Path) -> None:
    published = publish_run(trained, tmp_path / "published").path
    assert (published / "answers.jsonl").exists()
    assert not failed(published)


def test_answers_are_those_of_the_model_on_held_out_rows(tmp_path: Path) -> None:
    """Without noise, and with everybody asked, counted by hand from the released model."""
    config = training(privacy__mechanism="none", cohort__expected=60, evaluation__data="none")
    run = harness.run(config, out=tmp_path / "run").folder
    last = {each["name"]: each for each in lines(run)[-1]["answers"]}
    task = tasks.load("digits", {})
    examples = tasks.read_data(task, tasks.DataSource.locate(None))
    model = task.init_model(0)
    model.load_state_dict(torch.load(run / "model.pt", weights_only=True))
    model.eval()
    right, rows, means = 0.0, 0, []
    partition = partition_of(config, examples, "evaluate")
    for client in range(60):
        some = examples.train.take(torch.from_numpy(partition.indices_of(client)))
        found = task.metrics(model(some.x), some.y)["accuracy"].float().numpy()
        right, rows = right + found.sum(), rows + len(found)
        means.append(found.mean())
    # Devices round to the grid at random.
    assert last["rows"]["estimates"][0]["value"] == pytest.approx(rows, abs=2.5)
    assert last["right"]["estimates"][0]["value"] == pytest.approx(right / rows, abs=1e-3)
    place = np.clip(np.floor(np.array(means) * 10 + 1e-9), 0, 9).astype(int)
    counted = np.bincount(place, minlength=10)
    stated = [each["value"] for each in last["accuracy by device"]["estimates"][:10]]
    assert stated == pytest.approx(counted, abs=0.05)
    assert kept_for("train", np.arange(99), 0.3).size + 99 * 0.3 > 60


@pytest.mark.slow
def test_secure_and_ideal_give_the_same_answers_to_the_bit(tmp_path: Path) -> None:
    found = []
    for protocol in ("secure", "ideal"):
        config = training(
            protocol,
            rounds__count=1,
            privacy__noise_multiplier=3.0,
            evaluation__data="none",
            evaluation__questions=EVERY_EVALUATION,
        )
        run = harness.run(
            config, out=tmp_path / protocol, randomness=SeededRandomness(b"between")
        ).folder
        found.append(
            [each.body["answer_sha256"] for each in read_ledger(run / "ledger.jsonl").rounds[1:]]
        )
    assert found[0] == found[1]
    assert len(found[0]) == 1


def test_a_run_with_evaluations_is_replayed_to_the_bit(tmp_path: Path) -> None:
    config = training(privacy__mechanism="none", evaluation__data="none", rounds__count=2)
    run = harness.run(config, out=tmp_path / "run").folder
    found = replay(run)
    assert found.difference is None
    assert (found.committed, found.replayed) == (3, 3)
    survivors = RecordedRun.read(run).survivors
    assert found.trained == len(survivors[1]) + len(survivors[2])
    assert found.answered == len(survivors[3])
    summary = json.loads((run / "summary.json").read_text())
    assert found.model_sha256 == summary["model_sha256"]
    assert found.trained == summary["clients_trained"]
    edit_private(run, 3, lambda line: line["survivors"].pop())
    other = replay(run).difference
    assert other is not None
    assert other.what == "round 3's aggregate"


def test_what_was_hashed_is_what_is_derived(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of answers is read once, so that nobody can exchange it in between."""
    opened: list[str] = []

    def opens(path: Path, *limits: int) -> Any:
        opened.append(path.name)
        return open_regular(path, *limits)

    monkeypatch.setattr(evidence, "open_regular", opens)
    assert not failed(trained)
    assert opened.count("answers.jsonl") == 1


@pytest.mark.parametrize("spoil", ["value", "released", "missing", "twice", "round", "trained"])
def test_an_edited_evaluation_is_noticed(trained: Path, tmp_path: Path, spoil: str) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    stated = lines(run)
    if spoil == "value":
        stated[0]["answers"][1]["estimates"][0]["value"] += 0.1
    elif spoil == "released":
        stated[1]["released"][0] *= 1.001
    elif spoil == "missing":
        del stated[0]
    elif spoil == "twice":
        stated.append(stated[0])
    elif spoil == "round":
        stated[0]["round"] = 2
    else:
        stated[0]["trained"] = 1
    (run / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in stated))
    assert failed(run) >= {"Evaluations on devices"}
    if spoil in ("released", "missing", "twice", "round", "trained"):
        with pytest.raises(Refused):
            verify(run)


@pytest.mark.parametrize(
    ("round", "key", "value", "claim"),
    [
        (3, "kind", "train", "Kind of rounds"),
        (2, "kind", "evaluate", "Kind of rounds"),
        (3, "weights_sha256", "0" * 64, "Evaluations on devices"),
    ],
)
def test_a_coordinator_that_signs_other_turns_is_noticed(
    trained: Path, tmp_path: Path, round: int, key: str, value: str, claim: str
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    spoiled = [
        (kind, {**body, key: value} if body.get("round") == round and key in body else body)
        for kind, body in forge.entries(run)
    ]
    forge.sign_again(run, spoiled, Signer.load_or_create())
    assert claim in failed(run)


def test_a_job_that_was_interrupted_goes_on_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between an answer and its commit, it drops that answer and pays for the next."""
    calls: list[int] = []

    def dies(total: Any) -> str:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return sha256_of_aggregate(total)

    with monkeypatch.context() as patch:
        patch.setattr("server.coordinator.sha256_of_aggregate", dies)
        with pytest.raises(RuntimeError, match="killed"):
            harness.run(training(), out=tmp_path / "run")
    assert [each["round"] for each in lines(tmp_path / "run")] == [3]
    harness.resume(tmp_path / "run")
    view = read_ledger(tmp_path / "run" / "ledger.jsonl")
    assert [each.outcome for each in view.rounds] == ["commit", "commit", None, "commit", "commit"]
    assert [each["round"] for each in lines(tmp_path / "run")] == [5]
    assert not failed(tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"evaluation__questions": []}, "asks nothing"),
        ({"evaluation__on_devices_every": 0}, "without evaluation.on_devices_every"),
        ({"population__held_out": 0.0}, "population.held_out = 0.2"),
        ({"cohort__weighting": "examples", "cohort__weight_cap": 5}, "cohort.weighting"),
        ({"aggregation__encoding": "narrow"}, "aggregation.encoding"),
        ({"cohort__participation": 0.5}, "cohort.participation"),
        ({"privacy__adaptive_quantile": 0.5}, "adaptive_quantile"),
        ({"job__kind": "query", "rounds__count": 1, "privacy__clip": 1.0}, "for training jobs"),
        ({"evaluation__questions": [{"ask": "labels", "name": "l", "classes": 700}]}, "only 650"),
        ({"evaluation__questions": [{"ask": "devices", "name": "d", "column": "wage"}]},
         "column 'wage'"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_between_rounds_is_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        harness.run(training(**settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_canaries_answer_no_questions(tmp_path: Path) -> None:
    with pytest.raises(FedsysError, match="canaries answer no questions"):
        canaries.run(training(), canaries=4, out=tmp_path / "run")
