"""Ctrl-C and kill -9 at any moment: the run goes on, and the ledger has counted everything."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path

import pytest

from fedsys import report
from fedsys.audit import audit_run
from fedsys.privacy import read_ledger, replay
from fedsys.privacy.ledger import read_private
from tests.e2e.conftest import CommandLine

SMALL = ("--set", "rounds.count=5", "--set", "cohort.expected=70")


def reserved(run: Path) -> int:
    ledger = run / "ledger.jsonl"
    return ledger.read_bytes().count(b'"kind":"reserve"') if ledger.exists() else 0


def test_ctrl_c_leaves_a_run_that_goes_on(fedsys: CommandLine) -> None:
    run = fedsys.folder / "ctrl-c"
    stopped = fedsys.run_until(
        lambda: reserved(run) >= 2, signal.SIGINT, "simulate", *SMALL, "--out", run
    )
    assert stopped.returncode == 130, stopped.stderr
    assert f"--resume {run}" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
    # unfinished: nothing binds its metrics and report yet
    audited = audit_run(run, page=report.render)
    assert {claim.name for claim in audited.claims if claim.holds is False} == {"Metrics", "Report"}
    resumed = fedsys.run("simulate", "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    check(run)


@pytest.mark.slow
def test_kill_at_any_moment(fedsys: CommandLine) -> None:
    run = fedsys.folder / "killed"
    first = ("simulate", *SMALL, "--out", run)
    again = ("simulate", "--resume", run)
    for attempt in itertools.count():
        goal = reserved(run) + 1 + attempt % 2
        finished = fedsys.run_until(
            lambda goal=goal: reserved(run) >= goal,  # type: ignore[misc]
            signal.SIGKILL,
            *(again if reserved(run) else first),
        )
        if finished.returncode == 0 or reserved(run) >= 5:
            break
        assert finished.returncode == -signal.SIGKILL, finished.stderr
    if read_ledger(run / "ledger.jsonl", allow_torn=True).closed is None:
        finished = fedsys.run(*again)
        assert finished.returncode == 0, finished.stderr
    check(run)


def check(run: Path) -> None:
    view = read_ledger(run / "ledger.jsonl")
    assert [record.round for record in view.rounds] == list(range(1, 6))
    private, torn = read_private(run / "private.jsonl")
    assert not torn
    summary = json.loads((run / "summary.json").read_text())
    assert summary["privacy"]["epsilon"] == replay(view, private)[1].to_json()
    drawn = [tuple(line["sampled"]) for line in private.values()]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.slow
def test_a_finished_run_is_not_resumed(fedsys: CommandLine) -> None:
    run = fedsys.folder / "finished"
    first = fedsys.run("simulate", *SMALL, "--set", "rounds.count=1", "--out", run)
    assert first.returncode == 0, first.stderr
    finished = fedsys.run("simulate", "--resume", run)
    assert finished.returncode == 2
    assert "closed" in finished.stderr
    assert "Traceback" not in finished.stderr
    report = run / "report.html"
    report.unlink()
    report.mkdir()
    failed = fedsys.run("simulate", "--resume", run)
    assert failed.returncode == 2, failed.stderr
    assert f"then `fedsys simulate --resume {run}` writes the report" in failed.stderr
    report.rmdir()
    again = fedsys.run("simulate", "--resume", run)
    assert again.returncode == 0, again.stderr
    assert report.is_file()
    audited = fedsys.run("audit", run)
    assert audited.returncode == 0, audited.stderr
