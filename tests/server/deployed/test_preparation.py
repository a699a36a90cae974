"""A job that a crash interrupted: what its folder holds is read once, and let go of on failure."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from client.task_model import TaskModel
from fedsys.config import Config, dump
from fedsys.errors import ConfigError
from fedsys.privacy import LedgerView
from fedsys.privacy.ledger import reader, writer
from fedsys.run_folder import RunFolder
from server.deployed import preparation
from server.deployed.fleet import Fleet
from server.deployed.job_model import JobModel
from server.deployed.preparation import (
    AlreadyOver,
    FolderLost,
    JobFailed,
    Preparation,
    PreparedJob,
)
from server.deployed.queue import Deployment, submit
from server.deployed.spending import Promises, Spending
from server.grpc_operator import job_status
from server.home.state import ACTIVE_JOB, JobRow
from server.job_ending import end_job
from tests.e2e.deployment import Port, running_port
from tests.e2e.processes import silos


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    with running_port(tmp_path / "c") as found:
        for number in range(3):
            found.enroll(f"silo-{number}", tmp_path / f"a{number}")
        yield found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every ledger that is read, no matter who reads it."""
    found: list[Path] = []

    def read(path: Path, **how: object) -> LedgerView:
        found.append(path)
        return reader.read_ledger(path, **how)  # type: ignore[arg-type]

    for module in (preparation, writer):
        monkeypatch.setattr(module, "read_ledger", read)
    return found


def preparing(port: Port, models: object = TaskModel) -> Preparation:
    return Preparation(
        home=port.home,
        state=port.state,
        registry=port.registry,
        models=models,  # type: ignore[arg-type]
        budget=None,
    )


def begun(port: Port) -> JobRow:
    """A job that took no round yet, whose coordinator is gone."""
    row = submit(port.state, dump(silos("rounds.count=2", "privacy.epsilon=9")))
    prepared = preparing(port).prepare(row)
    assert isinstance(prepared, PreparedJob)
    with prepared.job.ledger:
        pass
    return port.state.job(row.id)


def test_a_restart_reads_the_ledger_once(port: Port, reads: list[Path]) -> None:
    row = begun(port)
    assert not reads
    prepared = preparing(port).prepare(row)
    assert isinstance(prepared, PreparedJob)
    assert reads == [port.home.jobs / row.id / "ledger.jsonl"]
    with prepared.job.ledger:
        assert prepared.job.coordinator.reserved == 0


def test_a_restart_that_fails_lets_go_of_the_ledger(port: Port) -> None:
    row = begun(port)

    def broken(_config: Config) -> JobModel:
        raise ConfigError("the task's code is gone")

    with pytest.raises(ConfigError, match="the task's code is gone"):
        preparing(port, broken).prepare(row)
    prepared = preparing(port).prepare(row)
    assert isinstance(prepared, PreparedJob)
    with prepared.job.ledger:
        pass


def test_a_job_whose_last_line_was_written_is_over(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: RunFolder, summary: object) -> None:
        raise InterruptedError

    row = begun(port)
    prepared = preparing(port).prepare(row)
    assert isinstance(prepared, PreparedJob)
    with monkeypatch.context() as patched, prepared.job.ledger:
        patched.setattr(RunFolder, "write_summary", die)
        with pytest.raises(InterruptedError):
            end_job(
                prepared.job, status="completed", model=b"m", metrics={}, seconds=[], clients=[]
            )
    assert not (port.home.jobs / row.id / "summary.json").exists()
    assert preparing(port).prepare(row) == AlreadyOver("completed")
    assert (port.home.jobs / row.id / "summary.json").exists()


def damaged(row: JobRow, port: Port) -> Path:
    """The ledger of a job that is to go on, with one digit of its first line changed."""
    path = port.home.jobs / row.id / "ledger.jsonl"
    text = path.read_text("utf-8")
    path.write_text(text.replace('"seq":0', '"seq":1', 1), "utf-8")
    return path


def test_a_damaged_ledger_is_named_with_its_line_and_a_remedy(port: Port) -> None:
    row = begun(port)
    path = damaged(row, port)
    with pytest.raises(JobFailed) as failed:
        preparing(port).prepare(row)
    for part in (
        f"{path.parent}: ledger line 1",
        f"fedsys audit {path.parent}",
        "submit the job again",
    ):
        assert part in str(failed.value)
    ended = port.state.job(row.id)
    assert ended.promised is not None
    assert ended.spent == ended.promised, "a round may have been cut off before it was counted"


def test_after_a_damaged_ledger_the_next_job_has_its_turn(port: Port) -> None:
    first = begun(port)
    path = damaged(first, port)
    second = submit(port.state, dump(silos("rounds.count=2", "population.clients=7")))

    async def scene() -> None:
        deployment = Deployment(
            home=port.home,
            state=port.state,
            registry=port.registry,
            fleet=Fleet(),
            models=TaskModel,
        )
        serving = asyncio.create_task(deployment.serve())
        async with asyncio.timeout(240):
            while port.state.job(second.id).status in ACTIVE_JOB:
                await asyncio.sleep(0.05)
        assert not serving.done()
        serving.cancel()
        await asyncio.wait({serving})

    asyncio.run(scene())
    shown = job_status(port.home, port.state, port.state.job(first.id))
    assert (shown.status, shown.reason.startswith(f"{path.parent}: ledger line 1")) == (
        "failed",
        True,
    )
    assert "population.clients = 7" in port.state.job(second.id).reason


def test_a_round_that_a_crash_lost_is_in_the_figure_after_the_restart(port: Port) -> None:
    row = submit(port.state, dump(silos("rounds.count=2", "privacy.epsilon=9")))
    prepared = preparing(port).prepare(row)
    assert isinstance(prepared, PreparedJob)
    with prepared.job.ledger:
        prepared.job.coordinator.begin_round(os.urandom)
    assert not port.state.job(row.id).spent
    again = preparing(port).prepare(port.state.job(row.id))
    assert isinstance(again, PreparedJob)
    with again.job.ledger:
        assert again.job.epsilon
        assert port.state.job(row.id).spent == again.job.epsilon


def test_a_job_that_is_given_up_with_its_folder_counts_as_it_promised(port: Port) -> None:
    row = begun(port)
    shutil.rmtree(port.home.jobs / row.id)
    with pytest.raises(FolderLost):
        preparing(port).prepare(row)
    cancelled = port.state.cancel_job(row.id)
    assert preparing(port).prepare(cancelled) == AlreadyOver("cancelled")
    over = port.state.update_job(row.id, status="cancelled")
    assert over.promised
    assert over.spent == over.promised
    assert Promises(port.home, port.state).total() == over.promised
    assert Spending(port.home, port.state).total().outsider == over.promised


def test_the_eleventh_query_after_a_training_job_is_refused(port: Port) -> None:
    """They promise epsilon 2 and ten times 0.5, which would make 7 if they were added."""
    budget = 2.8
    asked = Preparation(
        home=port.home, state=port.state, registry=port.registry, models=TaskModel, budget=budget
    )
    query = {
        "job": {"kind": "query"},
        "task": {"name": "digits"},
        "privacy": {"epsilon": 0.5, "delta": 1e-5},
        "aggregation": {"dropout": 0.0, "corrupt": 0.0},
        "query": {"questions": [{"ask": "count", "name": "rows"}]},
    }

    def begin(text: str, kind: str) -> None:
        row = submit(port.state, text)
        prepared = asked.prepare(row)
        assert isinstance(prepared, PreparedJob)
        with prepared.job.ledger:
            assert prepared.terms.kind == kind
            assert prepared.terms.plan.expected_cohort == 3
        port.state.update_job(row.id, started_at=1.0)

    begin(dump(silos("rounds.count=2", "privacy.epsilon=2")), "train")
    for _ in range(10):
        begin(tomli_w.dumps(query), "query")
    assert 0.95 * budget < Promises(port.home, port.state).total() <= budget
    with pytest.raises(
        JobFailed, match=r"budget is epsilon 2\.8: .* this one asks for 0\.5, which"
    ):
        begin(tomli_w.dumps(query), "query")
