"""What a ledger's rounds cost, charged again from the first line."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from fedsys.audit.cohorts import Cohorts
from fedsys.errors import LedgerError, MechanismError
from fedsys.privacy import (
    Epsilons,
    Event,
    LedgerView,
    PrivacyPlan,
    ViewAccountant,
    charge_rounds,
    events_of,
)
from fedsys.records import EpsilonPoint

__all__ = ["LARGEST_POPULATION", "Spending", "derive", "require_size", "reserved_events"]

LARGEST_POPULATION = 1 << 27
"""Clients beyond which the accountants' tables are not allocated for an untrusted folder."""

_CURVE_POINTS = 400
_DEAR_CURVE_POINTS = 12
_HOPELESS = 1e4
"""Epsilon by Rényi orders above which no loss distribution is computed: up to it one takes seconds
at most, and beyond it up to hours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spending:
    """Privacy spent by all reserved rounds.

    Attributes:
        spent: after the last round; participant and server are None where cohorts are not known.
        curve: after each round, or after evenly spaced rounds of a long job.
        accountant: charged with all rounds.
    """

    spent: Epsilons
    curve: tuple[EpsilonPoint, ...]
    accountant: ViewAccountant

    @property
    def rdp_outsider(self) -> float:
        """The outsider's epsilon by Rényi orders alone."""
        return self.accountant.outsider.rdp_epsilon()


def require_size(plan: PrivacyPlan) -> None:
    """Refuses a plan of somebody else's whose population needs more memory than it is worth.

    Raises:
        LedgerError: the population exceeds ``LARGEST_POPULATION``.
    """
    if plan.population > LARGEST_POPULATION:
        raise LedgerError(
            f"a population of {plan.population} is more than is allocated for a folder that "
            f"anybody may have written, {LARGEST_POPULATION}"
        )


def reserved_events(view: LedgerView, plan: PrivacyPlan) -> Counter[Event]:
    """How often each event was reserved.

    Raises:
        LedgerError: a reserve holds no event, or one that the plan does not cover; the message
            names the round.
    """
    counts: Counter[Event] = Counter()
    for _, event in events_of(view, plan):
        counts[event] += 1
    return counts


def derive(view: LedgerView, plan: PrivacyPlan, cohorts: Cohorts | None) -> Spending:
    """Charges every round.

    Args:
        view: the verified ledger.
        plan: the plan in its header.
        cohorts: read as the rounds are charged; None where they are not known.

    Raises:
        LedgerError: the rounds cannot be accounted for.
    """
    require_size(plan)
    accountant = ViewAccountant(plan)
    points = _CURVE_POINTS if plan.accountant == "rdp" else _DEAR_CURVE_POINTS
    wanted = _spaced(len(view.rounds), points)
    curve: list[EpsilonPoint] = []
    try:
        for count, number in enumerate(charge_rounds(accountant, view, cohorts), start=1):
            if count in wanted:
                spent = _spent(accountant, known=cohorts is not None)
                curve.append(EpsilonPoint(round=number, spent=spent))
        spent = curve[-1].spent if curve else _spent(accountant, known=cohorts is not None)
        return Spending(spent=spent, curve=tuple(curve), accountant=accountant)
    except (MechanismError, ValueError, OverflowError, MemoryError) as error:
        raise LedgerError(f"the rounds cannot be accounted for: {error}") from None


def _spaced(rounds: int, points: int) -> set[int]:
    if rounds <= points:
        return set(range(1, rounds + 1))
    return {round(1 + step * (rounds - 1) / (points - 1)) for step in range(points)}


def _spent(accountant: ViewAccountant, *, known: bool) -> Epsilons:
    costly = accountant.plan.accountant == "pld" and accountant.rounds
    if costly and _HOPELESS < accountant.outsider.rdp_epsilon() < math.inf:
        raise LedgerError(
            f"so little noise that its bound by Rényi orders exceeds {_HOPELESS:g}, where no loss "
            "distribution is computed"
        )
    if known:
        return accountant.spent()
    # With unknown cohorts the other views are charged at their worst case, which is conclusive only
    # if it is infinite: then no cohort would have made it finite.
    participant, server = accountant.participant.epsilon(), accountant.server.epsilon()
    return Epsilons(
        outsider=accountant.outsider.epsilon(),
        participant=math.inf if math.isinf(participant) else None,
        server=math.inf if math.isinf(server) else None,
    )
