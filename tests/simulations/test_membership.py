"""One budget for training, queries and evaluations on the same clients."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsys import report
from fedsys.audit import audit_run
from fedsys.audit.population import audit_population
from fedsys.audit.wording import epsilon_text
from fedsys.config import Config, validate
from fedsys.errors import BudgetExceeded, ConfigError
from fedsys.privacy import Signer, read_ledger
from fedsys.privacy.accounting.adding import Part, cost_together
from simulations import harness
from tests.fedsys.audit.forge import entries, sign_again, sparse
from tests.reading import reads_at_most

Configure = Callable[..., Config]

QUERIES = 10


def asking(**privacy: Any) -> Config:
    return validate(
        {
            "job": {"kind": "query"},
            "population": {"partition": "iid", "clients": 60},
            "privacy": {"epsilon": 0.5, "delta": 1e-6, **privacy},
            "aggregation": {"protocol": "ideal", "dropout": 0.0},
            "query": {"questions": [{"ask": "count", "name": "rows"}]},
        }
    )


@pytest.fixture(scope="module")
def population(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten queries and a training job; never to be changed."""
    folder = tmp_path_factory.mktemp("population")
    (folder / "population.toml").write_text("epsilon = 3.4\ndelta = 1e-6\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(tmp_path_factory.mktemp("home")))
        training = {
            "job": {"name": "train"},
            "population": {"partition": "iid", "clients": 60},
            "cohort": {"expected": 30},
            "rounds": {"count": 2},
            "privacy": {"epsilon": 2.5, "delta": 1e-6},
            "aggregation": {"protocol": "ideal", "dropout": 0.0},
            "engine": {"path": "loop", "chunk": 30, "processes": 1},
        }
        harness.run(validate(training), population=folder)
        for _ in range(QUERIES):
            harness.run(asking(), population=folder)
    return folder


def test_ten_queries_and_a_training_job_have_one_epsilon_below_the_sum(population: Path) -> None:
    result = audit_population(population)
    failed = [each for each in result.claims if each.holds is False]
    assert not failed, failed
    runs = sorted(population.glob("*/summary.json"))
    alone = [json.loads(each.read_text())["privacy"]["epsilon"]["outsider"] for each in runs]
    assert len(alone) == QUERIES + 1
    total = result.curve[-1].spent.outsider
    assert total <= 3.4
    assert total < 0.5 * sum(alone)
    last = population / f"query-{QUERIES}" / "summary.json"
    stated = json.loads(last.read_text())["privacy"]["total"]
    assert stated["runs"] == QUERIES
    assert stated["epsilon"] == pytest.approx(total, rel=1e-3)
    assert audit_run(last.parent).passed, "each run alone derives the total from its own header"


def test_the_eleventh_query_is_refused_and_writes_nothing(population: Path) -> None:
    before = sorted(population.iterdir())
    with pytest.raises(BudgetExceeded, match=r"population's budget is epsilon 3\.4"):
        harness.run(asking(epsilon=2.0), population=population)
    with pytest.raises(BudgetExceeded, match=r"at 0\.0001"):
        harness.run(asking(delta=1e-4), population=population)
    assert sorted(population.iterdir()) == before


def test_a_run_that_was_taken_away_leaves_a_gap(population: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(population, tmp_path / "copy"))
    shutil.rmtree(copy / "query-3")
    failed = {each.name for each in audit_population(copy).claims if each.holds is False}
    assert failed == {"Linked ledgers"}


def spoiled(population: Path, to: Path) -> Path:
    """The training job and the first query, linked to it."""
    copy = Path(shutil.copytree(population, to))
    for each in copy.glob("query*"):
        if each.name != "query":
            shutil.rmtree(each)
    return copy


def refused(folder: Path) -> dict[str, str]:
    found = audit_population(folder, page=report.render).claims
    return {each.name: each.rederived for each in found if each.holds is False}


def test_another_run_in_the_place_of_one_is_seen(
    population: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As cheap as anybody likes, and audited alone it holds."""
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    copy = spoiled(population, tmp_path / "copy")
    shutil.rmtree(copy / "train")
    harness.run(asking(), out=copy / "train")
    assert refused(copy) == {
        "Linked ledgers": "query was linked to another ledger than train",
    }


def test_the_key_holder_cannot_understate_earlier_runs(population: Path, tmp_path: Path) -> None:
    copy = spoiled(population, tmp_path / "copy")
    run, signer = copy / "query", Signer.generate()
    lines = entries(run)
    stated = lines[0][1]["tuning"]
    stated["part"]["steps"] = [[z, q, r, 1.0] for z, q, r, _ in stated["part"]["steps"]]
    part = Part.from_json(stated["part"])
    assert part is not None
    cheaper = cost_together((part,))[0]
    assert cheaper < stated["epsilon"]
    stated["epsilon"] = cheaper
    sign_again(run, lines, signer)
    said = refused(copy)["Linked ledgers"]
    assert said.startswith("query states epsilon ")
    assert "which cost" in said


def test_a_banner_in_any_report_of_a_population_is_seen(population: Path, tmp_path: Path) -> None:
    copy = spoiled(population, tmp_path / "copy")
    run = copy / "query"
    page = report.build(run, audit_run(run), private=True)
    page.write_text(page.read_text().replace("<main>", "<main><p>CERTIFIED</p>"))
    assert set(refused(copy)) == {"Run query"}


@pytest.mark.parametrize("kind", ["pipe", "link", "large"])
def test_a_budget_made_to_harm_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "population.toml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        sparse(path, 10 << 30)
    with reads_at_most(16), pytest.raises(ConfigError, match=r"population\.toml"):
        audit_population(tmp_path)


def test_a_run_that_is_not_over_counts_with_all_that_it_may_do(
    population: Path, tmp_path: Path, configure: Configure
) -> None:
    copy = Path(shutil.copytree(population, tmp_path / "copy"))
    for run in copy.glob("*/ledger.jsonl"):
        if run.parent.name != "train":
            shutil.rmtree(run.parent)
    budget = json.loads((copy / "train/summary.json").read_text())["privacy"]["epsilon"]["outsider"]
    lines = (copy / "train/ledger.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "train/ledger.jsonl").write_bytes(lines[0])  # crashed before its first round
    (copy / "population.toml").write_text(f"epsilon = {budget}\ndelta = 1e-6\n")
    assert not read_ledger(copy / "train/ledger.jsonl").rounds
    with pytest.raises(BudgetExceeded, match=r"2\.\d+ is spent or promised by 1 runs"):
        harness.run(asking(), population=copy)


@pytest.mark.parametrize("reason", [None, "stopped-early", "aborted"])
def test_an_audit_counts_what_a_run_promised_where_it_is_not_over_or_stopped_early(
    population: Path, tmp_path: Path, reason: str | None
) -> None:
    copy = Path(shutil.copytree(population, tmp_path / "copy"))
    for each in copy.glob("query*"):
        shutil.rmtree(each)
    run = copy / "train"
    promised = audit_run(run).curve[-1].spent.outsider
    lines = entries(run)
    at = next(place for place, (kind, _) in enumerate(lines) if kind == "commit")
    kind, closed = lines[-1]
    end = [] if reason is None else [(kind, {**closed, "reason": reason})]
    sign_again(run, [*lines[: at + 1], *end], Signer.generate())
    spent = audit_run(run).curve[-1].spent.outsider
    assert spent < 0.8 * promised
    for limit in (spent, promised):
        (copy / "population.toml").write_text(f"epsilon = {limit * 1.01}\ndelta = 1e-6\n")
        found = next(e for e in audit_population(copy).claims if e.name == "Population's budget")
        assert found.holds is (limit == promised or reason == "aborted")
        counted = spent if reason == "aborted" else promised
        assert found.rederived.startswith(f"epsilon {epsilon_text(counted)} at delta = 1e-06 spent")


def test_a_population_of_a_run_that_promises_nothing_keeps_no_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    folder = tmp_path / "population"
    harness.run(asking(epsilon=None, mechanism="none"), out=folder / "query")
    (folder / "population.toml").write_text("epsilon = 1e300\ndelta = 1e-6\n")
    assert "promises nothing" in refused(folder)["Population's budget"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "write `epsilon"),
        ("epsilon = 1", "delta"),
        ("epsilon = -1\ndelta = 1e-5", "a number above 0"),
        ("epsilon = 1\ndelta = 1e-5\nmore = 2", "more"),
    ],
)
def test_a_budget_that_is_none_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "population.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        harness.run(asking(), population=tmp_path)
