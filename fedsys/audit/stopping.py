"""Claims about a run's end: that it ran as long as it says, and if it stopped early, why.

Where a run ended early, how many rounds there were was chosen from what the rounds released, and
from the coordinator's own test data. A run of all planned rounds of which only a part is looked at
reveals no more than all of it (post-processing), so the epsilon of all planned rounds holds
whatever the choice was made from; that of the rounds that ran is what they cost by themselves.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

from fedsys.agreement import agrees
from fedsys.audit.evidence import Evidence
from fedsys.audit.spending import Spending
from fedsys.audit.wording import claim, epsilon_text, value_text
from fedsys.errors import MechanismError
from fedsys.improvement import less_is_better, standing
from fedsys.privacy import LedgerView, PrivacyPlan, guaranteed_epsilon
from fedsys.privacy.accounting.server import worst_server
from fedsys.records import Claim

__all__ = ["ending_claim", "stopping_claim"]

_RELATIVE = 1e-6


def ending_claim(view: LedgerView, plan: PrivacyPlan, spending: Spending | None) -> Claim | None:
    """Whether a run had to end where it did: a number of rounds that was chosen from results is
    stated as such; None where the closing line states no such end."""
    reason = None if view.closed is None else view.closed.get("reason")
    reserved = len(view.rounds)
    words = f"{reserved} of {plan.rounds} planned rounds were reserved"
    if reason == "completed":
        holds: bool | None = reserved == plan.rounds
    elif reason == "budget-exhausted":
        holds, why = _exhausted(plan, spending, reserved)
        words = f"{words}; {why}"
    else:
        return None
    return claim(
        "End of the job",
        holds,
        claimed=value_text(reason),
        rederived=words,
        by="counting reserve lines; the cost of one more round",
        rests_on="nothing but the ledger"
        if holds is not None
        else "the coordinator's word: what ends a job without a reason in its ledger may have been "
        "chosen from its results",
    )


def _exhausted(
    plan: PrivacyPlan, spending: Spending | None, reserved: int
) -> tuple[bool | None, str]:
    """Whether one more round would have been refused, and why."""
    if reserved >= plan.rounds:
        return True, "none was left"
    if plan.sampling == "arrivals":
        return None, "devices that had contributed as often as allowed, or declined, are not known"
    if plan.budget is None:
        return False, "no budget limits them"
    if spending is None:
        return None, "what they cost is not known"
    try:
        after = (
            spending.accountant.outsider.epsilon(plan.event())
            if plan.guarantee == "outsider"
            else worst_server(plan, reserved + 1)
        )
    except (MechanismError, ValueError, ArithmeticError, MemoryError):
        return None, "what one more would cost cannot be derived"
    return (
        after > plan.budget * (1 - _RELATIVE),
        f"one more would bring the {plan.guarantee}'s epsilon to {epsilon_text(after)}",
    )


def stopping_claim(evidence: Evidence, view: LedgerView, plan: PrivacyPlan) -> Claim | None:
    """Whether the metric had stood still when a run ended early; None for any other run."""
    if not view.ended_early:
        return None
    stop = _table(evidence.config.value.get("evaluation.stop") if evidence.config.value else None)
    metric, patience, better = (stop.get(key) for key in ("metric", "patience", "better"))
    measured = evidence.metrics.value
    count = 0 if measured is None else len(measured.rounds)
    epsilon = _of_all_rounds(plan)
    less = better == "less"
    if better == "by-name" and isinstance(metric, str):
        less = bool(less_is_better(metric))
    found, before = (
        standing(islice(measured.lines(), n), metric, less=less)
        if measured is not None and isinstance(metric, str) and n > 0
        else None
        for n in (count, count - 1)
    )
    problem = None
    if not metric or type(patience) is not int:
        problem = "config.toml has no evaluation.stop"
    elif found is None or found.waited < patience:
        problem = f"{value_text(metric)} had not stood still for {patience} evaluations"
    elif before is not None and before.waited >= patience:
        problem = f"{value_text(metric)} had stood still before: the run went on"
    said = evidence.summary.value.get("stopped") if evidence.summary.value else None
    if problem is None and found is not None and evidence.summary.value is not None:
        wanted = {
            "metric": found.metric,
            "best_round": found.round,
            "best": found.best,
            "planned_rounds": plan.rounds,
            "planned_epsilon": epsilon,
        }
        wrong = [key for key in wanted if not _same(_table(said).get(key), wanted[key])]
        if wrong:
            problem = f"summary.json states another stopped.{wrong[0]}"
    words = problem or (found.text if found is not None else "")
    if epsilon is not None:
        words += (
            f"; whatever it was chosen from, epsilon is at most {epsilon_text(epsilon)}, that of "
            f"all {plan.rounds} planned rounds"
        )
    return claim(
        "Stopped early",
        problem is None,
        claimed=f"{value_text(metric)} had not improved for {value_text(patience)} evaluations",
        rederived=words,
        by="metrics.jsonl against evaluation.stop in config.toml",
        rests_on="the metric being of the coordinator's own data, which no epsilon covers: the "
        "coordinator's word",
    )


def _of_all_rounds(plan: PrivacyPlan) -> float | None:
    if not plan.protected:
        return None
    try:
        return guaranteed_epsilon(plan)
    except (MechanismError, ValueError, ArithmeticError, MemoryError):
        return math.inf


def _same(found: object, wanted: object) -> bool:
    if wanted == math.inf:
        return found == "inf"
    if isinstance(wanted, float):
        return agrees(found, wanted, relative=_RELATIVE, absolute=1e-300)
    return type(found) is type(wanted) and found == wanted


def _table(found: object) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}
