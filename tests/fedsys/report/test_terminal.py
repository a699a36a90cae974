"""What a command prints at its end, on a terminal and in a log."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedsys.records import AuditResult, EpsilonPoint, Epsilons
from fedsys.report.terminal import print_audit, print_run

MakeAudit = Callable[..., AuditResult]


class Terminal(io.StringIO):
    """A file that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[io.StringIO, Terminal], ids=["log", "terminal"])
def out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Somewhere to print to, 100 columns wide."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    made: io.StringIO = request.param()
    return made


def test_a_run_ends_with_all_three_figures_and_its_folder(
    run_folder: Path, make_audit: MakeAudit, out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_folder.parent)  # a long path would be folded
    print_run(Path(run_folder.name), make_audit(), file=out)
    text = out.getvalue()
    for expected in ("8.59", "12.5", "37.7", "91.4 %", "3,811", "8 checked claims hold"):
        assert expected in text
    for view in ("outsider", "participant", "server"):
        assert view in text
    assert run_folder.name in text
    assert ("\x1b[" in text) == out.isatty()


def test_a_log_has_one_line_a_fact_and_spells_epsilon(
    run_folder: Path, make_audit: MakeAudit
) -> None:
    out = io.StringIO()
    print_run(run_folder, make_audit(), file=out)
    facts = dict(line.split("  ", 1) for line in out.getvalue().splitlines())
    assert facts["epsilon outsider"].strip().startswith("8.59  (reasonable")
    assert facts["run folder"].strip() == str(run_folder)


def test_what_is_no_private_release_is_said(
    run_folder: Path, make_audit: MakeAudit, out: io.StringIO
) -> None:
    path = run_folder / "summary.json"
    content = json.loads(path.read_text())
    content["privacy"]["mechanism"] = "none"
    path.write_text(json.dumps(content | {"reproducible": True, "protocol": "float"}))
    endless = Epsilons(outsider=math.inf, participant=math.inf, server=math.inf)
    audit = replace(make_audit(), curve=(EpsilonPoint(round=1, spent=endless),))
    print_run(run_folder, audit, file=out)
    text = out.getvalue()
    assert "No differential privacy" in text
    assert "Reproducible, not private" in text
    assert "Not a release" in text
    assert text.count("∞") == 3


def test_claims_come_with_failures_first_and_the_verdict_last(
    make_audit: MakeAudit, out: io.StringIO
) -> None:
    print_audit(make_audit(failed=True), file=out)
    text = out.getvalue()
    assert text.index("FAILS") < text.index("holds")
    assert "1 of 8 claims FAIL" in text.splitlines()[-1]
    assert "epsilon, outsider" in text.splitlines()[-1]
    out.truncate(0)
    print_audit(make_audit(), file=out)
    assert "8 checked claims hold; 2 more cannot be decided here" in out.getvalue()
    out.truncate(0)
    print_audit(AuditResult(run="x", claims=()), file=out)
    assert "nothing could be checked" in out.getvalue()


def test_a_hostile_name_cannot_drive_the_terminal(
    make_audit: MakeAudit, run_folder: Path, out: io.StringIO
) -> None:
    evil = "\x1b]0;owned\x07[red]x[/red]\u202e\nholds"
    audit = make_audit()
    claims = tuple(replace(claim, name=evil, by=evil) for claim in audit.claims)
    print_audit(replace(audit, claims=claims, notes=(evil,)), file=out)
    path = run_folder / "summary.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"metrics": {evil: 1.0}, "status": evil}))
    print_run(run_folder, audit, file=out)
    text = out.getvalue()
    assert "\x1b]" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "\nholds" not in text.replace("\nholds  ", "")
