"""The audit of one run: every claim that its folder can support, derived again.

>>> from pathlib import Path
>>> from fedsys.audit import audit_run
>>> audit_run(Path("runs/quickstart"), key="9f86…").passed  # doctest: +SKIP
True
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.audit.accountants import cross_checks
from fedsys.audit.asked import asked_claims
from fedsys.audit.chain import UNPINNED, chain_claim, cohort_claims, ledger_claims, signer_claim
from fedsys.audit.cohorts import Cohorts
from fedsys.audit.countersigned import (
    Countersigned,
    countersigned_claims,
    read_countersignatures,
)
from fedsys.audit.epsilons import alone_claim, epsilon_claims, event_claim, underivable_claims
from fedsys.audit.evidence import Evidence, gather
from fedsys.audit.members import known_members, members_claims
from fedsys.audit.openings import opening_claims, reuse_claim
from fedsys.audit.others import others_claim
from fedsys.audit.outcome import outcome_claims
from fedsys.audit.page import PageMaker, page_claim
from fedsys.audit.preparation import preparation_claim, withheld
from fedsys.audit.settings import config_claims, header_claims, origin_claims, plan_claim
from fedsys.audit.spending import Spending, derive, require_size, reserved_events
from fedsys.audit.start import start_claim
from fedsys.audit.stopping import ending_claim, stopping_claim
from fedsys.audit.tuning import Before, total_of, tuning_claim
from fedsys.audit.witnessed import (
    Pins,
    Witnessed,
    load_checkpoint,
    load_witnesses,
    witnessed,
)
from fedsys.audit.wording import plain
from fedsys.errors import LedgerError, MechanismError
from fedsys.privacy import (
    VIEWS,
    Event,
    LedgerView,
    PrivacyPlan,
    View,
    load_public_key,
    plan_of,
)
from fedsys.privacy.accounting.adding import Part, part_of, promised_part
from fedsys.records import AuditResult, Claim, Terms, Total

__all__ = [
    "Audit",
    "audit_run",
    "counted_part",
    "examine",
    "examine_with_page",
    "result_of",
]

_WORD = (
    "on the coordinator's word: that the noise was really added, that sampling was really random, "
    "that the population was really as large as stated"
)
_WORD_FOR_SUMS = (
    "on the coordinator's word: that sums are what clients sent with their noise, that the first "
    "cohort, and those after rounds without nonces, were really random, that the population was "
    "really as large as stated"
)
_NOT_COVERED = "they vouch for their own part, not for noise, sampling or anybody else"
_NOT_SAID = "they vouch for the order of the lines, not for what the lines say"
_NO_PINS = Pins()
_NO_PRIVACY = "MECHANISM NONE: no noise was added; epsilon is infinite and nothing is private"
_INTERRUPTED = (
    "the run is not finished: epsilon is what was spent so far, and lines cut off the end of the "
    "ledger would not be noticed"
)
_STOPPED = (
    "stopped early: epsilon is that of the rounds that ran, whose number was chosen from what they "
    "released and from the coordinator's own test data; that of all planned rounds (see “Stopped "
    "early”) holds whatever it was chosen from"
)
_NO_RELEASE = (
    "NOT A RELEASE: sums were computed in floating point, which secure aggregation cannot do; "
    "epsilon is that of the same job under protocol secure"
)
_NOT_ENCRYPTED = (
    "protocol {}: updates were summed without encryption; the participant's and the server's "
    "epsilon hold for the same job under protocol secure"
)


@dataclass(kw_only=True, slots=True)
class Audit:
    """What was found in one folder.

    Attributes:
        evidence: the files that were read.
        claims: in the order in which they were examined.
        plan: the header's plan, if usable.
        events: how often each event was reserved.
        countersigned: what agents countersigned; None if there is no such file.
        cohorts: the contents of ``private.jsonl``; None if it is absent or does not match the
            ledger's commitments.
        spending: the rounds' cost; None if it cannot be derived.
        withheld: why none of the run's epsilons can be claimed, whatever the rounds cost.
        witnessed: what witnesses vouch for; None if the ledger does not verify.
        total: the total with the tuning runs that the header states.
    """

    evidence: Evidence
    claims: list[Claim] = field(default_factory=list)
    plan: PrivacyPlan | None = None
    events: Counter[Event] = field(default_factory=Counter)
    cohorts: Cohorts | None = None
    countersigned: Countersigned | None = None
    spending: Spending | None = None
    withheld: str | None = None
    witnessed: Witnessed | None = None
    total: Total | None = None


def audit_run(
    run: Path,
    *,
    key: str | None = None,
    page: PageMaker | None = None,
    witnesses: Sequence[str] = (),
    checkpoints: Sequence[Path] = (),
    authority: str | None = None,
) -> AuditResult:
    """Checks every claim of a run that its folder can support.

    Whatever is wrong inside the folder becomes a failed claim.

    Args:
        run: the folder, private or published; untrusted.
        key: the signer's public key, as 64 hexadecimal digits or a file that holds them.
        page: makes a report's text, so that ``report.html`` is checked too.
        witnesses: keys of witnesses, or files that hold them; each must vouch for the ledger.
        checkpoints: files with checkpoints of this ledger, obtained from elsewhere.
        authority: the public key of the authority that signs rosters, in the same forms as `key`.

    Raises:
        AuditInputError: there is no such run, its version is not supported, or a witness's key or
            a checkpoint is malformed.
        LedgerError: ``key`` or ``authority`` is not a public key.
    """
    pinned = None if key is None else load_public_key(key)
    pins = Pins(
        witnesses=load_witnesses(witnesses),
        checkpoints=tuple((path.name, load_checkpoint(path)) for path in checkpoints),
        authority=None
        if authority is None
        else load_public_key(authority).public_bytes_raw().hex(),
    )
    return result_of(run, examine_with_page(run, pinned, pins, page=page), pinned)


def examine_with_page(
    run: Path,
    key: Ed25519PublicKey | None,
    pins: Pins = _NO_PINS,
    *,
    page: PageMaker | None = None,
) -> Audit:
    """As `examine`, and ``report.html`` too if `page` can make its text."""
    audit = examine(run, key, pins)
    view = audit.evidence.ledger.value
    if page is not None and view is not None:
        plainly = key is None and pins == Pins()
        bare = audit if plainly else examine(run, None)  # what the page was made from
        said = page_claim(run / "report.html", result_of(run, bare, None), view, page)
        audit.claims.extend([said] if said is not None else [])
    if page is not None:
        others = others_claim(run)
        audit.claims.extend([others] if others is not None else [])
    return audit


def result_of(run: Path, audit: Audit, key: Ed25519PublicKey | None) -> AuditResult:
    """The findings, as plain values."""
    view, plan, spending = audit.evidence.ledger.value, audit.plan, audit.spending
    return AuditResult(
        run=plain(run.resolve().name or run, 100),
        claims=tuple(audit.claims),
        curve=spending.curve if spending is not None else (),
        delta=plan.delta if plan is not None else None,
        ledger_head=view.head if view is not None else None,
        signer=view.signer if view is not None else None,
        notes=tuple(plain(note) for note in _notes(audit, key)),
        details=_details(audit),
        neighbours=_neighbours(view),
        withheld=audit.withheld,
        total=audit.total,
        terms=_terms(view, plan),
    )


def _terms(view: LedgerView | None, plan: PrivacyPlan | None) -> Terms | None:
    if view is None or plan is None:
        return None
    return Terms(
        mechanism=plan.mechanism,
        unit=plan.unit,
        guarantee=plan.guarantee,
        protocol=plain(view.header.get("protocol"), 20),
        clip=plan.clip,
        noise_multiplier=plan.noise_multiplier,
        reproducible=view.header.get("reproducible") is not False,
    )


def _neighbours(view: LedgerView | None) -> dict[str, str]:
    """What each view's epsilon compares, as the header declares it."""
    stated = None if view is None else view.header.get("neighbours")
    if not isinstance(stated, dict):
        return {}
    return {name: plain(stated[name]) for name in VIEWS if isinstance(stated.get(name), str)}


def examine(run: Path, key: Ed25519PublicKey | None, pins: Pins = _NO_PINS) -> Audit:
    """The audit with everything it derived, for further checks."""
    audit = Audit(evidence=gather(run))
    view = audit.evidence.ledger.value
    audit.claims.append(chain_claim(audit.evidence))
    if view is None:
        audit.claims.extend(underivable_claims(audit.evidence, "the ledger does not verify"))
        return audit
    audit.claims.append(signer_claim(view, key))
    audit.witnessed = witnessed(run, view, pins)
    audit.claims.extend(audit.witnessed.claims)
    problem = _read_plan(audit, view)
    audit.claims.extend(ledger_claims(view, audit.plan))
    audit.claims.append(plan_claim(problem, audit.plan))
    if audit.plan is not None:
        _examine_privacy(audit, view, audit.plan, pins.authority)
    else:
        audit.claims.extend(underivable_claims(audit.evidence, "the header holds no usable plan"))
    audit.claims.extend(asked_claims(audit.evidence, view, audit.plan))
    failed = audit.evidence.has_private and audit.cohorts is None
    audit.claims.extend(outcome_claims(audit.evidence, view, audit.plan, cohorts_failed=failed))
    if audit.plan is not None:
        ended = ending_claim(view, audit.plan, audit.spending)
        early = stopping_claim(audit.evidence, view, audit.plan)
        audit.claims.extend(each for each in (ended, early) if each is not None)
    return audit


def _read_plan(audit: Audit, view: LedgerView) -> str | None:
    try:
        plan = plan_of(view.header)
        require_size(plan)
    except (LedgerError, MechanismError, TypeError, ValueError, ArithmeticError) as error:
        return str(error)
    audit.plan = plan
    return None


def _examine_privacy(
    audit: Audit, view: LedgerView, plan: PrivacyPlan, authority: str | None
) -> None:
    evidence, claims = audit.evidence, audit.claims
    claims.extend(header_claims(view.header, plan))
    claims.extend(config_claims(evidence, view, plan))
    claims.extend(origin_claims(evidence, view, plan))
    claims.append(preparation_claim(evidence, view, plan))
    audit.withheld = withheld(evidence, view, plan)
    members = known_members(evidence.run, view, plan)
    claims.extend(members_claims(members, view, authority))
    audit.countersigned = read_countersignatures(evidence.run, view, plan, members)
    found = None
    if evidence.has_private:
        found = Cohorts(evidence.run / "private.jsonl", view, plan, audit.countersigned)
    problem, unread = None, None
    try:
        audit.events = reserved_events(view, plan)
        audit.spending = derive(view, plan, found)
    except LedgerError as error:
        unread = str(error)
        problem = unread if not audit.events else None
    if found is not None:
        found.finish()
        if not found.problems:
            audit.cohorts = found
        elif audit.events:
            audit.spending, unread = _without_cohorts(view, plan)
    claims.extend(countersigned_claims(audit.countersigned, view))
    covered = audit.countersigned.covers if audit.countersigned is not None else None
    claims.extend(cohort_claims(found, view, plan, covered))
    claims.extend(opening_claims(None if found is None or found.problems else found.openings))
    if covered is not None:
        claims[0] = dataclasses.replace(claims[0], rests_on=f"{claims[0].rests_on}; {covered}")
    claims.append(reuse_claim(view, plan))
    claims.append(event_claim(problem, audit.events, plan))
    if audit.spending is None:
        claims.extend(underivable_claims(evidence, unread or "not derived", plan))
    else:
        failed = found is not None and bool(found.problems)
        claims.extend(
            epsilon_claims(
                evidence, plan, audit.spending, cohorts_failed=failed, withheld=audit.withheld
            )
        )
    claims.append(_add_tuning(audit, view, plan))
    begun = start_claim(evidence, view)
    claims.extend([begun] if begun is not None else [])
    if audit.spending is None:
        return
    if audit.cohorts is not None:
        lost = sum(record.outcome is None for record in view.rounds)
        trust = view.header.get("trust")
        alone = alone_claim(
            plan,
            audit.events,
            audit.cohorts.most_participations + lost,
            trust.get("roster") if isinstance(trust, dict) else None,
        )
        claims.extend([alone] if alone is not None else [])
    if plan.protected:
        claims.extend(cross_checks(plan, audit.spending))


def _add_tuning(audit: Audit, view: LedgerView, plan: PrivacyPlan) -> Claim:
    """Stores the total with tuning runs; the claim is that every file states it."""
    problem, stated, spending = None, view.header.get("tuning"), audit.spending
    try:
        if spending is not None:
            steps = spending.accountant.outsider.steps()
            audit.total = total_of(stated, plan, steps, spending.spent.outsider)
        elif Before.of(stated) is not None:
            problem = "stated, while its own rounds cannot be accounted for"
    except (ValueError, MechanismError, ArithmeticError, MemoryError) as error:
        problem = plain(error)
    return tuning_claim(audit.evidence, view, audit.total, problem)


def _without_cohorts(view: LedgerView, plan: PrivacyPlan) -> tuple[Spending | None, str | None]:
    """What the ledger alone supports, or why it supports nothing."""
    try:
        return derive(view, plan, None), None
    except LedgerError as error:
        return None, str(error)


def _notes(audit: Audit, key: Ed25519PublicKey | None) -> Iterator[str]:
    view, plan = audit.evidence.ledger.value, audit.plan
    if view is None:
        return
    if plan is not None and not plan.protected:
        yield _NO_PRIVACY
    if key is None:
        yield UNPINNED
    if view.closed is None:
        yield _INTERRUPTED
    covered = audit.countersigned.covers if audit.countersigned is not None else None
    if covered is not None:
        yield (
            f"ledger {covered}: its lines up to that round cannot be rewritten without them; "
            f"{_NOT_COVERED}"
        )
    by = audit.witnessed.covers if audit.witnessed is not None else None
    if by is not None:
        yield f"ledger {by}: those lines cannot be rewritten without the witnesses; {_NOT_SAID}"
    if view.ended_early and plan is not None and plan.protected:
        yield _STOPPED
    lost = sum(record.outcome is None for record in view.rounds)
    if lost:
        yield f"{lost} rounds were reserved and never concluded: charged at their worst case"
    if plan is not None and plan.protected:
        yield _WORD_FOR_SUMS if _drawn_again(audit.cohorts) else _WORD
    protocol = view.header.get("protocol")
    if protocol == "float":
        yield _NO_RELEASE
    elif protocol != "secure" and plan is not None and plan.protected:
        yield _NOT_ENCRYPTED.format(plain(protocol, 20))
    if not audit.evidence.has_private:
        yield (
            "private.jsonl is not here: the outsider's epsilon is derived; the participant's and "
            "the server's follow from who took part when"
        )
    yield f"ledger head {view.head}: compare it with a copy that was recorded elsewhere"


def _drawn_again(cohorts: Cohorts | None) -> bool:
    """Whether cohorts and the coordinator's noise were drawn again from what it committed to."""
    if cohorts is None:
        return False
    found = cohorts.openings
    whole = found.problem is None and found.noise_problem is None
    return whole and found.stated and 0 < found.topped == found.releases


def counted_part(audit: Audit, view: View = "outsider") -> Part:
    """What a run with a plan and a cost counts in a total with others: its rounds, or all that were
    planned where results decided how many there were.

    Args:
        audit: the run's.
        view: other than the outsider's only where cohorts are known.
    """
    ledger, plan, spending = audit.evidence.ledger.value, audit.plan, audit.spending
    if ledger is None or plan is None or spending is None:
        raise LedgerError("its rounds cannot be accounted for")
    if ledger.ended_early:
        return promised_part(plan, view)
    return part_of(plan, view, spending.accountant.steps_in(view))


def _details(audit: Audit) -> dict[str, Any]:
    details: dict[str, Any] = {"private": audit.cohorts is not None}
    view, plan = audit.evidence.ledger.value, audit.plan
    if view is not None:
        details["rounds"] = len(view.rounds)
        details["closed"] = view.closed is not None
        details["tree"] = {"size": view.lines, "root": view.tree.root().hex()}
    if audit.witnessed is not None and audit.witnessed.sizes:
        details["witnessed"] = audit.witnessed.sizes
    if plan is not None:
        details["mechanism"] = plan.mechanism
        details["population"] = plan.population
        details["protected"] = plan.protected
    if audit.spending is not None:
        details["outsider_by_rdp"] = audit.spending.rdp_outsider
        if plan is not None and plan.protected:
            details["outsider_part"] = counted_part(audit).to_json()
    return details
