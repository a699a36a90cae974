"""Claims about what was spent: each view's epsilon and the budget."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fedsys.agreement import agrees
from fedsys.audit.evidence import Evidence
from fedsys.audit.spending import Spending
from fedsys.audit.wording import claim, epsilon_text, plain, value_text
from fedsys.errors import MechanismError
from fedsys.privacy import VIEWS, Event, PrivacyPlan, View, guaranteed_epsilon
from fedsys.privacy.accounting.costs import (
    accountant_of,
    outsider_step,
    server_step,
    steps_epsilon,
    together_step,
)
from fedsys.records import Claim

__all__ = ["alone_claim", "epsilon_claims", "event_claim", "underivable_claims"]

_RELATIVE = 1e-6
"""Relative difference allowed between two derivations by one accountant."""

_SAMPLER_HOLDS = 600.0
"""Epsilon up to which a client's own share, a single rounded Gaussian and so a post-processed one,
is close enough to the ideal Gaussian: draws are exact to 2^-977 = e^-677."""

_RESTS_ON: dict[View, str] = {
    "outsider": "noise really added, sampling really random, N: the coordinator's word",
    "participant": "the lists of private.jsonl and the noise: the coordinator's word",
    "server": "survivors having added their shares: the clients' and the coordinator's word",
}


def event_claim(problem: str | None, events: Counter[Event], plan: PrivacyPlan) -> Claim:
    """Whether every reserve holds an event of the plan, at a permitted clipping norm.

    Args:
        problem: why the events could not be read; None if they could.
        events: how often each was reserved, in the order of their first rounds.
        plan: the header's plan.
    """
    rounds, norms = sum(events.values()), [event.clip for event in events]
    words = f"{rounds} rounds, each at C={value_text(plan.clip)}"
    if set(norms) - {plan.clip}:
        words = f"{rounds} rounds at C from {min(norms):.6g} to {max(norms):.6g}"
        if not math.isclose(norms[0], plan.clip, rel_tol=1e-9):
            problem = problem or f"{words}, while the plan starts at {plan.clip:.6g}"
    return claim(
        "Reserved events",
        problem is None,
        claimed="every round costs what the plan says",
        rederived=problem or words,
        by="deriving scale, sensitivities and variances of each round again",
        rests_on="the noise really being added: the coordinator's and the clients' word",
    )


def epsilon_claims(
    evidence: Evidence,
    plan: PrivacyPlan,
    spending: Spending,
    *,
    cohorts_failed: bool,
    withheld: str | None = None,
) -> Iterator[Claim]:
    """Each view's claimed epsilon against what the ledger's rounds cost, then the budget.

    Args:
        evidence: its summary states the claimed epsilons.
        plan: the header's plan.
        spending: what the rounds cost.
        cohorts_failed: whether ``private.jsonl`` does not match the ledger's commitments.
        withheld: why no epsilon can be claimed, whatever the rounds cost.
    """
    claimed, budget = _claimed(evidence)
    for view in VIEWS:
        found = _view_claim(
            view,
            claimed.get(view),
            plan,
            spending,
            states_epsilon=evidence.summary.value is not None,
            cohorts_failed=cohorts_failed,
        )
        if withheld is not None:
            words = f"withheld: {withheld}; its rounds alone: {found.rederived}"
            found = dataclasses.replace(found, holds=False, rederived=plain(words))
        yield found
    extra = sorted(set(claimed) - set(VIEWS))
    if extra:
        yield claim(
            "Epsilon of other views",
            False,
            claimed=", ".join(map(str, extra[:4])),
            rederived="no such view",
            by="the ledger",
        )
    if evidence.summary.value is not None:
        yield _promise_claim(budget, plan)
    if plan.budget is not None:
        yield _budget_claim(plan, spending)


def alone_claim(plan: PrivacyPlan, events: Counter[Event], turns: int, roster: Any) -> Claim | None:
    """The server's epsilon if all others collude with it: only a client's own noise share is left.

    A party that decides who is a member can fill the cohorts with its own devices, so this is the
    figure for a client that trusts neither the operator nor the roster's authority.

    Args:
        plan: the header's plan.
        events: how often each event was reserved.
        turns: rounds in which the worst client's update was, or may have been, summed.
        roster: who vouches for the list of members, as the header says.
    """
    alone = [
        dataclasses.replace(server_step(event), multiplier=event.share_multiplier)
        for event in events
        if 0 < event.share_multiplier < server_step(event).multiplier
    ]
    if not alone:
        return None  # others' noise was never counted, or there is no noise
    worst = min(alone, key=lambda step: step.multiplier)
    epsilon = steps_epsilon({worst: turns}, plan.delta_of("server"))
    if epsilon > _SAMPLER_HOLDS:
        epsilon = math.inf
    return claim(
        "Epsilon, server view, all others colluding",
        None,
        claimed="nothing: a server that follows the protocol is assumed",
        rederived=f"{epsilon_text(epsilon)} after {turns} rounds with one's own noise share alone",
        by="exact Gaussian (Balle and Wang), c = n - 1"
        if worst.rate == 1
        else "the client's own secret coin amplifies, c = n - 1",
        rests_on=f"who vouches for the members: {value_text(roster)}",
    )


def underivable_claims(
    evidence: Evidence, reason: str, plan: PrivacyPlan | None = None
) -> Iterator[Claim]:
    """Claims for a ledger whose rounds cannot be accounted for at all: any number that is stated
    of their cost fails, because nothing supports it.

    Args:
        evidence: its summary states the claimed epsilons.
        reason: why nothing can be derived.
        plan: the header's; None if it has none that is usable.
    """
    claimed, budget = _claimed(evidence)
    stated: list[tuple[str, Any]] = [(f"Epsilon, {view} view", claimed.get(view)) for view in VIEWS]
    if plan is not None and plan.budget is not None:
        stated.append(("Budget kept", plan.budget))
    elif budget is not None:
        stated.append(("Budget in the summary", budget))
    for name, value in stated:
        yield claim(
            name,
            None if value is None else False,
            claimed="nothing" if value is None else epsilon_text(value),
            rederived=reason,
            by="the ledger",
            rests_on="nothing",
        )


def _claimed(evidence: Evidence) -> tuple[Mapping[str, Any], Any]:
    """The epsilons and the budget that the summary states."""
    privacy = (evidence.summary.value or {}).get("privacy")
    if not isinstance(privacy, dict):
        return {}, None
    stated = privacy.get("epsilon")
    return stated if isinstance(stated, dict) else {}, privacy.get("budget")


def _view_claim(
    view: View,
    claimed: Any,
    plan: PrivacyPlan,
    spending: Spending,
    *,
    states_epsilon: bool,
    cohorts_failed: bool,
) -> Claim:
    derived = spending.spent.of(view)
    number = _stated(claimed)
    words, rests_on = epsilon_text(derived), _RESTS_ON[view]
    holds: bool | None
    if derived is None:
        words = "needs private.jsonl"
        if cohorts_failed:
            words = "private.jsonl is not what the ledger committed to"
        elif not states_epsilon:
            words = "needs summary.json and private.jsonl"
        holds, rests_on = None, "the coordinator's word"
        if (
            number is not None
            and view == "participant"
            and number < spending.spent.outsider * (1 - _RELATIVE)
        ):
            holds, words = False, f"at least the outsider's {epsilon_text(spending.spent.outsider)}"
        elif claimed is not None and (number is None or number < 0):
            holds, words = False, "not a number"
    elif claimed is None:
        # A published summary omits participant and server; it must state the outsider's epsilon.
        missing = view == "outsider" and states_epsilon
        holds = False if missing else None if not states_epsilon else True
    elif number is None:
        holds = False
    else:
        holds = agrees(number, derived, relative=_RELATIVE)
        if not holds:
            words += ": understated" if number < derived else ": overstated"
    return claim(
        f"Epsilon, {view} view",
        holds,
        claimed=epsilon_text(claimed if number is None else number),
        rederived=words,
        by=_accountant(view, plan),
        rests_on=rests_on,
    )


def _stated(value: Any) -> float | None:
    """A number from an untrusted file; None if it is not a number, or too large for a float."""
    if value == "inf":
        return math.inf
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


_ACCOUNTANTS = {
    "pld": "privacy loss distributions (connect the dots)",
    "gaussian": "exact Gaussian (Balle and Wang)",
    "rdp": "Rényi divergences",
}


def _accountant(view: View, plan: PrivacyPlan) -> str:
    """The accountant behind a view's epsilon, and the rounds that it covers."""
    if not plan.protected:
        return "no noise, no bound"
    event = plan.event()
    seen = {
        "outsider": {outsider_step(event): 1},
        "participant": {outsider_step(event): 1, together_step(event): 1},
        "server": {server_step(event): 1},
    }[view]
    by = _ACCOUNTANTS[accountant_of(seen, plan.delta_of(view))]
    if plan.unit == "example":
        return f"{by} of every client's local batches, which amplify"
    if view == "participant":
        return f"{by}; rounds shared with a curious client count unamplified"
    if view == "server":
        return f"{by} of each client's own rounds"
    return f"{by} of all rounds, or of one client's turns where those are fewer"


def _promise_claim(stated: Any, plan: PrivacyPlan) -> Claim:
    """What the summary says epsilon could have reached."""
    wanted: float | None = None
    if plan.protected:
        try:
            wanted = plan.budget if plan.budget is not None else guaranteed_epsilon(plan)
        except (MechanismError, ValueError, OverflowError, MemoryError):
            wanted = None
    number = _stated(stated)
    same = stated is None and wanted is None
    if number is not None and wanted is not None:
        same = agrees(number, wanted, relative=_RELATIVE)
    return claim(
        "Budget in the summary",
        same,
        claimed=epsilon_text(stated if number is None else number),
        rederived=epsilon_text(wanted),
        by="the plan's budget, or the cost of all its rounds",
    )


def _budget_claim(plan: PrivacyPlan, spending: Spending) -> Claim:
    budget = plan.budget or 0.0
    spent = spending.spent.of(plan.guarantee)
    return claim(
        "Budget kept",
        None if spent is None else spent <= budget * (1 + _RELATIVE),
        claimed=f"at most {epsilon_text(budget)} for the {plan.guarantee}",
        rederived=f"{epsilon_text(spent)} spent" if spent is not None else "needs private.jsonl",
        by="the ledger",
        rests_on=_RESTS_ON[plan.guarantee],
    )
