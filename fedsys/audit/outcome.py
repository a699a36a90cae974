"""Claims about what came out: ``summary.json``, ``model.pt`` and ``metrics.jsonl``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from fedsys.audit.asked import kind_of
from fedsys.audit.evidence import Evidence
from fedsys.audit.wording import claim, value_text
from fedsys.errors import LedgerError
from fedsys.improvement import STOPPED
from fedsys.privacy import LedgerView, PrivacyPlan
from fedsys.privacy.ledger.closing import (
    COHORT_SECRETS,
    FILES,
    NEVER_PUBLISHED,
    SALT,
    file_sha256,
    hidden_epsilons,
    secrets_commitment,
    summary_sha256,
)
from fedsys.records import Claim

__all__ = ["UNFINISHED", "outcome_claims"]

UNFINISHED = "; the run is not finished, so no closing line binds it"
"""Added to a claim about a file that an unclosed ledger does not cover."""
PRIVATE, *_OTHERS = NEVER_PUBLISHED
_STATUSES = ("completed", "budget-exhausted", STOPPED, "interrupted")


def outcome_claims(
    evidence: Evidence, view: LedgerView, plan: PrivacyPlan | None, *, cohorts_failed: bool
) -> Iterator[Claim]:
    """Everything in the folder next to the ledger that states a result.

    Args:
        evidence: the files that were read.
        view: the ledger.
        plan: the plan in its header, if usable.
        cohorts_failed: whether ``private.jsonl`` does not match the ledger's commitments, which is
            a failed claim of its own.
    """
    summary = evidence.summary.value
    if summary is None:
        missing = evidence.summary.missing
        yield claim(
            "Summary",
            None if missing else False,
            claimed="nothing" if missing else "unreadable",
            rederived="summary.json is missing: the run was cut off, or somebody removed it"
            if missing
            else evidence.summary.problem,
            by="reading summary.json",
        )
    else:
        yield from _summary_claims(summary, view)
        yield _bound_summary_claim(summary, view)
    yield from _secrets_claims(evidence, view, cohorts_failed=cohorts_failed)
    if not _has_no_model(evidence, view):
        yield _model_claim(evidence, view)
    if evidence.model.value is not None and plan is not None:
        yield _weights_claim(evidence, view, plan)
    yield _metrics_claim(evidence, view)


def _summary_claims(summary: dict[str, Any], view: LedgerView) -> Iterator[Claim]:
    head = summary.get("ledger_head")
    yield claim(
        "Ledger head",
        head == view.head,
        claimed=value_text(head),
        rederived=view.head
        + ("" if head == view.head else ": lines were added, cut off or changed since"),
        by="summary.json against the last line's hash",
    )
    signer = summary.get("signer")
    yield claim(
        "Signer in the summary",
        signer == view.signer,
        claimed=value_text(signer),
        rederived=view.signer,
        by="summary.json against the header",
    )
    last = view.rounds[-1].round if view.rounds else 0
    rounds = summary.get("rounds")
    yield claim(
        "Rounds",
        type(rounds) is int and rounds == last,
        claimed=value_text(rounds),
        rederived=last,
        by="summary.json against the ledger",
    )
    status = summary.get("status")
    closed = None if view.closed is None else view.closed.get("reason")
    expected = "interrupted" if view.closed is None else closed
    yield claim(
        "Status",
        status == expected and status in _STATUSES,
        claimed=value_text(status),
        rederived=f"closed: {value_text(closed)}" if view.closed is not None else "not closed",
        by="summary.json against the closing line",
    )


def _bound_summary_claim(summary: dict[str, Any], view: LedgerView) -> Claim:
    """The summary as it was when the ledger was closed, without what is never published."""
    stated = None if view.closed is None else view.closed.get("summary_sha256")
    try:
        found = summary_sha256(summary)
    except LedgerError as error:
        found = str(error)
    return claim(
        "Summary as closed",
        None if view.closed is None else found == stated,
        claimed=value_text(stated),
        rederived=f"{found}{UNFINISHED if view.closed is None else ''}",
        by="SHA-256 of summary.json, without what reveals cohorts, against the closing line",
        rests_on="the coordinator's word when the ledger was closed",
    )


def _secrets_claims(
    evidence: Evidence, view: LedgerView, *, cohorts_failed: bool
) -> Iterator[Claim]:
    """What is never published, as it was when the ledger was closed; nothing where it is not here,
    or where an older ledger does not bind it."""
    summary, data = evidence.summary.value or {}, evidence.run / "data.json"
    named = [key for key in COHORT_SECRETS if key in summary]
    named += [name for name in (data.name, *_OTHERS) if os.path.lexists(evidence.run / name)]
    if evidence.has_private:
        named += [PRIVATE] if summary else []
    else:  # from it they are derived
        named += [f"epsilon of the {name}" for name in hidden_epsilons(summary)]
    stated = None if view.closed is None else view.closed.get("secrets")
    if not named or (view.closed is not None and "secrets" not in view.closed):
        return
    words = "" if view.closed is not None else UNFINISHED.removeprefix("; ")
    holds: bool | None = None
    if view.closed is not None:
        try:
            found = secrets_commitment(summary, data)
            holds = found is not None and found == stated
            words = found or f"summary.json has no {SALT}, so that nothing binds these"
            if holds and (other := _other_file(evidence, summary, cohorts_failed=cohorts_failed)):
                holds, words = False, f"{other} is not the file that was there"
        except LedgerError as error:
            holds, words = False, str(error)
    yield claim(
        "What is not published, as closed",
        holds,
        claimed=", ".join(named),
        rederived=words,
        by="salted SHA-256 of what reveals cohorts and data, against the closing line",
        rests_on="the coordinator's word when the ledger was closed",
    )


def _other_file(evidence: Evidence, summary: dict[str, Any], *, cohorts_failed: bool) -> str | None:
    """The first file that is not what a summary states of it; None where there is none, or where
    an older summary states nothing. A file that is not here claims nothing.

    Raises:
        LedgerError: one is not a regular file, or cannot be read.
    """
    stated = summary.get(FILES)
    if not isinstance(stated, dict):
        return None
    there = [name for name in NEVER_PUBLISHED if os.path.lexists(evidence.run / name)]
    if cohorts_failed:
        there = [name for name in there if name != PRIVATE]
    return next(
        (name for name in there if file_sha256(evidence.run / name) != stated.get(name)), None
    )


def _has_no_model(evidence: Evidence, view: LedgerView) -> bool:
    """Whether rounds asked, and neither a file nor the closing line claims a model."""
    named = None if view.closed is None else view.closed.get("model_sha256")
    return kind_of(view) in ("query", "evaluate") and named is None and evidence.model.missing


def _model_claim(evidence: Evidence, view: LedgerView) -> Claim:
    summary, found = evidence.summary.value, evidence.model.value
    named = None if view.closed is None else view.closed.get("model_sha256")
    stated = {"the ledger": named}
    if summary is not None:
        stated["summary.json"] = summary.get("model_sha256")
    words = found or evidence.model.problem or "model.pt is not here"
    holds: bool | None = found is not None and found == named
    if summary is not None and stated["summary.json"] != named:
        holds = False
    elif evidence.model.missing:
        holds = None
    elif view.closed is None:
        words += UNFINISHED
    return claim(
        "Model file",
        holds,
        claimed=", ".join(f"{value_text(v)} in {where}" for where, v in stated.items()),
        rederived=words,
        by="SHA-256 of model.pt in the folder",
        rests_on="this model being the last release: the coordinator's word",
    )


def _model_dimension(view: LedgerView, plan: PrivacyPlan) -> int:
    """The number of trained weights: what a client sends, less its blocks and its weight."""
    stated = view.header.get("model_dimension", plan.dimension)
    if isinstance(stated, bool) or not isinstance(stated, int):
        return plan.dimension
    return stated if 0 < stated < plan.dimension else plan.dimension


def _weights_claim(evidence: Evidence, view: LedgerView, plan: PrivacyPlan) -> Claim:
    """The weights in the file against those stated by the newest commit, or by the header."""
    committed = [record for record in view.rounds if record.outcome == "commit"]
    stated = view.header.get("initial_weights_sha256")
    where = "the header: no round was committed"
    if committed:
        stated = committed[-1].body.get("weights_sha256")
        where = f"the commit of round {committed[-1].round}"
    bound = view.header.get("frozen_sha256")
    dimension = _model_dimension(view, plan)
    found, problem = None, None
    try:
        from fedsys.audit.weights import weights_digest

        found = weights_digest(evidence.run / "model.pt", dimension)
    except ImportError:
        problem = "torch is not installed: the file was not opened"
    except LedgerError as error:
        problem = str(error)
    holds: bool | None
    if found is None:
        holds = None if "not installed" in (problem or "") else False
    else:
        holds = found.trained == stated
        words = f"{found.trained} of {dimension} weights"
        frozen = found.numbers - dimension
        if not holds and view.closed is None:
            holds = None
            problem = f"{found.trained}: from an earlier round; the run is not finished"
        elif holds and found.frozen != bound:
            holds = None if bound is None else False
            problem = (
                f"{words}, but names, forms or {frozen} frozen numbers give {found.frozen}, the "
                f"header has {value_text(bound)}"
            )
        elif frozen:
            words += f", and {frozen} frozen numbers as the header binds them"
    return claim(
        "Model weights",
        holds,
        claimed=f"{value_text(stated)} in {where}",
        rederived=problem or words,
        by="reading tensors from model.pt and nothing else",
        rests_on="these weights being what the rounds gave: the coordinator's word",
    )


def _metrics_claim(evidence: Evidence, view: LedgerView) -> Claim:
    metrics, problem = evidence.metrics.value, evidence.metrics.problem
    rounds = metrics.rounds if metrics is not None else []
    last = view.rounds[-1].round if view.rounds else 0
    summary = evidence.summary.value
    holds: bool | None = problem is None
    words = problem or "no metrics.jsonl"
    if metrics is not None:
        words = f"{len(rounds)} evaluations"
        if metrics.torn:
            holds = None if view.closed is None else False
            words += " and an unfinished line"
        if any(after <= before for before, after in pairwise(rounds)):
            holds, words = False, "rounds are repeated or out of order"
        elif rounds and not (rounds[0] >= 1 and rounds[-1] <= last):
            holds, words = False, f"evaluates round {value_text(rounds[-1])}; the ledger has {last}"
    if holds and view.closed is not None:
        stated = view.closed.get("metrics_sha256")
        if stated != (metrics.sha256 if metrics is not None else None):
            holds, words = False, "metrics.jsonl is not the file that the closing line binds"
    elif holds and rounds:
        holds, words = False, words + UNFINISHED
    newest = metrics.newest if metrics is not None else {}
    if holds and summary is not None and summary.get("metrics") != newest:
        holds, words = False, "summary.json's metrics are not those of the last evaluation"
    return claim(
        "Metrics",
        holds,
        claimed=f"evaluations of rounds 1 to {last}",
        rederived=words,
        by="metrics.jsonl against the ledger, its closing line and summary.json",
        rests_on="the evaluation itself: the coordinator's word",
    )
