"""The main job as a new user runs it: train, look, audit, publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedsys.audit import audit_run
from tests.e2e.conftest import CommandLine

VIEWS = ("outsider", "participant", "server")


@pytest.fixture(scope="module")
def run(fedsys: CommandLine) -> Path:
    finished = fedsys.run("simulate", "--out", "run")
    assert finished.returncode == 0, finished.stderr
    for word in ("accuracy", "outsider", "participant", "server", "run"):
        assert word in finished.stdout
    assert "round 40/40" in finished.stderr
    return fedsys.folder / "run"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_it_reaches_its_accuracy_within_its_privacy(run: Path) -> None:
    summary = read(run / "summary.json")
    assert summary["status"] == "completed"
    assert summary["rounds"] == 40
    assert summary["protocol"] == "secure"
    # 0.88 asked, 0.918 the mean over seeds: five deviations of a run
    assert summary["metrics"]["accuracy"] >= 0.88
    privacy = summary["privacy"]
    assert privacy["mechanism"] == "distributed-gaussian"
    assert privacy["delta"] == 1e-5
    assert 0 < privacy["epsilon"]["outsider"] <= 10
    outsider, participant, server = (privacy["epsilon"][view] for view in VIEWS)
    assert outsider < participant < server
    assert summary["clients_trained"] > 3000
    assert summary["clients_per_second"] > 0
    assert len(summary["model_sha256"]) == len(summary["ledger_head"]) == 64
    assert summary["versions"]["fedsys"]


def test_the_folder_holds_what_it_should(run: Path) -> None:
    assert sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) == [
        "audit.json",
        "checkpoints",
        "config.toml",
        "ledger.jsonl",
        "ledger.tlog-proof",
        "metrics.jsonl",
        "model.pt",
        "private.jsonl",
        "report.html",
        "summary.json",
    ]
    assert (run / "private.jsonl").stat().st_mode & 0o077 == 0
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 40


def test_clients_were_lost_and_none_of_it_shows_in_public(run: Path) -> None:
    private = [json.loads(line) for line in (run / "private.jsonl").read_text().splitlines()]
    lost = sum(len(line["sampled"]) - len(line["survivors"]) for line in private)
    assert lost > 30
    public = (run / "ledger.jsonl").read_text() + (run / "metrics.jsonl").read_text()
    for word in ("sampled", "survivors"):
        assert f'"{word}":[' not in public


def test_the_audit_passes(fedsys: CommandLine, run: Path) -> None:
    finished = fedsys.run("audit", run)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "signer not pinned" in finished.stdout + finished.stderr
    signer = read(run / "summary.json")["signer"]
    assert audit_run(run, key=signer).passed
    assert not audit_run(run, key="00" * 32).passed


def test_the_audit_notices_a_claim_that_is_too_good(run: Path) -> None:
    path = run / "summary.json"
    honest = path.read_text()
    better = read(path)
    better["privacy"]["epsilon"]["outsider"] = 1.0
    try:
        path.write_text(json.dumps(better))
        audited = audit_run(run)
    finally:
        path.write_text(honest)
    assert any("outsider" in claim.name for claim in audited.claims if claim.holds is False)


def test_what_is_published_tells_no_cohort(fedsys: CommandLine, run: Path) -> None:
    finished = fedsys.run("publish", run, "public")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    public = fedsys.folder / "public"
    names = {path.name for path in public.iterdir()}
    assert "private.jsonl" not in names
    assert "checkpoints" not in names
    assert "report.html" in names
    summary = read(public / "summary.json")
    assert summary["privacy"]["epsilon"]["outsider"] > 0
    assert summary["privacy"]["epsilon"]["server"] is None
    assert "clients_trained" not in summary
    assert audit_run(public).passed
    again = fedsys.run("publish", run, "public")
    assert again.returncode == 2
    assert "not empty" in again.stderr


def test_the_report_stands_alone(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "<svg" in page
    for outside in ('src="http', "src='http", 'href="http', "@import", "<script"):
        assert outside not in page


def test_the_model_loads(run: Path) -> None:
    import torch

    state = torch.load(run / "model.pt", weights_only=True)
    assert sum(value.numel() for value in state.values()) == 650
