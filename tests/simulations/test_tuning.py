"""A search: trials that are runs, a total that is their composition, and no run paid twice."""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsys.audit import audit_run, compose, to_json
from fedsys.cli import extras
from fedsys.cli.app import app
from fedsys.config import load
from fedsys.errors import ConfigError
from fedsys.privacy import Signer, read_ledger
from fedsys.release.model import ReleasedModel
from fedsys.report import build, figures
from fedsys.report.terminal import print_run
from fedsys.tasks.classification import Classification
from simulations import harness
from simulations.search import Search
from simulations.tuning import tune
from tests.fedsys.audit.conftest import failed
from tests.fedsys.audit.forge import close_again, edit_json, entries, replace_text, sign_again

SMALL = ["rounds.count=2", "cohort.expected=30", "aggregation.protocol=ideal"]
FAST = [*SMALL, "engine.path=batched", "engine.chunk=64", "engine.processes=1"]
OVER = ["local.learning_rate=log:0.01..1", "server.momentum=0..0.9"]


def search_of(*settings: str, metric: str = "accuracy") -> Search:
    return Search.of(load("quickstart", [*FAST, *settings]), OVER, metric)


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def test_trials_are_runs_whose_cost_the_final_run_states(tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    tuned = tune(search_of(), folder, trials=2)
    assert [trial.number for trial in tuned.trials] == [1, 2]
    values = [summary(trial.folder)["metrics"]["accuracy"] for trial in tuned.trials]
    assert [trial.value for trial in tuned.trials] == values
    assert tuned.best is not None
    assert tuned.best.value == max(values)

    assert tuned.total is not None
    folders = [trial.folder for trial in tuned.trials]
    spent = tuned.total.curve[-1].spent.outsider
    each = [summary(run)["privacy"]["epsilon"]["outsider"] for run in folders]
    assert max(each) < spent < sum(each)
    assert json.loads((folder / "total.json").read_text())["epsilon"]["outsider"] == spent

    best = load(folder / "best.toml")
    assert best.local.learning_rate == tuned.best.settings["local.learning_rate"]
    assert best.job.name == "quickstart"
    assert best.tuning.runs == 2
    assert best.tuning.heads == [summary(run)["ledger_head"] for run in folders]

    final = harness.run(best, out=tmp_path / "final").folder
    stated = read_ledger(final / "ledger.jsonl").header["tuning"]
    assert best.tuning.part is not None
    part = best.tuning.part.model_dump()
    assert [row[3] for row in part["steps"]] == [4.0], "two trials of two rounds"
    assert stated == {
        "runs": 2, "epsilon": spent, "delta": 1e-5, "heads": best.tuning.heads, "part": part
    }  # fmt: skip
    everything = compose([*folders, final])
    assert everything.passed
    totals = [point.spent.outsider for point in everything.curve]
    assert totals[1] == spent < totals[2]
    check_one_total(final, totals[2], runs=2)


def check_one_total(run: Path, expected: float, *, runs: int) -> None:
    """Everything that states what the model cost states the same."""
    stated = summary(run)["privacy"]["total"]
    assert stated["runs"] == runs
    assert stated["epsilon"] == pytest.approx(expected, rel=1e-6)
    audit = audit_run(run)
    assert audit.passed
    assert audit.total is not None
    assert audit.total.to_json() == pytest.approx(stated)
    assert json.loads(to_json(audit))["total"] == pytest.approx(stated)
    claim = next(claim for claim in audit.claims if claim.name.startswith("Tuning runs"))
    assert claim.holds is True
    assert f"epsilon {expected:.5g}" in claim.rederived
    facts = ReleasedModel.of(run).facts
    assert float(facts["fedsys.epsilon"]) == pytest.approx(expected, rel=1e-6)
    assert facts["fedsys.tuning_runs"] == str(runs)
    assert float(facts["fedsys.epsilon_of_this_run"]) < expected
    build(run, audit, private=True)
    page = (run / "report.html").read_text()
    assert page.count("tuning runs that the ledger&#39;s header states") >= 1
    assert f"<strong>{figures.epsilon(expected)}</strong>" in page
    out = io.StringIO()
    print_run(run, audit, file=out)
    assert f"epsilon with tuning  {figures.epsilon(expected)}" in out.getvalue()


@pytest.fixture(scope="module")
def tuned_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a trial before it; never to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("tuned")
        patch.setenv("FEDSYS_HOME", str(folder / "home"))
        tune(search_of(), folder / "search", trials=1)
        return harness.run(load(folder / "search" / "best.toml"), out=folder / "final").folder


def test_the_header_fits_the_ledgers_schema(tuned_run: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    source = importlib.resources.files("fedsys.privacy").joinpath("ledger.schema.json")
    validator = jsonschema.Draft202012Validator(json.loads(source.read_text(encoding="utf-8")))
    line = json.loads((tuned_run / "ledger.jsonl").read_bytes().splitlines()[0])
    validator.validate(line)
    assert line["body"]["tuning"]["part"]["steps"]
    line["body"]["preprocessing"] = "harmless"
    assert not validator.is_valid(line)


def _understate(body: dict[str, Any]) -> None:
    body["privacy"]["total"]["epsilon"] *= 0.5


@pytest.mark.parametrize(
    ("header", "config", "change"),
    [
        ({"runs": 0}, None, None),
        ({"epsilon": 0.1}, None, None),
        ({"part": None}, None, None),
        (None, ("runs = 1", "runs = 50"), None),
        (None, ("runs = 1", "runs = 0"), None),
        (None, None, _understate),
        (None, None, lambda body: body["privacy"].pop("total")),
        (None, None, lambda body: body["privacy"].update(total=None)),
    ],
)
def test_whatever_states_other_tuning_runs_fails_the_audit(
    tuned_run: Path, tmp_path: Path, header: Any, config: Any, change: Any
) -> None:
    """One statement is changed, and the ledger signed again where it has to be."""
    run = Path(shutil.copytree(tuned_run, tmp_path / "run"))
    lines = entries(run)
    if header is not None:
        stated = {**lines[0][1]["tuning"], **header}
        lines[0][1]["tuning"] = {key: value for key, value in stated.items() if value is not None}
    if config is not None:
        replace_text(run / "config.toml", *config)
        content = (run / "config.toml").read_bytes()
        lines[0][1]["config_sha256"] = hashlib.sha256(content).hexdigest()
    signer = Signer.generate()
    sign_again(run, lines, signer)
    edit_json(run, lambda body: body.update(signer=signer.public_hex))
    if change is not None:
        edit_json(run, change)
    close_again(run, signer)
    assert failed(run) == {"Tuning runs and the total with them"}


@pytest.mark.parametrize(("key", "factor"), [("epsilon", 0.5), ("delta", 0.01)])
def test_rounds_that_cost_more_than_is_stated_fail_the_audit(
    tuned_run: Path, tmp_path: Path, key: str, factor: float
) -> None:
    """Header and configuration agree on a figure that their own rounds contradict."""
    run = Path(shutil.copytree(tuned_run, tmp_path / "run"))
    lines = entries(run)
    before = lines[0][1]["tuning"][key]
    lines[0][1]["tuning"][key] = before * factor
    path = run / "config.toml"
    start, tuning = path.read_text().split("[tuning]\n")
    assert f"{key} = {before!r}\n" in tuning
    tuning = tuning.replace(f"{key} = {before!r}\n", f"{key} = {before * factor!r}\n", 1)
    path.write_text(f"{start}[tuning]\n{tuning}")
    lines[0][1]["config_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    signer = Signer.generate()
    sign_again(run, lines, signer)
    edit_json(run, lambda body: body.update(signer=signer.public_hex))
    if key == "epsilon":
        edit_json(run, lambda body: body["privacy"]["total"].update(before=before * factor))
    close_again(run, signer)
    assert failed(run) == {"Tuning runs and the total with them"}


def test_runs_whose_rounds_are_not_stated_are_added_up(tmp_path: Path) -> None:
    stated = [*FAST, "tuning.runs=3", "tuning.epsilon=2.5", "tuning.delta=1e-6"]
    run = harness.run(load("quickstart", stated), out=tmp_path / "run").folder
    own = summary(run)["privacy"]["epsilon"]["outsider"]
    assert summary(run)["privacy"]["total"]["delta"] == pytest.approx(1.1e-5)
    check_one_total(run, own + 2.5, runs=3)


def test_a_run_that_states_none_has_no_total(tmp_path: Path) -> None:
    run = harness.run(load("quickstart", FAST), out=tmp_path / "run").folder
    assert summary(run)["privacy"]["total"] is None
    facts = ReleasedModel.of(run).facts
    assert facts["fedsys.tuning_runs"] == "0"
    assert float(facts["fedsys.epsilon"]) == summary(run)["privacy"]["epsilon"]["outsider"]


@pytest.mark.slow
def test_architectures_are_compared_on_the_same_clients(tmp_path: Path) -> None:
    search = Search.of(load("quickstart", FAST), ["task.options.hidden=0|4"], "accuracy")
    tuned = tune(search, tmp_path / "tuned", trials=2)
    assert tuned.best is not None
    assert tuned.total is not None
    assert tuned.total.passed
    synthetic = load("quickstart", [*FAST, "task.name=synthetic", "task.options={}"])
    wrong = Search.of(synthetic, ["task.options.examples=400|500"], "accuracy")
    with pytest.raises(ConfigError, match="the number of clients would depend on the trial"):
        tune(wrong, tmp_path / "wrong", trials=1)
    assert not (tmp_path / "wrong").exists()


def test_a_search_that_is_broken_off_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "tuned"

    def in_the_second_trial(event: object) -> None:
        if isinstance(event, harness.RoundReport) and (folder / "trial-0002").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(search_of(), folder, trials=2, observer=in_the_second_trial)
    first = (folder / "trial-0001" / "ledger.jsonl").read_bytes()
    assert summary(folder / "trial-0002")["status"] == "interrupted"
    assert not (folder / "best.toml").exists()
    begun = load(folder / "trial-0002" / "config.toml")

    tuned = tune(None, folder, trials=2)
    assert [trial.number for trial in tuned.trials] == [1, 2]
    assert (folder / "trial-0001" / "ledger.jsonl").read_bytes() == first
    assert tuned.trials[1].settings["local.learning_rate"] == begun.local.learning_rate
    view = read_ledger(folder / "trial-0002" / "ledger.jsonl")
    assert view.resumes
    assert len(view.rounds) == 2
    assert load(folder / "best.toml").tuning.runs == 2


@pytest.mark.parametrize("started", [False, True])
def test_a_trial_is_run_once_whenever_the_process_died(
    tmp_path: Path, started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its ledger was there, and after it ended but before its value was noted."""
    folder = tmp_path / "tuned"

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if not started:
            patch.setattr(harness, "run", die)
        with pytest.raises(KeyboardInterrupt):
            tune(search_of(), folder, trials=1, finish=die)
    run = folder / "trial-0001"
    assert run.exists() == started
    if not started:
        run.mkdir()
        (run / "config.toml").write_text("cut o")
    before = (run / "ledger.jsonl").read_bytes() if started else b""
    tuned = tune(None, folder, trials=1)
    assert [trial.number for trial in tuned.trials] == [1]
    assert tuned.best is not None
    assert (run / "ledger.jsonl").read_bytes().startswith(before)
    assert len(read_ledger(run / "ledger.jsonl").rounds) == 2
    assert load(folder / "best.toml").tuning.heads == [summary(run)["ledger_head"]]


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
def test_without_privacy_the_total_is_infinite_and_failed_trials_count(tmp_path: Path) -> None:
    base = load("quickstart", [*FAST, "privacy.mechanism=none"])
    search = Search.of(base, ["server.learning_rate=1e40..1e41"], "loss")
    notices = list[object]()
    tuned = tune(search, tmp_path / "tuned", trials=2, observer=notices.append)
    assert [trial.value for trial in tuned.trials] == [None, None]
    assert tuned.best is None
    assert sum("failed: " in str(notice) for notice in notices) == 2
    assert not (tmp_path / "tuned" / "best.toml").exists()
    total = json.loads((tmp_path / "tuned" / "total.json").read_text())
    assert total["epsilon"]["outsider"] == "inf"


def test_an_unknown_metric_costs_no_trial(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean accuracy\?\); it has loss, accuracy"):
        tune(search_of(metric="acuracy"), tmp_path / "tuned", trials=1)
    assert not (tmp_path / "tuned").exists()


def test_a_metric_without_a_direction_costs_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def metrics(self: Classification, outputs: Any, targets: Any) -> Any:
        return {"quality": outputs.amax(1)}

    monkeypatch.setattr(Classification, "metrics", metrics)
    with pytest.raises(ConfigError, match=r"--metric quality: .*add --minimize or --maximize"):
        tune(search_of(metric="quality"), tmp_path / "tuned", trials=1)
    assert not (tmp_path / "tuned").exists()


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, ["tune", *words])


@pytest.mark.slow
def test_the_command_prints_the_total_and_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [word for each in FAST for word in ("--set", each)]
    result = invoke(*settings, "--trials", "1", "--over", OVER[0], "--out", "tuned")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["trial", "accuracy", "local.learning_rate"]
    assert lines[1].split()[0] == "1"
    assert lines[2].startswith("1 run cost epsilon outsider ")
    assert "fedsys simulate tuned/best.toml" in result.stdout
    assert (tmp_path / "tuned" / "trial-0001" / "report.html").is_file()
    again = invoke("--resume", "--out", "tuned", "--trials", "1")
    assert again.exit_code == 0, again.output
    assert again.stdout == result.stdout
    refused = invoke("--resume", "--out", "tuned", "--over", OVER[0])
    assert isinstance(refused.exception, ConfigError)
    assert "leave out CONFIG, --over" in str(refused.exception)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _name: None)
    result = invoke("--over", OVER[0])
    assert isinstance(result.exception, ConfigError)
    assert result.exception.exit_code == 2
    assert str(result.exception).endswith("pip install --require-hashes -r requirements.lock")
