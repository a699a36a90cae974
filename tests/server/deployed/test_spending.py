"""One total for a population, no matter who adds it up."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.journal import JobRecord, Journal
from fedsys.audit import compose
from fedsys.audit.population import linked
from fedsys.config import load
from fedsys.privacy import VIEWS, plan_of, read_ledger
from fedsys.run_folder import RunFolder
from server.deployed.spending import Promises, Spending, spent_by_failed
from server.home.folder import Home
from simulations import harness
from tests.simulations.test_asking import asking


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A training job and two queries, as a coordinator keeps them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(tmp_path_factory.mktemp("home")))
        made = Home.create(tmp_path_factory.mktemp("fleet") / "c", hosts=["localhost"])
        training = load(None, [
            "population.clients=60", "population.partition=iid", "cohort.expected=30",
            "rounds.count=2", "privacy.epsilon=2", "aggregation.protocol=ideal",
            "engine.path=loop", "engine.processes=1", "engine.chunk=64", "evaluation.data=none",
        ])  # fmt: skip
        harness.run(training, out=made.jobs / "a")
        for name in ("b", "c"):
            questions = [{"ask": "count", "name": "rows"}]
            harness.run(asking(query__questions=questions), out=made.jobs / name)
    return made


def row(home: Home, number: int, id: str, **values: Any) -> Any:
    spent = RunFolder(home.jobs / id).read_summary()["privacy"]["epsilon"]["outsider"]
    found = {"status": "completed", "started_at": 1.0, "ledger": id}
    stated = {"promised": float(spent), "spent": float(spent)}
    return SimpleNamespace(id=id, number=number, **{**found, **stated, **values})


def jobs(home: Home) -> tuple[list[Any], Any]:
    rows = [row(home, number, id) for number, id in enumerate("abc", start=1)]
    return rows, SimpleNamespace(jobs=lambda: rows)


def test_everybody_who_adds_up_a_population_says_the_same(home: Home, tmp_path: Path) -> None:
    """The audit, the operator's figures, the budget, a device's journal and a linked ledger."""
    rows, state = jobs(home)
    runs = [home.jobs / each.id for each in rows]
    audited = compose(runs)
    assert audited.passed
    total = audited.curve[-1].spent
    spent = Spending(home, state).total()
    for view in VIEWS:
        assert spent.of(view) == pytest.approx(total.of(view), rel=1e-9)
    assert Promises(home, state).total() == pytest.approx(total.outsider, rel=1e-9)
    plans = [plan_of(read_ledger(run / "ledger.jsonl").header) for run in runs]
    journal = Journal.begin(tmp_path / "journal.json")
    for run, plan in zip(runs, plans, strict=True):
        rounds = list(range(1, plan.rounds + 1))
        journal.jobs[run.name] = JobRecord(
            job=run.name, name="", terms="", plan=plan, joined=rounds, highest=plan.rounds
        )
    assert journal.spent("guarantee") == pytest.approx(total.outsider, rel=1e-9)
    assert journal.spent("server") >= (total.server or 0.0) * (1 - 1e-9), "a device's worst case"
    people = tmp_path / "people"
    for run in runs:
        shutil.copytree(run, people / run.name)
    (people / "population.toml").write_text("epsilon = 100.0\ndelta = 1e-5\n")
    before = linked(people, plans[1])
    assert before is not None
    assert before["epsilon"] == pytest.approx(total.outsider, rel=1e-9)


def test_a_job_that_is_not_over_counts_with_all_that_it_may_spend(home: Home) -> None:
    rows, state = jobs(home)
    promises = Promises(home, state)
    over = promises.total()
    rows[0].status, rows[0].promised = "running", 2.0
    assert promises.total() == pytest.approx(over, rel=1e-3), "all of its rounds were spent"
    rows[0].status = "lost"
    shutil.move(home.jobs / "a", home.jobs / "gone")
    try:
        assert Promises(home, state).total() == pytest.approx(2.0 + promises.total(without=1))
    finally:
        shutil.move(home.jobs / "gone", home.jobs / "a")
    rows.append(SimpleNamespace(id="d", number=4, status="queued", started_at=None, ledger=None))
    assert Promises(home, state).total() == pytest.approx(promises.total()), "it has not begun"


def test_a_failed_job_counts_by_its_ledger_and_where_that_is_unreadable_by_its_promise(
    home: Home, tmp_path: Path
) -> None:
    folder = RunFolder(home.jobs / "a")
    whole = float(row(home, 1, "a").spent)
    failed = row(home, 1, "a", status="failed", promised=9.0, spent=0.1)
    assert spent_by_failed(failed, folder) == pytest.approx(whole, rel=1e-9)
    rows = [failed]
    state: Any = SimpleNamespace(jobs=lambda: rows)
    assert Promises(home, state).total() == pytest.approx(whole, rel=1e-9), "an old figure"
    failed.spent = 9.0
    assert spent_by_failed(failed, folder) == 9.0, "it could not be restored: all was promised"
    failed.spent = 0.1
    assert spent_by_failed(failed, RunFolder(tmp_path / "gone")) == 9.0
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "ledger.jsonl").write_text("{}\n", "utf-8")
    assert spent_by_failed(failed, RunFolder(tmp_path / "torn")) == 9.0
    never = row(home, 1, "a", status="failed", promised=None, spent=None, ledger="")
    assert spent_by_failed(never, RunFolder(tmp_path / "gone")) is None


def test_what_is_settled_is_not_derived_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a round only the job in hand is another; a job that ends as it stood is not read."""
    rows, state = jobs(home)
    known = Spending(home, state)._standings(rows[0])
    rows[0].status = "running"
    spending = Spending(home, state)
    spending.note("a", known)
    first = spending.total()
    read: list[Path] = []

    def reads(path: Path, **how: Any) -> Any:
        read.append(path)
        return read_ledger(path, **how)

    monkeypatch.setattr("server.deployed.spending.read_ledger", reads)
    spending.note("a", known)
    rows[0].status = "completed"
    assert spending.total() == first
    assert not read
