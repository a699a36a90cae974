"""A finished run cannot be cut to a cheaper one, by somebody without the coordinator's key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedsys import report
from fedsys.audit import audit_run
from fedsys.privacy import Signer
from fedsys.privacy.ledger import Line
from fedsys.release.publication import publish_run
from fedsys.run_folder import RunFolder
from simulations import harness
from tests.fedsys.audit.conftest import failed, failures, job
from tests.fedsys.audit.forge import close_again, edit_json


@pytest.fixture(scope="module")
def published(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four rounds with an evaluation each, as its owner gives it away; never changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(home))
        out = tmp_path_factory.mktemp("whole")
        run = harness.run(job("evaluation.every=1"), out=out / "run").folder
        folder = publish_run(run, out / "public").path
        report.build(folder, audit_run(folder), private=False)
        assert audit_run(folder, page=report.render).passed
        return folder


@pytest.fixture
def public(published: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "public"
    folder.mkdir()
    for each in published.iterdir():
        (folder / each.name).write_bytes(each.read_bytes())
    return folder


def cut(folder: Path, rounds: int) -> None:
    """Keeps the first rounds and makes the rest of the folder agree, as far as that goes."""
    lines = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)[: 1 + 2 * rounds]
    (folder / "ledger.jsonl").write_bytes(b"".join(lines))
    (folder / "ledger.tlog-proof").unlink()  # it would contradict what is left
    metrics = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:rounds]
    (folder / "metrics.jsonl").write_text("".join(metrics))
    newest = json.loads(metrics[-1])
    del newest["round"]
    head = Line.parse(lines[-1].rstrip(b"\n"), len(lines)).hash
    edit_json(
        folder,
        lambda body: body.update(
            rounds=rounds,
            status="interrupted",
            ledger_head=head,
            model_sha256=None,
            metrics=newest,
        ),
    )
    spent = audit_run(folder).curve[-1].spent
    edit_json(folder, lambda body: body["privacy"]["epsilon"].update(outsider=spent.outsider))


def test_a_published_run_cut_to_one_round_fails(public: Path) -> None:
    whole = audit_run(public)
    cut(public, 1)
    report.build(public, audit_run(public), private=False)
    result = audit_run(public, page=report.render)
    assert result.curve[-1].spent.outsider < whole.curve[-1].spent.outsider
    assert failures(result) == {"Model file", "Metrics", "Report"}
    said = next(claim for claim in result.claims if claim.name == "Model file")
    assert "no closing line binds it" in said.rederived


def test_what_a_closed_run_states_cannot_be_edited(public: Path) -> None:
    metrics = (public / "metrics.jsonl").read_text()
    better = metrics.replace('"accuracy": 0.', '"accuracy": 0.9')
    assert better != metrics
    (public / "metrics.jsonl").write_text(better)
    newest = json.loads(better.splitlines()[-1])
    del newest["round"]
    edit_json(public, lambda body: body.update(metrics=newest))
    assert failed(public) == {"Metrics", "Summary as closed"}
    (public / "metrics.jsonl").unlink()
    edit_json(public, lambda body: body.update(metrics={}))
    assert failed(public) == {"Metrics", "Summary as closed"}


@pytest.mark.parametrize("words", ["<aside>APPROVED BY EVERYBODY</aside>", "\r"])
def test_a_banner_in_the_report_is_refused(public: Path, words: str) -> None:
    page = public / "report.html"
    text = page.read_text()
    page.write_bytes(text.replace("<main>", "<main>" + words).encode())
    assert failures(audit_run(public, page=report.render)) == {"Report"}


def test_pinning_a_key_leaves_the_report_as_it_is(public: Path, signer: Signer) -> None:
    assert audit_run(public, key=signer.public_hex, page=report.render).passed


def test_a_report_by_other_code_is_open_at_best(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures are still looked at."""
    monkeypatch.setattr("fedsys.audit.page.code_hash", lambda: "ab" * 32)
    page = public / "report.html"
    text = page.read_text()
    page.write_text(text.replace("<main>", "<main><p>new design</p>"))
    (said,) = (c for c in audit_run(public, page=report.render).claims if c.name == "Report")
    assert said.holds is None
    page.write_text(text.replace('<p class="epsilon">', "<p>"))
    assert failures(audit_run(public, page=report.render)) == {"Report"}


def test_the_parts_of_a_summary_that_are_not_published_are_not_bound(
    published: Path, run: Path
) -> None:
    """Publishing leaves the binding as it is."""
    assert failed(run) == set()
    edit_json(run, lambda body: body.update(clients_trained=1, train_seconds=0.0))
    assert failed(run) == set()
    edit_json(run, lambda body: body.update(reproducible=0))
    assert "Summary as closed" in failed(run)


def test_whoever_has_the_key_can_close_another_history(public: Path, signer: Signer) -> None:
    """What the closing line does not stop: witnesses do."""
    edit_json(public, lambda body: body.update(made_up=True))
    close_again(public, signer)
    assert failed(public) == set()


def test_an_interrupted_end_is_finished_as_it_was_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def die(self: RunFolder, summary: object) -> None:
        raise Crash

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "write_summary", die)
        with pytest.raises(Crash):
            harness.run(job(), out=out)
    assert not (out / "summary.json").exists()
    harness.resume(out)
    assert failed(out) == set()
    assert not (out / "summary.pending.json").exists()
