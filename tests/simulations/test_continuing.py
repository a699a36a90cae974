"""A run that starts from another run's model, and the ledgers that this links."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsys.audit import audit_run, compose
from fedsys.config import Config, load
from fedsys.errors import BudgetExceeded, ConfigError, FedsysError
from fedsys.privacy import read_ledger
from fedsys.run_folder import RunFolder
from server.job_opening import reached
from simulations import harness
from simulations.continuing import continued
from simulations.replay import replay

Configure = Callable[..., Config]
SMALL = [
    "rounds.count=3", "cohort.expected=40", "aggregation.protocol=ideal", "aggregation.corrupt=0",
    "engine.path=batched", "engine.chunk=64", "engine.processes=1", "evaluation.every=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds; never to be changed."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(folder / "home"))
        return harness.run(load("quickstart", SMALL), out=folder / "run").folder


@pytest.fixture(autouse=True)
def _same_home(first: Path, monkeypatch: pytest.MonkeyPatch, _own_home: None) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(first.parent / "home"))


def test_more_rounds_of_a_run_go_on_from_its_model_under_one_total(
    first: Path, tmp_path: Path
) -> None:
    config = continued(first, ["rounds.count=2"])
    said: list[object] = []
    second = harness.run(config, out=tmp_path / "b", start=first, observer=said.append).folder
    header = read_ledger(second / "ledger.jsonl").header
    before = read_ledger(first / "ledger.jsonl")
    assert header["start"] == before.head
    assert header["initial_weights_sha256"] == before.rounds[-1].body["weights_sha256"]
    assert (header["tuning"]["runs"], header["tuning"]["heads"]) == (1, [before.head])
    assert "with its strategy's state; with 1 run before it" in str(said[0])
    alone, audit = audit_run(first), audit_run(second)
    assert audit.passed
    assert [claim.holds for claim in audit.claims if claim.name == "Start from another run"] == [
        True
    ]
    assert audit.total is not None
    assert audit.total.before == pytest.approx(alone.curve[-1].spent.outsider, rel=1e-6)
    both = compose([first, second])
    assert both.passed
    assert audit.total.epsilon == pytest.approx(both.curve[-1].spent.outsider, rel=1e-6)
    linked = [claim for claim in both.claims if claim.name == "Run b starts from run run"]
    assert [claim.holds for claim in linked] == [True]
    third = harness.run(continued(second, []), out=tmp_path / "c", start=second).folder
    chain = read_ledger(third / "ledger.jsonl").header["tuning"]
    assert chain["heads"] == [before.head, read_ledger(second / "ledger.jsonl").head]
    total = audit_run(third).total
    assert total is not None
    everything = compose([first, second, third]).curve[-1].spent.outsider
    assert total.epsilon == pytest.approx(everything, rel=1e-6)


@pytest.mark.slow
def test_a_start_that_is_not_counted_or_another_model_fails_the_audit(
    first: Path, tmp_path: Path
) -> None:
    other = harness.run(load("quickstart", SMALL), out=tmp_path / "other").folder
    second = harness.run(
        continued(first, ["rounds.count=1"]), out=tmp_path / "b", start=first
    ).folder
    alone = [c.holds for c in compose([other, second]).claims if "starts from" in c.name]
    assert alone == [None]  # that run is not among them
    config = second / "config.toml"
    text = config.read_text()
    config.write_text(text.replace(read_ledger(first / "ledger.jsonl").head, "0" * 64, 1))
    failed = {c.name for c in audit_run(second).claims if c.holds is False}
    assert "Start from another run" in failed


def test_a_crash_before_the_first_commit_resumes_from_the_other_runs_model(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("simulations.harness._one_round", crash)
        harness.run(continued(first, []), out=tmp_path / "b", start=first)
    seen: list[np.ndarray] = []
    plain = harness.run_rounds

    def spy(setting: object, job: object, observer: object) -> object:
        seen.append(job.coordinator.weights)  # type: ignore[attr-defined]
        return plain(setting, job, observer)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(harness, "run_rounds", spy)
        resumed = harness.resume(tmp_path / "b")
    assert not resumed.interrupted
    assert np.array_equal(seen[0], reached(RunFolder(first)).weights)
    assert audit_run(tmp_path / "b").passed


@pytest.mark.slow
def test_a_start_model_that_was_exchanged_is_refused(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("simulations.harness._one_round", crash)
        harness.run(continued(first, []), out=tmp_path / "b", start=first)
    start = tmp_path / "b" / "checkpoints" / "start.npz"
    content = np.load(start)
    np.savez(start, facts=content["facts"], weights=content["weights"] + np.float32(1))
    with pytest.raises(FedsysError, match="not the model that the ledger's header"):
        harness.resume(tmp_path / "b")
    start.unlink()
    with pytest.raises(FedsysError, match="missing, and the run started from that model"):
        harness.resume(tmp_path / "b")


@pytest.mark.slow
def test_a_run_without_noise_goes_on_and_is_replayed(configure: Configure, tmp_path: Path) -> None:
    plain = ("privacy.mechanism=none", "evaluation.data=none")
    one = harness.run(configure(*plain), out=tmp_path / "one").folder
    two = harness.run(continued(one, ["rounds.count=2"]), out=tmp_path / "two", start=one).folder
    assert audit_run(two).passed
    found = replay(two)
    assert (found.difference, found.replayed) == (None, 2)
    shutil.rmtree(two / "checkpoints")
    with pytest.raises(FedsysError, match="holds no checkpoints"):
        replay(two)


@pytest.mark.slow
def test_another_job_starts_from_a_run_with_fresh_state(
    first: Path, configure: Configure, tmp_path: Path
) -> None:
    said: list[object] = []
    config = configure("server.strategy=fedadam", "rounds.count=1")
    second = harness.run(config, out=tmp_path / "b", start=first, observer=said.append).folder
    assert "strategy's state" not in str(said[0])
    assert audit_run(second).passed


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["task.options.hidden=4"], "has 650 weights, and this job's 310"),
        (["cohort.sampling=fixed"], "defines neighbours differently"),
        (["job.start=" + "0" * 64], "is not over|is written by --from|names"),
    ],
)
def test_what_does_not_fit_is_one_line(
    first: Path, configure: Configure, tmp_path: Path, settings: list[str], reason: str
) -> None:
    start = None if settings[0].startswith("job.start") else first
    with pytest.raises(ConfigError, match=reason):
        harness.run(configure(*settings), out=tmp_path / "b", start=start)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_run_that_promises_nothing_leaves_no_total(configure: Configure, tmp_path: Path) -> None:
    one = harness.run(
        configure("privacy.mechanism=none", "evaluation.data=none"), out=tmp_path / "one"
    ).folder
    said: list[object] = []
    two = harness.run(
        configure("rounds.count=1"), out=tmp_path / "two", start=one, observer=said.append
    ).folder
    assert "NO TOTAL" in str(said[0])
    assert json.loads((two / "summary.json").read_text())["privacy"]["total"]["epsilon"] == "inf"
    assert audit_run(two).passed


@pytest.mark.slow
def test_a_population_that_the_first_run_is_in_is_joined(
    first: Path, configure: Configure, tmp_path: Path
) -> None:
    budget = tmp_path / "population"
    budget.mkdir()
    shutil.copytree(first, budget / "one")
    spent = audit_run(first).curve[-1].spent.outsider
    (budget / "population.toml").write_text(f"epsilon = {spent * 1.01}\ndelta = 1e-5\n")
    with pytest.raises(BudgetExceeded, match="the population's budget is epsilon"):
        harness.run(configure(), start=budget / "one")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "population.toml").write_text("epsilon = 50.0\ndelta = 1e-5\n")
    with pytest.raises(ConfigError, match="would not count against the budget"):
        harness.run(configure(), start=first, population=elsewhere)
    (budget / "population.toml").write_text("epsilon = 50.0\ndelta = 1e-5\n")
    second = harness.run(configure("rounds.count=1"), start=budget / "one").folder
    assert second.parent.resolve() == budget.resolve()
    assert read_ledger(second / "ledger.jsonl").header["tuning"]["runs"] == 1
    assert audit_run(second).passed


def test_somebody_elses_run_goes_on_only_under_a_configuration_of_ones_own(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    with pytest.raises(FedsysError, match="a CONFIG of your own"):
        continued(first, [])
