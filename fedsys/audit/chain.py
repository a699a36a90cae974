"""Claims about the ledger itself: chain, signatures, signer, completeness, private commitments."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.audit.cohorts import Cohorts
from fedsys.audit.evidence import Evidence
from fedsys.audit.sampling_tests import FALSE_ALARM, unlikely
from fedsys.audit.wording import claim, value_text
from fedsys.privacy import LedgerView, PrivacyPlan
from fedsys.records import Claim

__all__ = ["UNPINNED", "chain_claim", "cohort_claims", "ledger_claims", "signer_claim"]

UNPINNED = "signer not pinned: re-signing is undetectable"

_COORDINATOR = "the coordinator's word"


def chain_claim(evidence: Evidence) -> Claim:
    """Whether every line follows from the one before it and is signed."""
    view = evidence.ledger.value
    problem = evidence.ledger.problem
    if evidence.ledger.missing:
        problem = "ledger.jsonl is missing"
    elif view is not None and view.tail:
        problem = f"it ends in an unfinished line of {len(view.tail)} bytes: interrupted, or cut"
    return claim(
        "Ledger chain and signatures",
        problem is None,
        claimed="unaltered since it was written",
        rederived=problem or f"{view.lines if view else 0} lines chained and signed",
        by="SHA-256 chain, Ed25519",
        rests_on="the signing key staying with the coordinator",
    )


def signer_claim(view: LedgerView, key: Ed25519PublicKey | None) -> Claim:
    """Whether the signer is the one that the auditor knows."""
    if key is None:
        return claim(
            "Signer",
            None,
            claimed=view.signer,
            rederived=UNPINNED,
            by="give its public key with --key",
            rests_on="the header's own word",
        )
    pinned = key.public_bytes_raw().hex()
    return claim(
        "Signer",
        pinned == view.signer,
        claimed=view.signer,
        rederived=pinned,
        by="the key given with --key",
        rests_on="where that key came from",
    )


def ledger_claims(view: LedgerView, plan: PrivacyPlan | None) -> Iterator[Claim]:
    """Completeness, and the number of rounds against the plan."""
    if view.closed is None:
        yield claim(
            "Ledger is complete",
            None,
            claimed=f"{view.lines} lines, no closing line",
            rederived="the job was interrupted, or later lines were cut off",
            by="the closing line",
            rests_on="the party that handed over the folder",
        )
    else:
        stated = view.closed.get("lines")
        yield claim(
            "Ledger is complete",
            stated == view.lines and type(stated) is int,
            claimed=f"closed after {value_text(stated)} lines",
            rederived=f"{view.lines} lines, the last one closes it",
            by="the closing line",
        )
    if plan is None:
        return
    numbers = [record.round for record in view.rounds]
    gap = next((n for n, found in enumerate(numbers, start=1) if n != found), None)
    over = len(numbers) > plan.rounds
    words = f"{len(numbers)} reserved"
    if gap is not None:
        words = f"round {gap} is missing"
    elif over:
        words += f", {len(numbers) - plan.rounds} more than delta was split among"
    yield claim(
        "Rounds within the plan",
        gap is None and not over,
        claimed=f"at most {plan.rounds}",
        rederived=words,
        by="counting reserve lines",
    )
    wrong = next(_malformed(view), None)
    yield claim(
        "Hashes of what was released",
        wrong is None,
        claimed="every commit states its sum's and its model's or answer's",
        rederived=wrong or "each is there, and 64 hexadecimal digits",
        by="the header and every commit line",
        rests_on=_COORDINATOR,
    )


def _malformed(view: LedgerView) -> Iterator[str]:
    """Places where a hash is missing or is none."""
    if not _is_hash(view.header.get("initial_weights_sha256")):
        yield "the header's initial_weights_sha256 is not a hash"
    released = "weights_sha256" if view.header.get("kind") == "train" else "answer_sha256"
    for record in view.rounds:
        if record.outcome == "commit":
            body = record.body
            for name in ("aggregate_sha256", released):
                if not _is_hash(body.get(name)):
                    yield f"round {record.round}: {name} is not a hash"


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def cohort_claims(
    cohorts: Cohorts | None, view: LedgerView, plan: PrivacyPlan, countersigned: str | None = None
) -> Iterator[Claim]:
    """Who was invited and summed, against the salted commitments and the plan's limits.

    Args:
        cohorts: the contents of ``private.jsonl``, if it is here.
        view: the ledger.
        plan: the plan in its header.
        countersigned: what agents' own signatures cover, if anything.
    """
    word = _COORDINATOR
    if countersigned is not None:
        word += f", and the agents' for their own part ({countersigned})"
    concluded = sum(record.outcome is not None for record in view.rounds)
    name = "Private commitments (sampled, survivors, participations)"
    if cohorts is None:
        yield claim(
            name,
            None,
            claimed=f"commitments to {concluded} rounds",
            rederived="private.jsonl is not here",
            by="salted SHA-256",
            rests_on=_COORDINATOR,
        )
        return
    yield claim(
        name,
        not cohorts.problems,
        claimed=f"{concluded} rounds as the ledger committed to them",
        rederived="; ".join(cohorts.problems) or f"{cohorts.opened} rounds opened",
        by="salted SHA-256",
        rests_on=f"the lists being true: {word}",
    )
    if cohorts.problems:
        return
    limits = f"cap {plan.cap}, at least {plan.min_survivors} survivors"
    if plan.max_participations is not None:
        limits += f", a client in at most {plan.max_participations} rounds"
    yield claim(
        "Cohort limits",
        not cohorts.broken,
        claimed=limits,
        rederived="; ".join(cohorts.broken)
        or f"kept in every committed round; a client in {cohorts.most_participations} at most",
        by="private.jsonl",
        rests_on=f"the lists being true: {word}",
    )
    if cohorts.opened:
        yield _sampling_claim(cohorts, plan, f"the lists being true: {word}")


_DRAWN = {
    "poisson": "each client with probability {:.6g}, independently in every round",
    "fixed": "a uniform subset of {:g} of the clients, independently in every round",
}


_NOT_DRAWN = {
    "arrivals": "a buffer takes the uploads that come first",
    "chosen": "code of the job's own chooses who takes part",
    "min-separation": "clients only keep their distance between rounds",
}


def _sampling_claim(cohorts: Cohorts, plan: PrivacyPlan, rests_on: str) -> Claim:
    """Whether the cohorts could have been drawn as the accounting assumes."""
    counts = cohorts.counts
    if counts is None:
        return claim(
            "Cohorts look sampled",
            None,
            claimed=f"no randomness: {_NOT_DRAWN[plan.sampling]}",
            rederived="nothing to test; “Cohort limits” states what was enforced",
            by="the plan: no amplification by sampling is counted",
            rests_on=rests_on,
        )
    reason = unlikely(counts)
    number = plan.expected_cohort if plan.sampling == "fixed" else plan.rate
    drawn = _DRAWN[plan.sampling].format(number)
    if counts.scheme.groups > 1:
        drawn = (
            f"each client of the round's group (one of {counts.scheme.groups}) with probability "
            f"{counts.scheme.rate:.6g}, independently in every round"
        )
    return claim(
        "Cohorts look sampled",
        reason is None,
        claimed=drawn,
        rederived=reason or f"nothing against it in {counts.rounds} rounds",
        by="tests of sizes, of each client's count, of their spread and of overlaps; honest "
        f"sampling fails them with probability at most {FALSE_ALARM:g}",
        rests_on=f"{rests_on}; these tests cannot distinguish secret draws from public ones",
    )
