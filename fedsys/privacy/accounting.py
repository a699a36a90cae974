"""A job's running privacy loss in three views; each round costs O(1), whatever came before.

>>> from fedsys.privacy.plan import make_plan
>>> plan = make_plan(mechanism="distributed-skellam", population=1000, expected_cohort=50,
...     rounds=200, dimension=60_000, clip=1.0, delta=1e-5, noise_multiplier=1.0)
>>> accountant = ViewAccountant(plan)
>>> accountant.charge(plan.event(), sampled=range(50), survivors=range(47))
>>> accountant.spent().outsider < accountant.after_next(plan.event()).outsider
True
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import BudgetExceeded, MechanismError
from fedsys.privacy.costs import apart_cost, outsider_cost, server_cost, together_cost
from fedsys.privacy.events import Event, GaussianEvent
from fedsys.privacy.meetings import Meetings
from fedsys.privacy.plan import PrivacyPlan
from fedsys.privacy.pld import gaussian_pld_epsilon
from fedsys.privacy.rdp import ORDERS, SERVER_ORDERS, Vector, epsilon_of, epsilons_of
from fedsys.privacy.views import Epsilons

__all__ = ["OutsiderLoss", "ParticipantLoss", "ServerLoss", "ViewAccountant"]


class OutsiderLoss:
    """Releases only: every reserved round counts, aborted ones too."""

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        self._rdp: Vector = np.zeros_like(ORDERS)
        self._gaussian: Counter[tuple[float, float]] = Counter()

    def add(self, event: Event) -> None:
        """Charges one round."""
        self._rdp = self._rdp + outsider_cost(event)
        if self._plan.accountant == "pld":
            self._gaussian[_pld_key(event)] += 1

    def epsilon(self, next_event: Event | None = None) -> float:
        """Spent so far, or once ``next_event`` is charged too, by the reported accountant."""
        if self._plan.accountant == "rdp":
            return self.rdp_epsilon(next_event)
        rounds = Counter(self._gaussian)
        if next_event is not None:
            rounds[_pld_key(next_event)] += 1
        return gaussian_pld_epsilon(rounds, self._plan.delta_released)

    def rdp_epsilon(self, next_event: Event | None = None) -> float:
        """The same by Rényi orders alone: the cross-check."""
        curve = self._rdp if next_event is None else self._rdp + outsider_cost(next_event)
        return epsilon_of(curve, self._plan.delta_released)


class SeparatedLoss(OutsiderLoss):
    """Min-separation sampling: rounds in which the worst client may have taken part count."""

    def __init__(self, plan: PrivacyPlan) -> None:
        super().__init__(plan)
        self._rounds = 0
        self._worst: Vector = np.zeros_like(ORDERS)

    def add(self, event: Event) -> None:
        """Charges one round."""
        self._rounds += 1
        self._worst = np.maximum(self._worst, outsider_cost(event))

    def rdp_epsilon(self, next_event: Event | None = None) -> float:
        """By Rényi orders: no client can have taken part more often than rounds or its limit."""
        rounds = self._rounds + (next_event is not None)
        worst = self._worst
        if next_event is not None:
            worst = np.maximum(worst, outsider_cost(next_event))
        times = min(rounds, self._plan.max_participations or rounds)
        return epsilon_of(times * worst, self._plan.delta_released)


def _pld_key(event: Event) -> tuple[float, float]:
    if not isinstance(event, GaussianEvent) or event.local:
        raise MechanismError(f"no loss distribution for a {event.mechanism} round in this job")
    multiplier = math.sqrt(event.total_variance) / event.l2
    # the clipping norm cancels; keep rounds at adapted norms in one class
    return float(f"{multiplier:.12g}"), event.sampling.rate * event.sampling.participation


class ParticipantLoss:
    """Curious clients: rounds that one of them shared with the target count unamplified.

    For the target with the most shared rounds k: sum of amplified rounds - k (least of them) +
    k (largest unamplified), at each order; exact where all rounds cost the same.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        self._apart: Vector = np.zeros_like(ORDERS)
        self._least_apart: Vector = np.full_like(ORDERS, math.inf)
        self._most_together: Vector = np.zeros_like(ORDERS)
        self._rounds = 0
        self._unknown = 0
        self.meetings = Meetings(
            population=plan.population, colluders=max(plan.colluders, 1), rounds=plan.rounds
        )

    def add(self, event: Event, sampled: NDArray[np.int64] | None) -> None:
        """Charges one round; with an unknown cohort everybody may have met everybody."""
        self._apart, self._least_apart, self._most_together = self._with(event)
        self._rounds += 1
        if sampled is None:
            self._unknown += 1
        else:
            self.meetings.add(sampled)

    def _with(self, event: Event) -> tuple[Vector, Vector, Vector]:
        apart = apart_cost(event)
        return (
            self._apart + apart,
            np.minimum(self._least_apart, apart),
            np.maximum(self._most_together, together_cost(event)),
        )

    def epsilon(self, next_event: Event | None = None) -> float:
        """Spent so far, or at worst once ``next_event`` is charged too."""
        shared = self.meetings.most + self._unknown
        state = self._apart, self._least_apart, self._most_together
        if next_event is not None:
            state = self._with(next_event)
            shared += 1
        apart, least, together = state
        if not shared:
            return epsilon_of(apart, self._plan.delta_released)
        if not (np.isfinite(together).any() and np.isfinite(apart).any()):
            return math.inf
        finite = np.isfinite(least)
        curve = np.full_like(ORDERS, math.inf)
        curve[finite] = (
            np.maximum(apart[finite] - shared * least[finite], 0.0) + shared * together[finite]
        )
        return epsilon_of(curve, self._plan.delta_released)


class ServerLoss:
    """The server: each client's own rounds at the noise that honest survivors really added."""

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        self._orders = ORDERS[SERVER_ORDERS]
        self._row_of = np.full(plan.population, -1, dtype=np.int32)
        self._rows: Vector = np.zeros((0, len(self._orders)))
        self._used = 0
        self._unknown: Vector = np.zeros_like(self._orders)
        self._envelope: Vector = np.zeros_like(self._orders)
        self._most = 0
        self._counts = np.zeros(0, dtype=np.int64)
        self._worst_epsilon = 0.0

    def add(self, event: Event, clients: NDArray[np.int64] | None, survivors: int | None) -> None:
        """Charges a round to its clients, at the worst case where ``survivors`` is None.

        Without clients (None) the round is charged to everybody.
        """
        cost = server_cost(event, survivors)[SERVER_ORDERS]
        if clients is None:
            self._unknown = self._unknown + cost
            everybody = np.vstack([self._rows[: self._used], np.zeros_like(self._unknown)])
            self._refresh(everybody)
            return
        if not clients.size:
            return
        rows = self._rows_of(clients)
        self._rows[rows] += cost
        self._counts[rows] += 1
        self._envelope = np.maximum(self._envelope, self._rows[rows].max(axis=0))
        self._refresh(self._rows[rows])

    def _refresh(self, rows: Vector) -> None:
        epsilons = epsilons_of(rows + self._unknown, self._plan.delta_server, self._orders)
        self._worst_epsilon = max(self._worst_epsilon, float(epsilons.max()))

    def _rows_of(self, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        fresh = clients[self._row_of[clients] < 0]
        if fresh.size:
            needed = self._used + fresh.size
            if needed > len(self._rows):
                room = min(max(needed, 2 * len(self._rows), 64), self._plan.population)
                grown = np.zeros((room, len(self._orders)))
                grown[: self._used] = self._rows[: self._used]
                counts = np.zeros(room, dtype=np.int64)
                counts[: self._used] = self._counts[: self._used]
                self._rows, self._counts = grown, counts
            self._row_of[fresh] = np.arange(self._used, needed, dtype=np.int32)
            self._used = needed
        return self._row_of[clients].astype(np.int64)

    def participations(self, client: int) -> int:
        """Rounds in which a client's update was, or may have been, summed."""
        row = int(self._row_of[client])
        return 0 if row < 0 else int(self._counts[row])

    def epsilon(self, next_event: Event | None = None) -> float:
        """Of the worst client so far, or at worst once ``next_event`` is charged too.

        The second is bounded by the largest loss of any client at each order plus the next
        round's worst case, and by the limit on participations where there is one.
        """
        if next_event is None:
            return self._worst_epsilon
        delta = self._plan.delta_server
        worst = server_cost(next_event)[SERVER_ORDERS]
        after = epsilon_of(self._envelope + self._unknown + worst, delta, self._orders)
        if self._plan.max_participations is not None and not self._unknown.any():
            limit = epsilon_of(self._plan.max_participations * worst, delta, self._orders)
            after = min(after, limit)
        return max(after, self._worst_epsilon)


class ViewAccountant:
    """Charges the rounds of one job and answers what they cost, in each view."""

    def __init__(self, plan: PrivacyPlan) -> None:
        self.plan = plan
        self.rounds = 0
        separated = plan.sampling == "min-separation"
        self.outsider = SeparatedLoss(plan) if separated else OutsiderLoss(plan)
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
            event: what the round cost.
            sampled: the cohort; None if unknown (a crash): every client may have been in it.
            survivors: whose updates were summed. Empty: an abort, logged before the first unmask
                request, so that nothing was summed. None: unknown, the whole cohort at the noise
                of the fewest survivors.

        Raises:
            MechanismError: the event is not of this plan, or an id is not in the population.
        """
        cohort = self._ids("sampled", sampled)
        summed = self._ids("survivors", survivors)
        if cohort is not None and summed is not None and np.setdiff1d(summed, cohort).size:
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
        found = np.unique(np.fromiter(ids, dtype=np.int64))
        if found.size and not (found[0] >= 0 and found[-1] < self.plan.population):
            raise MechanismError(
                f"{name} has a client outside 0..{self.plan.population - 1}: "
                f"{int(found[0] if found[0] < 0 else found[-1])}"
            )
        return found

    def spent(self) -> Epsilons:
        """Epsilon by view of all rounds charged so far."""
        return Epsilons(
            outsider=self.outsider.epsilon(),
            participant=self.participant.epsilon(),
            server=self.server.epsilon(),
        )

    def after_next(self, event: Event) -> Epsilons:
        """Epsilon by view at worst, once a further round of this cost is charged."""
        return Epsilons(
            outsider=self.outsider.epsilon(event),
            participant=self.participant.epsilon(event),
            server=self.server.epsilon(event),
        )

    def require_budget(self, event: Event) -> None:
        """Refuses a round that would exceed the plan's budget in the guaranteed view.

        Raises:
            BudgetExceeded: it would; no client must be asked.
        """
        budget = self.plan.budget
        if budget is None:
            return
        view = self.plan.guarantee
        after = self.outsider.epsilon(event) if view == "outsider" else self.server.epsilon(event)
        if after > budget * (1 + 1e-9):
            raise BudgetExceeded(
                f"round {self.rounds + 1} would bring the {view}'s epsilon to {after:.4g}, over "
                f"the budget {budget:g}: the job ends after {self.rounds} rounds"
            )
