"""``report.html`` is checked against what the audit derived."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsys import report
from fedsys.audit import audit_run, page
from fedsys.audit.page import _agrees
from fedsys.errors import RunFolderError
from fedsys.privacy import Signer
from fedsys.records import AuditResult
from fedsys.release.publication import publish_run
from fedsys.report import html
from fedsys.report.figures import epsilon
from simulations import harness
from tests.fedsys.audit.conftest import failures, job
from tests.fedsys.audit.forge import (
    close_again,
    edit_json,
    entries,
    replace_text,
    sign_again,
    sparse,
)


def checked(run: Path) -> AuditResult:
    return audit_run(run, page=report.render)


@pytest.fixture
def reported(run: Path) -> Path:
    report.build(run, audit_run(run), private=True)
    return run


def test_the_report_of_a_run_agrees_with_its_audit(reported: Path, tmp_path: Path) -> None:
    assert failures(checked(reported)) == set()
    assert any(claim.name == "Report" for claim in checked(reported).claims)
    assert not any(claim.name == "Report" for claim in audit_run(reported).claims)
    published = publish_run(reported, tmp_path / "out").path
    report.build(published, audit_run(published), private=False)
    assert failures(checked(published)) == set()
    bare = harness.run(job("privacy.mechanism=none"), out=tmp_path / "bare").folder
    report.build(bare, audit_run(bare), private=True)
    assert failures(checked(bare)) == set()


def test_another_figure_in_the_report_is_refused(reported: Path) -> None:
    spent = checked(reported).curve[-1].spent
    text = (reported / "report.html").read_text()
    for value in (spent.outsider, spent.participant, spent.server):
        shown = epsilon(value)
        for written in (f"</span> {shown} <span", f'<td class="figure">{shown}</td>'):
            (reported / "report.html").write_text(text)
            replace_text(reported / "report.html", written, written.replace(shown, "0.10"))
            assert failures(checked(reported)) == {"Report"}
    (reported / "report.html").write_text(text.replace('<p class="epsilon">', "<p>"))
    assert failures(checked(reported)) == {"Report"}


def test_a_report_of_an_earlier_state_is_refused(reported: Path, signer: Signer) -> None:
    lines = entries(reported)
    lines[0][1]["versions"] = {**lines[0][1]["versions"], "torch": "0"}
    sign_again(reported, lines, signer)
    edit_json(reported, lambda body: body.update(versions=lines[0][1]["versions"]))
    close_again(reported, signer)
    assert failures(checked(reported)) == {"Report"}


def test_without_torch_only_figures_decide(reported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page made with Opacus' second opinion differs from one that is made without."""
    monkeypatch.setitem(sys.modules, "fedsys.audit.opacus_accounting", None)
    assert failures(checked(reported)) == {"Report"}
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    found = {claim.name: claim for claim in checked(reported).claims}
    assert found["Report"].holds is None
    assert "not run: Opacus" in found["Epsilon cross-check: second opinion"].rederived
    shown = epsilon(checked(reported).curve[-1].spent.outsider)
    replace_text(reported / "report.html", f"</span> {shown} <span", "</span> 0.10 <span")
    assert failures(checked(reported)) == {"Report"}


def test_hostile_pages_are_not_read(reported: Path, tmp_path: Path) -> None:
    path = reported / "report.html"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert failures(checked(reported)) == {"Report"}
    path.unlink()
    sparse(path, 10 << 30)
    assert failures(checked(reported)) == {"Report"}
    path.write_bytes(b"\xff")
    assert failures(checked(reported)) == {"Report"}


def _replace(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)


@pytest.mark.parametrize(
    "harm",
    [
        lambda run: edit_json(run, lambda body: body.update(rounds=-(10**400))),
        lambda run: edit_json(run, lambda body: body["privacy"].update(budget=-1e300)),
        lambda run: edit_json(run, lambda body: body["metrics"].update(loss=-(10**400))),
        lambda run: _replace(run, "metrics.jsonl", _two("x", "1.7e308", "-1.7e308")),
        lambda run: _replace(run, "private.jsonl", _two("clipped_fraction", "1e308", "1e308")),
        lambda run: _replace(run, "private.jsonl", _two("signal_norm", "5e-324", "1e-300")),
        lambda run: _replace(
            run, "clients.json", '{"metrics": {"loss": {"values": [1.7e308, -1.7e308]}}}'
        ),
    ],
)
def test_numbers_that_no_page_can_show_are_named(
    reported: Path, harm: Callable[[Path], None]
) -> None:
    harm(reported)
    assert "Report" in failures(checked(reported))
    path = report.build(reported, audit_run(reported), private=True)
    assert "<main" in path.read_text()


def _two(name: str, first: str, second: str) -> str:
    lines = [
        f'{{"round":{at + 1},"noise_norm":1e90,"{name}":{each}}}'
        for at, each in enumerate((first, second))
    ]
    return "\n".join(lines) + "\n"


def test_a_page_that_cannot_be_made_is_a_claim_that_fails(
    reported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> str:
        raise OverflowError("a number")

    monkeypatch.setattr(html, "_page", fails)
    assert failures(checked(reported)) == {"Report"}
    with pytest.raises(RunFolderError, match=r"the report cannot be made: a number$"):
        report.build(reported, audit_run(reported), private=True)


@pytest.mark.parametrize(
    "value",
    [0.0012, 0.0512, 0.1, 0.73, 1.0, 5.371, 9.999, 10.01, 99.99, 345.6, 51234.5, 3.3e7, 1e300],
)
def test_every_figure_that_a_report_can_write_is_understood(value: float) -> None:
    assert _agrees(epsilon(value), value)
    assert not _agrees(epsilon(value), value * 1.2)
    assert not _agrees(epsilon(value), value * 0.8 - 0.0002)
    assert not _agrees(epsilon(value), math.inf)
    assert not _agrees(epsilon(value), None)


def test_no_protection_and_nothing_stated() -> None:
    assert _agrees("∞", math.inf)
    assert not _agrees("∞", 3.0)
    assert _agrees("–", 3.0)
    assert not _agrees("three", 3.0)
