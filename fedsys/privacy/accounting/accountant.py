"""A job's running privacy loss in three views; charging a round does not revisit earlier rounds.

>>> from fedsys.privacy.planning import make_plan
>>> plan = make_plan(mechanism="distributed-gaussian", population=1000, expected_cohort=50,
...     rounds=200, dimension=60_000, clip=1.0, delta=1e-5, noise_multiplier=1.0)
>>> accountant = ViewAccountant(plan)
>>> accountant.charge(plan.event(), sampled=range(50), survivors=range(47))
>>> accountant.spent().outsider < accountant.after_next(plan.event()).outsider
True
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import BudgetExceeded, MechanismError
from fedsys.privacy.accounting.adding import Standing, part_of
from fedsys.privacy.accounting.costs import Steps
from fedsys.privacy.accounting.outsider import OutsiderLoss
from fedsys.privacy.accounting.participant import ParticipantLoss
from fedsys.privacy.accounting.server import ServerLoss, worst_server
from fedsys.privacy.calibration import guaranteed_epsilon
from fedsys.privacy.events import Event
from fedsys.privacy.plan import PrivacyPlan
from fedsys.privacy.views import Epsilons, View

__all__ = ["LateCharges", "ViewAccountant"]

_TOLERANCE = 1 + 1e-9
_WAITING = 1 << 12
"""So many clients of rounds that wait to be charged, at most and about."""


class ViewAccountant:
    """Charges one job's rounds and states what they cost in each view.

    Args:
        plan: the job's plan.

    Attributes:
        plan: as given.
        rounds: the number of rounds charged so far.
        outsider: the outsider's privacy loss.
        participant: the participant's privacy loss.
        server: the server's privacy loss.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self.plan = plan
        self.rounds = 0
        self.outsider = OutsiderLoss(plan)
        self.participant = ParticipantLoss(plan)
        self.server = ServerLoss(plan)

    def charge(
        self,
        event: Event,
        sampled: Iterable[int] | None = None,
        survivors: Iterable[int] | None = None,
    ) -> None:
        """Charges one reserved round.

        Args:
            event: the round's event; the caller checks `PrivacyPlan.covers`.
            sampled: the cohort; None if unknown (after a crash), when every client may have been in
                it.
            survivors: the clients whose updates were summed. Empty for an abort logged before the
                first unmask request: nothing was summed. None if unknown: the whole cohort is
                charged at the noise of the fewest survivors.

        Raises:
            MechanismError: the plan's accountant cannot interpret the event, an id is not in the
                population, or a survivor was not sampled.
        """
        cohort = self._ids("sampled", sampled)
        summed = self._ids("survivors", survivors)
        if cohort is not None and summed is not None and not _is_subset(summed, cohort):
            raise MechanismError("survivors must be a subset of the sampled clients")
        self.rounds += 1
        self.outsider.add(event)
        self.participant.add(event, cohort)
        if summed is None:
            self.server.add(event, cohort, None)
        else:
            self.server.add(event, summed, int(summed.size))

    def _ids(self, name: str, ids: Iterable[int] | None) -> NDArray[np.int64] | None:
        if ids is None:
            return None
        found = (
            ids.astype(np.int64, copy=False)
            if isinstance(ids, np.ndarray)
            else np.fromiter(ids, dtype=np.int64)
        )
        if not (found[1:] > found[:-1]).all():
            found = np.unique(found)
        if found.size and not (found[0] >= 0 and found[-1] < self.plan.population):
            raise MechanismError(
                f"{name} has a client outside 0..{self.plan.population - 1}: "
                f"{int(found[0] if found[0] < 0 else found[-1])}"
            )
        return found

    def spent(self) -> Epsilons:
        """Epsilon by view for all rounds charged so far."""
        return Epsilons(
            outsider=self.outsider.epsilon(),
            participant=self.participant.epsilon(),
            server=self.server.epsilon(),
        )

    def spent_in(self, view: View) -> float:
        """Epsilon in one view for all rounds charged so far; the others are not computed."""
        if view == "outsider":
            return self.outsider.epsilon()
        return self.participant.epsilon() if view == "participant" else self.server.epsilon()

    def steps_in(self, view: View, next_event: Event | None = None) -> Steps:
        """The rounds so far as steps that count against one client in a view, including the next
        event at its worst if given: what a total with other jobs is made of."""
        if view == "outsider":
            return self.outsider.steps(next_event)
        if view == "participant":
            return self.participant.steps(next_event)
        return self.server.steps(next_event)

    def standing(self, view: View, epsilon: float | None = None) -> Standing:
        """The rounds so far, for a total with other jobs.

        Args:
            view: whose total.
            epsilon: that of the rounds so far, where it is known.
        """
        part = part_of(self.plan, view, self.steps_in(view))
        known = self.spent_in(view) if epsilon is None else epsilon
        return Standing.of(self.plan, view, part, known)

    def after_next(self, event: Event) -> Epsilons:
        """Worst-case epsilon by view once a further round with this event is charged.

        Raises:
            MechanismError: the event is unknown.
        """
        return Epsilons(
            outsider=self.outsider.epsilon(event),
            participant=self.participant.epsilon(event),
            server=self.server.epsilon(event),
        )

    @cached_property
    def all_fit(self) -> bool:
        """Whether all rounds of the plan fit its budget, so that none of them is refused."""
        budget = self.plan.budget
        return budget is None or guaranteed_epsilon(self.plan) <= budget * _TOLERANCE

    def require_budget(self, event: Event) -> None:
        """Refuses a round that would exceed the plan's budget in the guaranteed view.

        When a job ends depends on public constants alone: every reserved round counts, and for the
        server's view at its worst case, regardless of the actual cohorts and survivors.

        Args:
            event: the round's event, which the plan covers.

        Raises:
            BudgetExceeded: it would, so no client may be invited.
        """
        plan = self.plan
        if plan.budget is None or (self.rounds < plan.rounds and self.all_fit):
            return
        limit = plan.budget * _TOLERANCE
        if plan.guarantee == "outsider":
            after = self.outsider.epsilon(event)
        else:
            after = worst_server(plan, self.rounds + 1)
        if after > limit:
            raise BudgetExceeded(
                f"round {self.rounds + 1} would bring the {plan.guarantee}'s epsilon to "
                f"{after:.4g}, over the budget {plan.budget:g}: the job ends after {self.rounds} "
                "rounds"
            )


class LateCharges:
    """Charges rounds several at a time, as soon as somebody looks at what they cost.

    A round by itself finds the accountant's tables gone from the cache, and costs several times as
    much. No round waits where its cost could refuse a later one.

    Args:
        accountant: which nobody else charges.
    """

    def __init__(self, accountant: ViewAccountant) -> None:
        self._accountant = accountant
        self._waiting: list[tuple[Event, Sequence[int], Sequence[int] | None]] = []
        self._clients = 0

    @property
    def accountant(self) -> ViewAccountant:
        """It, charged with all rounds."""
        while self._waiting:
            self._accountant.charge(*self._waiting.pop(0))
        self._clients = 0
        return self._accountant

    def add(self, event: Event, sampled: Sequence[int], survivors: Sequence[int] | None) -> None:
        """See `ViewAccountant.charge`, which may be called only later."""
        self._waiting.append((event, sampled, survivors))
        self._clients += max(len(sampled), 1)
        if self._clients > _WAITING:
            _ = self.accountant

    def require_budget(self, event: Event) -> None:
        """See `ViewAccountant.require_budget`, which also refuses more rounds than are planned; the
        caller does that here."""
        if not self._accountant.all_fit:
            self.accountant.require_budget(event)


def _is_subset(some: NDArray[np.int64], ids: NDArray[np.int64]) -> bool:
    """Whether ``some`` is a subset of ``ids``; both strictly increasing."""
    places = np.searchsorted(ids, some)
    if not some.size:
        return True
    return bool(places[-1] < ids.size and (ids[places] == some).all())
