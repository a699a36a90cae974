"""Honest runs of every kind pass, and the audit says what they rest on."""

from __future__ import annotations

import functools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedsys.audit import audit_run, spending, to_json, write
from fedsys.audit.chain import UNPINNED
from fedsys.audit.epsilons import underivable_claims
from fedsys.audit.evidence import gather
from fedsys.audit.settings import header_claims
from fedsys.audit.wording import epsilon_text
from fedsys.errors import AuditInputError, LedgerError
from fedsys.privacy import Ledger, Signer, ViewAccountant, read_ledger
from fedsys.privacy.accounting.exact_gaussian import gaussian_epsilon
from fedsys.privacy.accounting.from_ledger import charge_rounds, plan_of
from fedsys.privacy.ledger import read_private
from fedsys.records import AuditResult, Terms
from fedsys.release.publication import publish_run
from simulations import harness
from simulations.randomness import SeededRandomness
from tests.fedsys.audit.conftest import failed, failures, job
from tests.fedsys.audit.forge import close_again, edit_json, entries, sign_again


def verdict(result: AuditResult, name: str) -> bool | None:
    return next(claim.holds for claim in result.claims if claim.name == name)


def test_an_honest_run_passes_and_names_what_rests_on_whose_word(run: Path) -> None:
    result = audit_run(run)
    assert failures(result) == set()
    assert result.passed
    assert UNPINNED in result.notes
    assert verdict(result, "Signer") is None
    assert any("sums are what clients sent with their noise" in note for note in result.notes)
    assert verdict(result, "Code") is True
    summary = json.loads((run / "summary.json").read_text())
    assert result.ledger_head == summary["ledger_head"]
    assert result.signer == summary["signer"]
    assert result.delta == summary["privacy"]["delta"]
    assert [point.round for point in result.curve] == [1, 2, 3, 4]
    assert result.curve[-1].spent.to_json() == pytest.approx(summary["privacy"]["epsilon"])


def test_what_a_client_s_own_noise_protects_is_said(run: Path) -> None:
    """If all others collude with the server: one share of V*/n_cap, for each of its rounds."""
    claim = next(c for c in audit_run(run).claims if c.name.endswith("all others colluding"))
    private, _ = read_private(run / "private.jsonl")
    turns = max(max(line["participations"]) for line in private.values())
    plan = plan_of(entries(run)[0][1])
    share = plan.noise_multiplier / math.sqrt(plan.cap)
    expected = gaussian_epsilon(plan.delta_of("server"), share / math.sqrt(turns))
    assert claim.rederived.startswith(f"{epsilon_text(expected)} after {turns} rounds")
    assert "made by this simulation" in claim.rests_on
    assert expected > (audit_run(run).curve[-1].spent.server or math.inf)


@pytest.mark.parametrize(
    ("dropout", "said"),
    [
        (
            0.05,
            "each member of a cohort being lost with probability at most 0.05, independently of "
            "the others",
        ),
        (0.0, "no member of a cohort being lost"),
    ],
)
def test_delta_rests_on_the_chance_that_each_member_is_lost(
    dropout: float, said: str, run: Path
) -> None:
    """That is what was assumed; a cohort may well lose a larger share of its members."""
    header = entries(run)[0][1]
    plan = plan_of(header).changed(dropout=dropout)
    claim = next(header_claims(header, plan))
    assert claim.name == "Delta and its parts"
    assert claim.rests_on == said


def test_the_pinned_signer_settles_who_signed(run: Path, signer: Signer) -> None:
    result = audit_run(run, key=signer.public_hex)
    assert verdict(result, "Signer") is True
    assert UNPINNED not in result.notes
    assert result.passed


def test_a_key_may_be_a_file_and_must_be_one(run: Path, signer: Signer, tmp_path: Path) -> None:
    path = tmp_path / "coordinator.pub"
    path.write_text(signer.public_hex + "\n")
    assert audit_run(run, key=str(path)).passed
    with pytest.raises(LedgerError, match="not a public key"):
        audit_run(run, key="0123")


def test_the_curve_is_the_accountant_after_each_round(run: Path) -> None:
    view = read_ledger(run / "ledger.jsonl")
    private, _ = read_private(run / "private.jsonl")
    accountant = ViewAccountant(plan_of(view.header))
    expected = [(number, accountant.spent()) for number in charge_rounds(accountant, view, private)]
    assert [(point.round, point.spent) for point in audit_run(run).curve] == expected


def test_a_published_folder_supports_the_outsider_alone(run: Path, tmp_path: Path) -> None:
    published = publish_run(run, tmp_path / "published").path
    result = audit_run(published)
    assert result.passed
    spent = result.curve[-1].spent
    assert spent.outsider == pytest.approx(audit_run(run).curve[-1].spent.outsider)
    assert spent.participant is None
    assert spent.server is None
    assert verdict(result, "Epsilon, server view") is None
    assert any("private.jsonl is not here" in note for note in result.notes)


def test_without_private_lines_a_participant_below_the_outsider_is_refused(run: Path) -> None:
    (run / "private.jsonl").unlink()
    edit_json(run, lambda body: body["privacy"]["epsilon"].update(participant=0.5))
    assert failed(run) == {"Epsilon, participant view", "What is not published, as closed"}


@pytest.mark.parametrize(
    "settings",
    [
        ("privacy.mechanism=central-gaussian",),
        ("privacy.mechanism=local-gaussian", "privacy.noise_multiplier=2.0"),
        ("privacy.noise_multiplier=1.0", "cohort.sampling=fixed"),
        ("privacy.epsilon=6.0",),
        ("privacy.noise_multiplier=0.4",),  # budgets of hundreds: two accountants differ most
        (
            "privacy.mechanism=banded-mf",
            "cohort.sampling=min-separation",
            "cohort.min_separation=2",
            "privacy.max_participations=2",
            "privacy.noise_multiplier=2.0",
        ),
        ("evaluation.data=none",),
        ("evaluation.every=3",),
        ("aggregation.protocol=secure", "cohort.expected=70"),
    ],
    ids=" ".join,
)
def test_other_honest_jobs_pass(settings: tuple[str, ...], tmp_path: Path) -> None:
    folder = harness.run(job(*settings), out=tmp_path / "run").folder
    result = audit_run(folder)
    assert failures(result) == set()
    assert verdict(result, "Epsilon, outsider view") is True
    if "privacy.mechanism=central-gaussian" in settings:
        assert math.isinf(result.curve[-1].spent.server or 0.0)
        assert verdict(result, "Epsilon cross-check: second opinion") is True
        name = "Epsilon cross-check: not below what an attack achieves"
        assert verdict(result, name) is True


def test_single_examples_are_named_as_what_is_protected(tmp_path: Path) -> None:
    """Every view compares one example more or less, amplified by its client's secret batches."""
    folder = harness.run(
        job(
            "privacy.mechanism=example-gaussian",
            "privacy.unit=example",
            "privacy.noise_multiplier=2.0",
            "population.partition=iid",
            "population.clients=4",
            "cohort.expected=4",
            "cohort.sampling=fixed",
            "cohort.min_survivors=1",
            "aggregation.dropout=0.0",
            "rounds.count=1",
            "engine.path=auto",
            "engine.chunk=0",
        ),
        out=tmp_path / "run",
    ).folder
    result = audit_run(folder)
    assert failures(result) == set()
    assert set(result.neighbours) == {"outsider", "participant", "server"}
    assert set(result.neighbours.values()) == {"add or remove one example of one client"}
    by = {claim.name: claim.by for claim in result.claims}
    for view in ("outsider", "participant", "server"):
        assert by[f"Epsilon, {view} view"] == (
            "privacy loss distributions (connect the dots) of every client's local batches, which "
            "amplify"
        )


@pytest.mark.parametrize(
    ("settings", "server"),
    [
        ((), "exact Gaussian (Balle and Wang) of each client's own rounds"),
        (
            ("cohort.participation=0.5", "cohort.sampling=fixed"),
            "privacy loss distributions (connect the dots) of each client's own rounds",
        ),
    ],
)
def test_an_epsilon_names_the_accountant_that_gave_it(
    settings: tuple[str, ...], server: str, tmp_path: Path
) -> None:
    result = audit_run(harness.run(job(*settings), out=tmp_path / "run").folder)
    by = {claim.name: claim.by for claim in result.claims}
    assert by["Epsilon, server view"] == server
    outsider = "Rényi divergences" if settings else "privacy loss distributions (connect the dots)"
    assert by["Epsilon, outsider view"].startswith(outsider)


@pytest.mark.parametrize(
    ("code", "holds", "words"),
    [
        (None, None, "1 do not say what they ran"),
        ("same", True, "the same in all 1 resumptions"),
        ("ab" * 32, None, "resumption 1 ran other code: abab"),
        ("x", False, "resumption 1 ran other code: x"),
    ],
)
def test_a_run_resumed_with_other_code_is_named(
    run: Path, signer: Signer, code: str | None, holds: bool | None, words: str
) -> None:
    lines = entries(run)
    header = lines[0][1]
    body: dict[str, Any] = {"torn_ledger_bytes": 0, "torn_private": False}
    if code is not None:
        body["versions"] = header["versions"]
        body["code_sha256"] = header["code_sha256"] if code == "same" else code
    lines.insert(3, ("resume", body))
    lines[-1][1]["lines"] += 1
    head = sign_again(run, lines, signer)
    edit_json(run, lambda body: body.update(ledger_head=head))
    result = audit_run(run)
    claim = next(claim for claim in result.claims if claim.name == "Code after resuming")
    assert claim.holds is holds
    assert words in claim.rederived
    assert failures(result) == ({"Code after resuming"} if holds is False else set())


def test_no_mechanism_claims_nothing_and_says_so_loudly(tmp_path: Path) -> None:
    result = audit_run(harness.run(job("privacy.mechanism=none"), out=tmp_path / "run").folder)
    assert result.passed
    assert math.isinf(result.curve[-1].spent.outsider)
    assert any("NONE" in note for note in result.notes)
    published = publish_run(tmp_path / "run", tmp_path / "out").path
    spent = audit_run(published).curve[-1].spent
    assert (spent.participant, spent.server) == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("mechanism", "stated"),
    [
        ("none", {"outsider": 0.5, "participant": 0.6, "server": 0.7}),
        ("none", {"outsider": 1e308}),
        ("central-gaussian", {"server": 0.7}),
    ],
)
def test_no_number_is_an_infinite_epsilon(
    mechanism: str, stated: dict[str, float], signer: Signer, tmp_path: Path
) -> None:
    settings = (f"privacy.mechanism={mechanism}", "rounds.count=1")
    run = harness.run(job(*settings), out=tmp_path / "run").folder
    edit_json(run, lambda body: body["privacy"]["epsilon"].update(stated))
    close_again(run, signer)
    assert failed(run) == {f"Epsilon, {view} view" for view in stated}


@pytest.mark.parametrize("derivable", [True, False])
def test_however_little_noise_supports_no_false_number(
    derivable: bool, signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a loss distribution is computed for it or not."""
    if not derivable:
        monkeypatch.setattr(spending, "_HOPELESS", 600.0)  # 628 by Rényi orders
    settings = ("privacy.mechanism=central-gaussian", "privacy.noise_multiplier=0.04")
    run = harness.run(job(*settings, "rounds.count=1"), out=tmp_path / "run").folder
    assert bool(failed(run)) is not derivable

    def state(outsider: float | None, budget: float | None, total: object = None) -> None:
        epsilon = {"outsider": outsider, "participant": None, "server": None}
        changes = {"epsilon": epsilon, "budget": budget, "total": total}
        edit_json(run, lambda body: body["privacy"].update(changes))
        close_again(run, signer)

    state(0.1, 0.1, total={"runs": 1, "before": 0.1, "epsilon": 0.2, "delta": 1e-5})
    stated = {"Epsilon, outsider view", "Budget in the summary"}
    assert failed(run) == stated | {"Tuning runs and the total with them"}
    if not derivable:
        state(None, None)
        assert failed(run) == set()
        said = next(c for c in audit_run(run).claims if c.name == "Epsilon, outsider view")
        assert (said.holds, said.claimed) == (None, "nothing")
        assert "bound by Rényi orders exceeds 600" in said.rederived


def test_a_budget_is_not_kept_where_no_cost_is_derived(run: Path) -> None:
    evidence = gather(run)
    plan = plan_of(entries(run)[0][1]).changed(budget=8.0)
    found = {each.name: each.holds for each in underivable_claims(evidence, "for a reason", plan)}
    assert set(found.values()) == {False}
    assert len(found) == 4
    assert "Budget kept" in found


def test_a_sum_in_floating_point_is_no_release(tmp_path: Path) -> None:
    folder = harness.run(job("aggregation.protocol=float"), out=tmp_path / "run").folder
    result = audit_run(folder)
    assert failures(result) == set()
    assert any("NOT A RELEASE" in note for note in result.notes)


def test_a_seeded_run_is_reproducible_so_not_private(tmp_path: Path) -> None:
    folder = harness.run(
        job(), out=tmp_path / "run", randomness=SeededRandomness(b"a test's seed")
    ).folder
    assert failed(folder) == {"Randomness"}
    said = next(claim for claim in audit_run(folder).claims if claim.name == "Randomness")
    assert "reproducible, not private" in said.rederived


def test_an_interrupted_run_is_a_note_with_what_was_spent_so_far(run: Path, signer: Signer) -> None:
    head = sign_again(run, entries(run)[:-1], signer)
    edit_json(run, lambda body: body.update(status="interrupted", ledger_head=head))
    result = audit_run(run)
    assert failures(result) == {"Model file", "Metrics"}  # nothing binds them
    edit_json(run, lambda body: body.update(model_sha256=None, metrics={}))
    (run / "model.pt").unlink()
    (run / "metrics.jsonl").unlink()
    result = audit_run(run)
    assert failures(result) == set()
    assert verdict(result, "Ledger is complete") is None
    assert any("not finished" in note for note in result.notes)


def test_a_crash_counts_at_its_worst(run: Path, tmp_path: Path, signer: Signer) -> None:
    """A round that was reserved and never concluded, then a resume that ended the job."""
    calm = audit_run(run).curve
    lines = entries(run)
    cut = next(i for i, (kind, body) in enumerate(lines) if kind == "commit" and body["round"] == 4)
    sign_again(run, lines[:cut], signer)
    private = (run / "private.jsonl").read_text().splitlines(keepends=True)
    (run / "private.jsonl").write_text("".join(private[:3]))
    with Ledger.open(run / "ledger.jsonl", run / "private.jsonl", signer=signer) as ledger:
        ledger.close("completed")
    close_again(run, signer)
    result = audit_run(run)
    certain = {"Epsilon, server view", "Model weights"}  # those of the round that was cut off
    assert failures(result) - certain <= {"Epsilon, participant view"}  # the worst pair may stay
    assert certain <= failures(result)
    crashed = result.curve[-1].spent
    assert crashed.outsider == pytest.approx(calm[-1].spent.outsider)
    assert crashed.server is not None
    assert calm[-1].spent.server is not None
    assert crashed.server > calm[-1].spent.server
    edit_json(run, lambda body: body["privacy"].update(epsilon=crashed.to_json()))
    close_again(run, signer)
    result = audit_run(run)
    assert failures(result) == {"Model weights"}
    assert any("never concluded" in note for note in result.notes)


def test_a_missing_summary_claims_nothing(run: Path) -> None:
    (run / "summary.json").unlink()
    result = audit_run(run)
    assert result.passed
    assert verdict(result, "Summary") is None
    assert verdict(result, "Epsilon, outsider view") is None
    assert result.curve


@pytest.mark.parametrize("name", ["ledger.jsonl", "config.toml"])
def test_a_missing_file_that_every_run_has_is_refused(run: Path, name: str) -> None:
    (run / name).unlink()
    assert failed(run)


def test_what_an_epsilon_is_of_needs_no_summary(run: Path, signer: Signer) -> None:
    said = audit_run(run).terms
    assert said == Terms(
        mechanism="distributed-gaussian",
        unit="client",
        guarantee="outsider",
        protocol="ideal",
        clip=0.3,
        noise_multiplier=0.7,
        reproducible=False,
    )
    (run / "summary.json").unlink()
    assert audit_run(run).terms == said
    lines = entries(run)
    lines[0][1]["plan"] = {}
    sign_again(run, lines, signer)
    assert audit_run(run).terms is None


def test_a_run_that_trained_answers_nothing(run: Path, signer: Signer) -> None:
    """Nothing that was released could give these answers, and the report would show them."""
    estimate = {"label": "", "value": 3.0, "low": 2.0, "high": 4.0}
    answer = {"name": "ill", "ask": "count", "interval": "exact", "estimates": [estimate]}
    for query in ({"kind": "query", "answers": [answer]}, {}, 0, None):
        edit_json(run, functools.partial(_ask, query=query))
        close_again(run, signer)
        assert failed(run) == (set() if query is None else {"Answers"})


def _ask(summary: dict[str, Any], query: object) -> None:
    summary["query"] = query


def test_nothing_to_audit(tmp_path: Path, run: Path) -> None:
    with pytest.raises(AuditInputError, match="no such run folder"):
        audit_run(tmp_path / "nowhere")
    with pytest.raises(AuditInputError, match="no such run folder"):
        audit_run(run / "summary.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AuditInputError, match="not a run's folder"):
        audit_run(tmp_path / "empty")


@pytest.mark.parametrize("version", [2, "1", None, True])
def test_another_version_is_not_guessed_at(run: Path, version: object) -> None:
    edit_json(run, lambda body: body.update(version=version))
    with pytest.raises(AuditInputError, match="version"):
        audit_run(run)


def test_a_later_ledger_format_is_not_guessed_at(run: Path, signer: Signer) -> None:
    lines = entries(run)
    lines[0][1]["format"] = "fedsys-ledger-2"
    sign_again(run, lines, signer)
    with pytest.raises(AuditInputError, match="fedsys-ledger-2"):
        audit_run(run)


def test_audit_json_says_it_all_and_replaces_a_link(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (run / "audit.json").symlink_to(victim)
    result = audit_run(run)
    path = write(run, result)
    assert victim.read_text() == "precious"
    body = json.loads(path.read_text())
    assert body == json.loads(to_json(result))
    assert body["version"] == 1
    assert body["passed"] is True
    assert len(body["claims"]) == len(result.claims)
    assert body["epsilon"]["outsider"] == result.curve[-1].spent.outsider
    assert not [path.name for path in run.iterdir() if path.name.endswith(".partial")]


def test_a_folder_that_was_moved_still_passes(run: Path, tmp_path: Path) -> None:
    shutil.move(run, tmp_path / "elsewhere")
    assert audit_run(tmp_path / "elsewhere").run == "elsewhere"
    assert audit_run(tmp_path / "elsewhere").passed
