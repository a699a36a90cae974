"""A finished run cannot be cut to a cheaper one, by somebody without the coordinator's key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsys import report
from fedsys.audit import audit_run
from fedsys.privacy import Signer
from fedsys.privacy.ledger import Line
from fedsys.privacy.ledger.closing import COHORT_SECRETS
from fedsys.release.publication import publish_run
from fedsys.run_folder import RunFolder
from simulations import harness
from tests.fedsys.audit.conftest import failed, failures, job
from tests.fedsys.audit.forge import close_again, edit_json, edit_private, entries, sign_again


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


HIDDEN = "What is not published, as closed"


def test_what_is_not_published_is_bound_too(run: Path) -> None:
    """By a commitment that the published folder does not open."""
    assert failed(run) == set()
    whole = (run / "summary.json").read_text()
    for change in (
        lambda body: body.update(clients_trained=1),
        lambda body: body.update(train_seconds=0.0),
        lambda body: body.update(simulated={"seconds": 1.0}),
        lambda body: body.update(salt="00" * 32),
        lambda body: body.update(salt=7),
        lambda body: body.pop("salt"),
        lambda body: body.pop("clients_trained"),
    ):
        edit_json(run, change)
        assert failed(run) == {HIDDEN}
        (run / "summary.json").write_text(whole)
    (run / "data.json").write_text('{"preparation": {}}')
    assert failed(run) == {HIDDEN}


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.update(clipped_fraction=0.0),
        lambda line: line.update(noise_norm=99.0),
        lambda line: line.update(approved="by everybody"),
        lambda line: line.pop("dropped"),
    ],
)
def test_what_a_host_noted_about_a_round_is_bound(
    run: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit_private(run, 2, change)
    (said,) = (each for each in audit_run(run).claims if each.holds is False)
    assert said.rederived == "round 2: rest is not what the ledger committed to"


def test_a_published_folder_opens_no_commitment(published: Path) -> None:
    summary = json.loads((published / "summary.json").read_text())
    assert not set(summary) & set(COHORT_SECRETS)
    names = [each.name for each in audit_run(published).claims]
    assert HIDDEN not in names
    (published / "data.json").write_text("{}")
    try:
        assert failed(published) == {HIDDEN}
    finally:
        (published / "data.json").unlink()


@pytest.mark.parametrize("view", ["participant", "server"])
def test_an_epsilon_that_nothing_here_gives_is_not_stated(
    public: Path, run: Path, view: str
) -> None:
    """Neither added to a published summary, nor edited where cohorts were taken away."""
    edit_json(public, lambda body: body["privacy"]["epsilon"].update({view: 99.0}))
    assert failed(public) == {HIDDEN}
    (run / "private.jsonl").unlink()
    assert failed(run) == set(), "it is as it was closed"
    edit_json(run, lambda body: body["privacy"]["epsilon"].update({view: 99.0}))
    assert failed(run) == {HIDDEN}
    edit_json(run, lambda body: [body.pop(key, None) for key in COHORT_SECRETS])
    assert failed(run) == {HIDDEN}


def test_files_that_are_never_published_are_bound(run: Path, signer: Signer) -> None:
    """The figures of single clients, and the private line of a round that a crash took."""
    (run / "clients.json").write_text('{"metrics": {}}')
    assert failed(run) == {HIDDEN}
    close_again(run, signer)
    assert failed(run) == set()
    (run / "clients.json").write_text('{"metrics": {"accuracy": {"mean": 1.0}}}')
    assert failed(run) == {HIDDEN}
    (run / "clients.json").unlink()
    *kept, (kind, body), (last, closed) = entries(run)
    assert (kind, body["round"]) == ("commit", 4)
    sign_again(run, [*kept, (last, {**closed, "lines": len(kept) + 1})], signer)
    close_again(run, signer)
    assert HIDDEN not in failed(run)
    edit_private(run, 4, lambda line: line.update(approved="by everybody"))
    assert HIDDEN in failed(run)


def test_a_run_states_why_it_ended_where_it_did(run: Path, signer: Signer) -> None:
    """Nobody stops at results, with the coordinator's key, and calls that the plan."""
    lines = entries(run)
    kind, closed = lines[-1]
    private = (run / "private.jsonl").read_bytes().splitlines(keepends=True)
    (run / "private.jsonl").write_bytes(b"".join(private[:2]))
    (run / "metrics.jsonl").unlink(missing_ok=True)
    for reason in ("completed", "budget-exhausted"):
        sign_again(run, [*lines[:5], (kind, {**closed, "lines": 6, "reason": reason})], signer)
        edit_json(run, lambda body, r=reason: body.update(rounds=2, status=r, metrics={}))  # type: ignore[misc]
        close_again(run, signer)
        spent = audit_run(run).curve[-1].spent.to_json()
        edit_json(run, lambda body, e=spent: body["privacy"].update(epsilon=e))  # type: ignore[misc]
        close_again(run, signer)
        assert failed(run) == {"End of the job", "Model weights"}, reason


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
