"""No schedule breaks an invariant: forty always, ten thousand in the long run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from simulations.deterministic import Outcome, Schedule, run

BLOCK = 50
ROOT = Path(__file__).parents[3]


def _all_hold(first: int, count: int) -> list[Outcome]:
    outcomes = [run(seed) for seed in range(first, first + count)]
    broken = [f"seed {o.seed}: {o.violation}" for o in outcomes if o.violation is not None]
    assert not broken, "\n".join(broken)
    return outcomes


def test_a_job_is_ended_that_was_cancelled_after_a_crash_before_its_first_round() -> None:
    """Its ledger had been begun; it was left open when the job was marked as cancelled at once."""
    outcome = run(40429)
    assert (outcome.status, outcome.violation) == ("cancelled", None)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(200))
def test_ten_thousand_schedules_hold(block: int) -> None:
    _all_hold(1_000 + block * BLOCK, BLOCK)


def test_schedules_hold_and_reach_what_they_are_meant_to_test() -> None:
    outcomes = _all_hold(0, 40)
    statuses = {outcome.status for outcome in outcomes}
    assert statuses <= {"completed", "budget-exhausted", "cancelled", "failed"}
    lines = "\n".join(line for outcome in outcomes for line in outcome.trace)
    assert sum(outcome.commits for outcome in outcomes) > 15
    assert sum(outcome.rounds - outcome.commits for outcome in outcomes) > 20
    assert sum(outcome.crashes for outcome in outcomes) > 100
    for happening in (
        "coordinator lost power",
        "coordinator was killed",
        "agent-1 lost power",
        "the disk failed",
        ": lost",
        ": cut off",
        ": sent twice",
        ": into the void",
        ": lost with its sender",
        "the operator cancels the job: noted",
        "the operator stops the coordinator",
        "gave no model: the coordinator was shut down",
        "is committed",
        "countersignature from",
        "CERTIFICATE",
    ):
        assert happening in lines, happening
    ends = Counter(outcome.status for outcome in outcomes)
    assert ends["completed"] > 20
    assert ends["cancelled"]
    assert ends["failed"]


def test_a_seed_replays_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: what says the time of day to people decides nothing."""
    hours = itertools.count(0, 3600)
    for seed in (3, 38):
        first = run(seed)
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda: float(next(hours)))
            second = run(seed)
        assert first.trace == second.trace
        assert first.digest == second.digest
        assert (first.status, first.seconds) == (second.status, second.seconds)
    assert first.digest != run(3).digest


@pytest.mark.slow
def test_a_seed_replays_in_another_process() -> None:
    """Nothing depends on addresses, on the hashes of strings, or on the folder that is used."""
    script = "import sys; from simulations.deterministic import run; "
    script += "print(*(run(seed).digest for seed in (3, 38)))"
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashes in ("1", "2")
    }
    assert found == {f"{run(3).digest} {run(38).digest}\n"}


def test_schedules_differ() -> None:
    schedules = [Schedule.of(seed) for seed in range(200)]
    assert {s.population for s in schedules} == {4, 5, 6, 7, 8}
    assert {s.corrupt for s in schedules} == {0.0, 0.1}
    assert {s.committee for s in schedules} == {None, 3, 4, 5}
    assert {s.private for s in schedules} == {True, False}
    assert any(s.budget for s in schedules)
    assert any(s.weather.loss == 0 for s in schedules)
    assert {len(s.cheats) for s in schedules} == {len(s.unwilling) for s in schedules} == {0, 1}
    assert {s.absent for s in schedules} == {0.0, 0.4}
    assert any(s.stops for s in schedules)
    assert any(s.cancelled_at for s in schedules)
    assert {len(s.setbacks) for s in schedules} == {0, 6, 7, 8, 9, 10}
    assert len({s.calm_at for s in schedules}) == 200
    assert Schedule.of(5) == schedules[5]


@pytest.mark.slow
def test_an_ordinary_agent_is_needed_for_its_upload_alone() -> None:
    """Rounds with a drawn committee commit while agents that are not on it are dead or cut off."""
    drawn = [seed for seed in range(120) if Schedule.of(seed).committee is not None]
    gone = 0
    for outcome in map(run, drawn[:12]):
        assert outcome.violation is None
        asked: dict[str, set[str]] = {}
        for line in outcome.trace:
            words = line.split()
            if words[1:2] == ["round"] and "to" in words and words[3] in ("OPENING", "DELIVERY"):
                asked.setdefault(f"{words[2]} {words[3]}", set()).add(words[6])
        for key, agents in asked.items():
            number, kind = key.split()
            if kind == "OPENING":
                gone += len(agents - asked.get(f"{number} DELIVERY", agents))
    assert gone > 20
