"""Several jobs of one coordinator at a time: who runs, who waits and why, what is promised."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsys.audit import audit_run
from fedsys.config import Config, dump, validate
from fedsys.privacy import read_ledger, replay
from fedsys.privacy.ledger import read_private
from server import coordinator
from server.deployed.queue import submit
from server.deployed.spending import Promises, Spending
from server.home.state import ACTIVE_JOB
from tests.server.deployed.test_job_run import Party, outcomes

LONG = 10_000
"""Rounds of a job that a test does not wait for."""


@pytest.fixture
def party(tmp_path: Path) -> Iterator[Callable[[int], Party]]:
    made: list[Party] = []

    def make(size: int) -> Party:
        made.append(Party(tmp_path, size, corrupt=0.0))
        made[-1].settle(reconnect=0.2)
        return made[-1]

    yield make
    for each in made:
        each.state.close()


def queued(party: Party, rounds: int, *devices: int) -> str:
    """Submit a job for some devices; its id."""
    return submit(party.state, dump(small(devices, rounds, mechanism="none"))).id


def small(devices: Collection[int], rounds: int, **privacy: object) -> Config:
    """A job of devices whose owners trust one another."""
    size = len(devices)
    return validate(
        {
            "job": {"name": "small"},
            "population": {"devices": " ".join(f"n{number}" for number in devices)},
            "cohort": {"sampling": "fixed", "expected": size, "cap": size, "min_survivors": 2},
            "rounds": {"count": rounds},
            "server": {"strategy": "fedavg"},
            "privacy": privacy,
            "aggregation": {"dropout": 0.0, "corrupt": 0.0},
            "engine": {"path": "loop", "chunk": 1},
            "evaluation": {"data": "none"},
        }
    )


def at_least(party: Party, rounds: int, *jobs: str) -> Callable[[], bool]:
    """Whether each of these jobs has begun so many rounds."""

    def reached() -> bool:
        rows = [party.state.job(job) for job in jobs]
        assert all(row.status in ACTIVE_JOB for row in rows), [row.reason for row in rows]
        return all(row.round >= rounds for row in rows)

    return reached


def over(party: Party, *jobs: str) -> Callable[[], bool]:
    return lambda: all(party.state.job(job).status not in ACTIVE_JOB for job in jobs)


def test_jobs_on_other_devices_run_at_once_and_one_that_overlaps_waits_for_both(
    party: Callable[[int], Party],
) -> None:
    found = party(9)
    first, second = queued(found, LONG, 0, 1, 2, 3), queued(found, LONG, 4, 5, 6, 7)
    third = queued(found, 2, 3, 4, 5, 8)
    found.run_until(at_least(found, 2, first, second))
    assert found.deployment.running == {
        first: frozenset({1, 2, 3, 4}),
        second: frozenset({5, 6, 7, 8}),
    }
    waiting = found.state.job(third)
    why = f"queued: its devices serve jobs {first}, {second} first"
    assert (waiting.status, waiting.stage) == ("submitted", why)
    reached = [found.state.job(job).round for job in (first, second)]

    # The coordinator and the devices were started again: both go on, and the third waits still.
    found.run_until(at_least(found, max(reached) + 2, first, second))
    assert found.state.job(third).status == "submitted"

    for job in (first, second):
        found.state.cancel_job(job)
    found.run_until(over(found, third))
    row = found.state.job(third)
    assert (row.status, row.stage) == ("completed", ""), row.reason
    assert {found.state.job(job).status for job in (first, second)} == {"cancelled"}
    assert not found.deployment.running
    claims = {each.name: each.holds for each in audit_run(found.home.jobs / third).claims}
    assert claims["Members"] is claims["Countersignatures"] is True
    assert outcomes(found, third) == ["commit", "commit"]


@pytest.mark.slow
def test_no_more_jobs_run_than_the_operator_allows(party: Callable[[int], Party]) -> None:
    found = party(6)
    found.settle(jobs_at_once=1)
    first, second = queued(found, LONG, 0, 1, 2), queued(found, LONG, 3, 4, 5)
    found.run_until(at_least(found, 2, first))
    assert found.deployment.running.keys() == {first}
    assert found.state.job(second).stage == (
        "queued: as many jobs run as jobs_at_once in coordinator.toml allows"
    )


def test_jobs_that_begin_together_share_the_budget(party: Callable[[int], Party]) -> None:
    """The second sees what the first promised, though neither has had a round."""
    found = party(5)
    found.settle(epsilon=2.5, patience=300.0)
    found.absent = {2}
    # The first waits for n2, which is away, and the second passes it.
    devices = [(0, 1, 2), (0, 1, 3), (0, 3, 4)]
    first, second, third = (
        submit(found.state, dump(small(each, 2, epsilon=epsilon, delta=1e-5))).id
        for each, epsilon in zip(devices, (2.0, 1.5, 0.3), strict=True)
    )
    found.run_until(over(found, second))
    assert "population's budget is epsilon 2.5: 2 is spent or promised" in (
        found.state.job(second).reason
    )
    assert found.state.job(first).started_at is None, "it had not even begun"
    found.absent = set()
    found.run_until(over(found, first, third))
    rows = [found.state.job(job) for job in (first, third)]
    assert [row.status for row in rows] == ["completed", "completed"], [row.reason for row in rows]


def diverges(weights: object, mean: object) -> object:
    return np.full(5, np.inf, dtype=np.float32)


def raises(weights: object, mean: object) -> object:
    raise RuntimeError("a strategy's own error")


@pytest.mark.parametrize("step", [diverges, raises])
@pytest.mark.parametrize("fails_in", [1, 2])
def test_the_round_in_which_a_job_fails_counts_against_the_budget(
    party: Callable[[int], Party],
    monkeypatch: pytest.MonkeyPatch,
    step: Callable[[object, object], object],
    fails_in: int,
) -> None:
    """Its sum was opened; of the next jobs no more are accepted than the budget has room for."""
    found = party(3)
    found.settle(epsilon=2.5)
    real = coordinator.Coordinator._step

    def fail(self: coordinator.Coordinator, mean: Any) -> Any:
        return step(self.weights, mean) if self.reserved == fails_in else real(self, mean)

    monkeypatch.setattr(coordinator.Coordinator, "_step", fail)
    config = dump(small((0, 1, 2), 2, epsilon=2.0, delta=1e-5))
    row = found.run(submit(found.state, config).id)
    assert row.status == "failed", row.reason
    folder = found.home.jobs / row.id
    view = read_ledger(folder / "ledger.jsonl", allow_torn=True)
    assert len(view.rounds) == fails_in
    spent = replay(view, read_private(folder / "private.jsonl")[0])[1].outsider
    assert spent > 0.5
    assert row.spent == pytest.approx(spent, rel=1e-9)
    assert Spending(found.home, found.state).total().outsider == pytest.approx(spent, rel=1e-9)
    assert Promises(found.home, found.state).total() == pytest.approx(spent, rel=1e-9)
    refused = found.run(submit(found.state, config).id)
    assert "the population's budget is epsilon 2.5" in refused.reason


def gave_way(party: Party) -> tuple[str, str]:
    """A job that waits for a device that is away, and one of the others that has passed it."""
    party.settle(patience=300.0)
    party.absent = {4}
    first, second = queued(party, 3, 0, 1, 2, 3, 4), queued(party, LONG, 0, 1, 2, 3)
    party.run_until(at_least(party, 2, second))
    row = party.state.job(first)
    assert row.status == "waiting"
    assert row.stage.startswith("waiting: 4 of 5 connected (n4 away), needs 5, until ")
    return first, second


@pytest.mark.slow
def test_a_job_that_passed_another_keeps_its_devices_over_a_restart(
    party: Callable[[int], Party],
) -> None:
    found = party(5)
    first, second = gave_way(found)
    found.absent = set()
    reached = found.state.job(second).round
    found.run_until(at_least(found, reached + 2, second))
    row = found.state.job(first)
    assert (row.status, row.round) == ("waiting", 0)
    assert row.stage == f"queued: its devices serve job {second} first"
    found.state.cancel_job(second)
    found.run_until(over(found, first, second))
    assert found.state.job(first).status == "completed", found.state.job(first).reason


def in_its_place(party: Party, first: str, second: str) -> Callable[[], bool]:
    """A scene, step by step: the device comes back, a third job comes, the second ends."""

    def scene() -> Iterator[None]:
        while party.state.job(second).round < 2:
            yield
        party.join_late(4)
        while party.state.job(first).stage != f"queued: its devices serve job {second} first":
            yield
        third = queued(party, LONG, 1, 2, 3)
        why = f"queued: its devices serve jobs {second}, {first} first"
        while party.state.job(third).stage != why:
            yield
        party.state.cancel_job(second)
        while party.state.job(first).status in ACTIVE_JOB:
            assert party.state.job(third).status == "submitted"
            yield

    steps = scene()
    return lambda: next(steps, True) is True


@pytest.mark.slow
def test_a_job_that_has_its_devices_again_is_in_its_place(party: Callable[[int], Party]) -> None:
    """While another uses them it waits for that one alone: a third does not pass it too."""
    found = party(5)
    found.settle(patience=300.0)
    found.absent = {4}
    first, second = queued(found, 2, 0, 1, 2, 3, 4), queued(found, LONG, 0, 1, 2)
    found.run_until(in_its_place(found, first, second))
    assert found.state.job(first).status == "completed", found.state.job(first).reason


def test_a_job_that_never_began_is_cancelled_without_being_begun(
    party: Callable[[int], Party],
) -> None:
    found = party(5)
    first, second = queued(found, LONG, 0, 1, 2), queued(found, LONG, 0, 1, 2)
    found.run_until(at_least(found, 1, first))
    found.state.cancel_job(second)
    found.run_until(over(found, second))
    assert found.state.job(second).status == "cancelled"
    assert not (found.home.jobs / second).exists()
    assert found.state.job(first).status == "running"


def test_a_job_that_waits_is_ended_at_once_though_another_has_its_devices(
    party: Callable[[int], Party],
) -> None:
    found = party(5)
    first, second = gave_way(found)
    found.state.cancel_job(first)
    found.run_until(over(found, first))
    row = found.state.job(first)
    assert (row.status, row.spent) == ("cancelled", None)
    assert found.state.job(second).status == "running"
    assert read_ledger(found.home.jobs / first / "ledger.jsonl").closed is not None


@pytest.mark.slow
def test_a_job_that_lacks_devices_for_too_long_is_paused_while_another_runs(
    party: Callable[[int], Party],
) -> None:
    found = party(5)
    found.settle(patience=2.0)
    found.absent = {4}
    first, second = queued(found, 3, 0, 1, 2, 3, 4), queued(found, LONG, 0, 1, 2, 3)
    found.run_until(lambda: found.state.job(first).status == "paused")
    row = found.state.job(first)
    assert "too few agreed and are connected within 2 s" in row.reason
    assert found.state.job(second).status in ("waiting", "running")
    found.absent = set()
    found.state.resume_job(first)
    found.state.cancel_job(second)
    found.run_until(over(found, first))
    assert found.state.job(first).status == "completed"
