"""The metrics page: scraped, equal to its list, and safe to show without its server-side part."""

from __future__ import annotations

import json
import math
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedsys.config import load
from fedsys.errors import ConfigError
from fedsys.privacy import VIEWS, Epsilons, read_ledger, replay
from fedsys.privacy.ledger import read_private
from fedsys.wire import fleet_pb2
from server.deployed.fleet import Fleet, Link
from server.deployed.spending import NOTHING, Spending, alone
from server.home.folder import Home
from server.home.state import JobRow, NodeRow, State
from server.metrics import Metrics
from simulations import harness
from tests.e2e.processes import federation, silos

LIST = Path(__file__).parents[2] / "server" / "METRICS.md"

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(port: int) -> Series:
    """All samples of the page by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
        text = page.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def listed() -> dict[str, set[str]]:
    """Names and labels that the documentation lists."""
    rows = re.findall(r"^\| `(fedsys_\w+)` \| \w+ \|([^|]*)\|", LIST.read_text(), re.M)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def plain(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


def watched(folder: Path) -> tuple[State, Fleet]:
    """A database with two devices, one of them connected, and a job of each status."""
    folder.mkdir(exist_ok=True)
    state, fleet = State.create(folder), Fleet()
    with state.transaction() as session:
        for number in (1, 2):
            session.add(
                NodeRow(
                    id=number,
                    name=f"silo-{number}",
                    identity=bytes([number]) * 32,
                    status="active",
                    enrolled_at=0.0,
                    last_seen=1000.0 * number,
                )
            )
        for status in ("submitted", "running", "paused", "completed"):
            row = JobRow(id=status, name=status, config="", status=status, submitted_at=0.0)
            row.round, row.rounds = 3, 8
            session.add(row)
    fleet.open(Link(node=1))
    return state, fleet


def everything(folder: Path) -> Metrics:
    metrics = Metrics()
    metrics.watch(*watched(folder))
    metrics.round_committed({"upload": 0.1, "answer": 0.2})
    metrics.round_aborted()
    metrics.refused(0)
    metrics.refused(3)
    metrics.connected(3)
    metrics.job_ended("j", "completed")
    metrics.lacking("k", 2)
    metrics.spent("ab" * 8, Epsilons(outsider=1.5, participant=None, server=2.5))
    metrics.passed("in", "answer", 100)
    metrics.passed("in", "answer", 23)
    return metrics


def test_the_page_is_what_the_list_says(tmp_path: Path) -> None:
    metrics = everything(tmp_path)
    port = metrics.serve("127.0.0.1:0")
    try:
        found = scrape(port)
    finally:
        metrics.close()
    names = {plain(name): {key for key, _ in labels} - {"le"} for name, labels in found}
    assert names == listed()
    assert found["fedsys_jobs_total", (("status", "completed"),)] == 1
    assert found["fedsys_rounds_total", (("outcome", "aborted"),)] == 1
    population = ("population", "ab" * 8)
    assert found["fedsys_epsilon", (population, ("view", "outsider"))] == 1.5
    assert found["fedsys_epsilon", (population, ("view", "participant"))] == math.inf
    assert found["fedsys_serverside_epsilon", (population,)] == 2.5
    passed = found["fedsys_serverside_bytes_total", (("direction", "in"), ("kind", "answer"))]
    assert passed == 123
    assert found["fedsys_serverside_refusals_total", (("of", "round"),)] == 1
    assert found["fedsys_queue_jobs", (("status", "submitted"),)] == 1
    assert found["fedsys_queue_jobs", (("status", "waiting"),)] == 0
    assert found["fedsys_job_round", (("job", "paused"),)] == 3
    assert found["fedsys_job_rounds", (("job", "running"),)] == 8
    assert ("fedsys_job_round", (("job", "completed"),)) not in found
    connected = "fedsys_serverside_device_connected"
    assert [found[connected, (("device", f"silo-{each}"),)] for each in (1, 2)] == [1, 0]
    assert found["fedsys_serverside_device_last_seen_seconds", (("device", "silo-2"),)] == 2000
    assert found["fedsys_serverside_process_resident_memory_bytes", ()] > 1 << 20


def test_health_is_answered_to_anybody_and_says_when_the_database_is_gone(tmp_path: Path) -> None:
    state, fleet = watched(tmp_path)
    metrics = Metrics()
    metrics.watch(state, fleet)
    port = metrics.serve("127.0.0.1:0")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
            assert (answer.status, json.load(answer)) == (200, {"status": "serving"})
        state.close()
        (tmp_path / "state.sqlite").write_bytes(b"damaged" * 1000)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60)
        assert refused.value.code == 503
        assert "the database cannot be used" in json.load(refused.value)["status"]
        names = {name for name, _ in scrape(port)}
        assert "fedsys_connected_agents" in names
        assert "fedsys_queue_jobs" not in names
    finally:
        metrics.close()


def test_what_is_not_server_side_tells_no_cohort(tmp_path: Path) -> None:
    """Two coordinators whose rounds had other members show the same to everybody else."""

    def page(members: int) -> str:
        metrics = Metrics()
        metrics.watch(*watched(tmp_path / str(members)))
        fleet = Fleet(counted=metrics.passed)
        for node in range(members):
            link = Link(node=node, counted=fleet.counted)
            fleet.open(link)
            fleet.send(node, fleet_pb2.Down(outcome=fleet_pb2.Outcome(round=1)))
            metrics.refused(1)
        metrics.round_committed({"upload": 0.1 * members})
        metrics.spent("p", Epsilons(outsider=1.0, participant=2.0, server=0.5 * members))
        metrics.connected(9)
        port = metrics.serve("127.0.0.1:0")
        try:
            found = scrape(port)
        finally:
            metrics.close()
        assert any("serverside" in name for name, _ in found)
        return repr(sorted(item for item in found.items() if "serverside" not in item[0][0]))

    assert page(3) == page(5)


def test_messages_are_counted_by_kind_without_being_parsed() -> None:
    seen: list[tuple[str, str, int]] = []
    fleet = Fleet(counted=lambda *each: seen.append(each))
    link = Link(node=1, counted=fleet.counted)
    fleet.open(link)
    for field in fleet_pb2.Down.DESCRIPTOR.fields:
        message = fleet_pb2.Down()
        getattr(message, field.name).SetInParent()
        raw = message.SerializeToString()
        fleet.send_bytes(1, raw)
        assert seen[-1] == ("out", field.name, len(raw))


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:99999999", "127.0.0.1:x", "256.1.1.1:1"])
def test_an_address_that_does_not_work_is_named(address: str) -> None:
    with pytest.raises(ConfigError, match=f"metrics = '{address}'"):
        Metrics().serve(address)


def test_jobs_whose_ledgers_are_there_compose(tmp_path: Path) -> None:
    """For an outsider they cost less than the sum of their epsilons, as the budget counts."""
    home = Home.create(tmp_path / "home", hosts=["localhost"])
    rows: list[Any] = []
    config = load(None, [
        "population.clients=60", "population.partition=iid", "cohort.expected=40",
        "rounds.count=1", "privacy.epsilon=2", "aggregation.protocol=ideal", "engine.path=loop",
        "engine.processes=1", "engine.chunk=64", "evaluation.data=none",
    ])  # fmt: skip
    for name in ("a", "b"):
        harness.run(config, out=home.jobs / name)
        rows.append(SimpleNamespace(id=name, status="completed"))
    state: Any = SimpleNamespace(jobs=lambda: rows)
    spending = Spending(home, state)
    total = spending.total()
    assert 2.0 < total.outsider < 3.4
    accountant, spent = replay(
        read_ledger(home.jobs / "a" / "ledger.jsonl"),
        read_private(home.jobs / "a" / "private.jsonl")[0],
    )
    rows.append(SimpleNamespace(id="c", status="running"))
    spending.note("c", {view: accountant.standing(view) for view in VIEWS})
    third = spending.total()
    for view in VIEWS:
        before, own, after = total.of(view), spent.of(view), third.of(view)
        assert before is not None
        assert own is not None
        assert after is not None
        assert own < before < after < before + own < 3 * own


def test_what_was_spent_adds_up_where_only_summaries_can_be_read(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "home", hosts=["localhost"])
    rows: list[Any] = []
    state: Any = SimpleNamespace(jobs=lambda: rows)

    def job(id: str, status: str, summary: str | None) -> None:
        folder = home.jobs / id
        folder.mkdir(parents=True)
        (folder / "ledger.jsonl").write_text("{}\n")
        if summary is not None:
            (folder / "summary.json").write_text(summary)
        rows.append(SimpleNamespace(id=id, status=status))

    epsilon = '{"privacy": {"epsilon": {"outsider": %s, "participant": %s, "server": %s}}}'
    job("a", "completed", epsilon % (1.0, 2.0, '"inf"'))
    job("b", "running", epsilon % (50.0, 50.0, 50.0))
    spending = Spending(home, state)
    spending.note("b", alone(NOTHING))  # what its folder says is of its end
    assert spending.total() == Epsilons(outsider=1.0, participant=2.0, server=math.inf)
    job("c", "cancelled", epsilon % (0.5, "null", 1.0))
    assert spending.total() == Epsilons(outsider=1.5, participant=None, server=math.inf)
    rows.append(SimpleNamespace(id="runs besides", status="running"))
    for id in ("b", "runs besides"):
        spending.note(id, alone(Epsilons(outsider=0.25, participant=1.0, server=1.0)))
    assert spending.total().outsider == 2.0
    rows.append(SimpleNamespace(id="never began", status="failed", ledger=""))
    assert spending.total().outsider == 2.0
    rows[1].status = "completed"
    assert spending.total().outsider == 51.75
    job("d", "failed", None)  # a ledger that cannot be read: nobody can say
    assert spending.total().outsider == math.inf
    assert NOTHING.outsider == 0
    assert len(spending.population) == 16


def test_a_deployment_is_scraped(tmp_path: Path) -> None:
    """After a job over real sockets: its rounds, its epsilon, and every kind of message."""
    with federation(tmp_path, 3) as fed:
        settings = fed.home.settings_file
        text = settings.read_text("utf-8")
        assert 'metrics = ""' in text
        settings.write_text(text.replace('metrics = ""', 'metrics = "127.0.0.1:0"'), "utf-8")
        fed.restart_coordinator()
        for number in range(3):
            fed.start_agent(number, 3)
        job = fed.submit(silos("rounds.count=2", "privacy.epsilon=9"))
        row: JobRow = fed.wait(job)
        assert row.status == "completed", row.reason
        port = int(re.findall(r"metrics at port (\d+)", fed.log("coordinator"))[-1])
        end, found = time.monotonic() + 60, scrape(port)
        while found.get(("fedsys_jobs_total", (("status", "completed"),))) != 1:
            assert time.monotonic() < end
            found = scrape(port)
        population = ("population", fed.home.roster_key.hex()[:16])
        shown = found["fedsys_epsilon", (population, ("view", "outsider"))]
        state = State.open(fed.home.path)
        assert shown == pytest.approx(state.job(job).spent, rel=1e-6)
        state.close()
    assert found["fedsys_rounds_total", (("outcome", "committed"),)] == 2
    assert found["fedsys_serverside_stage_seconds_count", (("stage", "upload"),)] == 2
    kinds = {
        (dict(labels)["direction"], dict(labels)["kind"])
        for name, labels in found
        if name == "fedsys_serverside_bytes_total"
    }
    assert kinds >= {("out", "model"), ("out", "invitation"), ("out", "stage"), ("out", "offer")}
    assert kinds >= {("in", "hello"), ("in", "consent"), ("in", "answer")}
    assert found["fedsys_serverside_device_connected", (("device", "silo-0"),)] == 1
    assert {plain(name) for name, _ in found} <= set(listed())
