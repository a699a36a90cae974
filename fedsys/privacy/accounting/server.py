"""The server's view: each client's own rounds at the noise that honest survivors added."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy.accounting.costs import server_step, square_of, steps_epsilon
from fedsys.privacy.accounting.exact_gaussian import composed_epsilon
from fedsys.privacy.accounting.outsider import worst_step
from fedsys.privacy.events import Event, GaussianStep
from fedsys.privacy.plan import PrivacyPlan

__all__ = ["ServerLoss", "worst_server"]

Vector = NDArray[np.float64]


def worst_server(plan: PrivacyPlan, rounds: int) -> float:
    """The server's epsilon after so many rounds at the worst case: a client took part in as many of
    them as it may, each with the fewest survivors. A function of public constants alone."""
    step = server_step(plan.event())
    found = steps_epsilon({step: plan.contributions(rounds)}, plan.delta_of("server"))
    return plan.charges.covered("server", found)


class ServerLoss:
    """What the server learned of the worst client, at the survivors that there really were.

    Rounds without amplification are Gaussian mechanisms, so that a client's loss is one number,
    mu^2 = sum 1 / z_t^2 over its rounds. Where a secret coin or a local batch amplifies, each round
    costs its worst case, and the number of the client's rounds is what counts. A client that
    contributed as often as the plan allows sends zeros from then on: it loses nothing more.

    Args:
        plan: of the job.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        # untouched pages of zeros cost no memory
        self._squares: Vector = np.zeros(plan.population)
        self._counts = np.zeros(plan.population, dtype=np.int32)
        self._most_squares = 0.0
        self._most_rounds = 0
        self._unknown_squares = 0.0
        self._unknown = 0
        self._step: GaussianStep | None = None

    def add(self, event: Event, clients: NDArray[np.int64] | None, survivors: int | None) -> None:
        """Charges a round to its clients, at the worst case where ``survivors`` is None.

        Args:
            event: what it cost.
            clients: (k,) distinct; None charges the round to everybody.
            survivors: clients in the sum.
        """
        step = server_step(event, survivors)
        square = square_of(step)
        if clients is None:
            self._note(server_step(event))
            self._unknown_squares += square
            self._unknown += 1
            return
        limit = self._plan.max_participations
        if limit is not None:
            clients = clients[self._counts[clients] < limit]
        if not clients.size:
            return
        self._note(server_step(event))
        squares = self._squares[clients] + square
        counts = self._counts[clients] + 1
        self._squares[clients], self._counts[clients] = squares, counts
        self._most_squares = max(self._most_squares, float(squares.max()))
        self._most_rounds = max(self._most_rounds, int(counts.max()))

    def _note(self, worst: GaussianStep) -> None:
        self._step = worst if self._step is None else worst_step((self._step, worst))

    def participations(self, client: int) -> int:
        """Rounds in which a client's update was, or may have been, summed."""
        return int(self._counts[client])

    @property
    def exhausted(self) -> NDArray[np.int64]:
        """Those that contributed, or may have, as often as the plan lets them."""
        limit = self._plan.max_participations
        if limit is None:
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero(self._counts + self._unknown >= limit)

    @property
    def clients(self) -> NDArray[np.int64]:
        """Those whose updates were, or may have been, summed in a round with a known cohort."""
        return np.flatnonzero(self._counts)

    @property
    def amplified(self) -> bool:
        """Whether rounds are counted, rather than mu^2 added up."""
        return self._step is not None and self._step.rate < 1

    def squares(self, clients: NDArray[np.int64]) -> Vector:
        """mu^2 (n,) of each of n clients, unknown rounds included; what `amplified` rounds cost as
        if nothing amplified."""
        found: Vector = self._squares[clients] + self._unknown_squares
        return found

    def epsilon(self, next_event: Event | None = None) -> float:
        """Of the worst client so far, or at worst once ``next_event`` is charged too."""
        if next_event is None:
            return self._epsilon(self._step, self._most_squares + self._unknown_squares, 0)
        step = server_step(next_event)
        worst = step if self._step is None else worst_step((self._step, step))
        return self._epsilon(worst, self._most_squares + self._unknown_squares + square_of(step), 1)

    def _epsilon(self, step: GaussianStep | None, squares: float, more: int) -> float:
        plan = self._plan
        rounds = self._most_rounds + self._unknown + more
        if step is None or not rounds:
            return 0.0
        delta, limit = plan.delta_of("server"), plan.max_participations
        if limit is not None and rounds > limit:
            rounds = limit
            squares = min(squares, limit * square_of(step))
        if step.rate < 1:
            found = steps_epsilon({step: rounds}, delta)
        else:
            found = composed_epsilon(delta, squares)
        return plan.charges.covered("server", found)
