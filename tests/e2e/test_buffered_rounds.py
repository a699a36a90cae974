"""Buffered rounds from the command line: train, be interrupted, go on, audit, publish, read."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest

from fedsys.privacy import read_ledger
from fedsys.privacy.ledger import read_private
from tests.e2e.conftest import CommandLine

SMALL = (
    "buffered",
    *("--set", "rounds.count=6"),
    *("--set", "rounds.buffer=12"),
    *("--set", "rounds.concurrency=20"),
    *("--set", "aggregation.protocol=secure"),
    *("--set", "engine.path=loop"),
)


def reserved(run: Path) -> int:
    ledger = run / "ledger.jsonl"
    return ledger.read_bytes().count(b'"kind":"reserve"') if ledger.exists() else 0


@pytest.mark.slow
def test_a_job_is_interrupted_goes_on_and_its_claims_hold(fedsys: CommandLine) -> None:
    run = fedsys.folder / "job"
    stopped = fedsys.run_until(
        lambda: reserved(run) >= 2, signal.SIGINT, "simulate", *SMALL, "--out", run
    )
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    resumed = fedsys.run("simulate", "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    view = read_ledger(run / "ledger.jsonl")
    assert [record.round for record in view.rounds] == list(range(1, 7))
    lines, torn = read_private(run / "private.jsonl")
    assert not torn
    assert all(len(line["sampled"]) == 12 for line in lines.values() if line["survivors"])
    uploads = Counter(client for line in lines.values() for client in line["survivors"])
    assert max(uploads.values()) <= 3

    audited = fedsys.run("audit", run)
    assert audited.returncode == 0, audited.stdout
    assert "a buffer takes the uploads that come first" in " ".join(audited.stdout.split())
    summary = json.loads((run / "summary.json").read_text())
    epsilon = summary["privacy"]["epsilon"]
    assert 0 < epsilon["server"] <= epsilon["outsider"] < epsilon["participant"]
    assert summary["simulated"]["seconds"] > 0

    published = fedsys.run("publish", run, "public")
    assert published.returncode == 0, published.stderr
    page = (fedsys.folder / "public" / "report.html").read_text()
    assert "with the same uploads arriving in the same order" in page
    assert "none claimed: a buffer takes the uploads that come first" in page


def test_a_mistake_is_one_line(fedsys: CommandLine) -> None:
    refused = fedsys.run("simulate", *SMALL, "--set", "rounds.buffer=30")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "rounds.buffer = 30 is more than rounds.concurrency = 20" in refused.stderr
