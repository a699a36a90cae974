"""The server's view: each client's own rounds, at the noise that honest survivors added."""

from __future__ import annotations

import math
from collections import Counter

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
    """The server's worst-case epsilon after ``rounds`` rounds: a client took part in as many as
    allowed, each with the fewest survivors. It depends on public constants alone."""
    step = server_step(plan.event())
    found = steps_epsilon({step: plan.contributions(rounds)}, plan.delta_of("server"))
    return plan.charges.covered("server", found)


class ServerLoss:
    """The worst client's privacy loss against the server, at the actual numbers of survivors.

    Rounds without amplification are Gaussian mechanisms, so a client's loss is one number,
    mu^2 = sum 1 / z_t^2 over its rounds. Where a secret coin or a local batch amplifies, each round
    is charged at its worst case, and only the number of the client's rounds counts. A client that
    contributed as often as the plan allows sends zeros from then on and loses nothing more.

    Args:
        plan: the job's plan.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        # Pages of zeros that are never written take no memory.
        self._squares: Vector = np.zeros(plan.population)
        self._counts = np.zeros(plan.population, dtype=np.int32)
        self._most_squares = 0.0
        self._most_rounds = 0
        self._unknown_squares = 0.0
        self._unknown = 0
        self._step: GaussianStep | None = None

    def add(self, event: Event, clients: NDArray[np.int64] | None, survivors: int | None) -> None:
        """Charges a round to its clients, at the worst case if ``survivors`` is None.

        Args:
            event: the round's event.
            clients: (k,) distinct clients; None charges the round to everybody.
            survivors: the number of clients in the sum.
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
        """The number of rounds in which a client's update was, or may have been, summed."""
        return int(self._counts[client])

    @property
    def exhausted(self) -> NDArray[np.int64]:
        """The clients that contributed, or may have, as often as the plan allows."""
        limit = self._plan.max_participations
        if limit is None:
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero(self._counts + self._unknown >= limit)

    @property
    def clients(self) -> NDArray[np.int64]:
        """Clients whose updates were, or may have been, summed in rounds with known cohorts."""
        return np.flatnonzero(self._counts)

    @property
    def amplified(self) -> bool:
        """Whether rounds are counted, rather than their mu^2 added up."""
        return self._step is not None and self._step.rate < 1

    def squares(self, clients: NDArray[np.int64]) -> Vector:
        """mu^2 (n,) of n clients, with unknown rounds; `amplified` rounds count unamplified."""
        found: Vector = self._squares[clients] + self._unknown_squares
        return found

    def steps(self, next_event: Event | None = None) -> Counter[GaussianStep]:
        """The steps that count against the worst client, including the next event if given.

        Without amplification they are one Gaussian mechanism with the client's mu^2.
        """
        worst, rounds, squares = self._worst(next_event)
        if worst is None or not rounds:
            return Counter()
        if worst.rate < 1:
            return Counter({worst: rounds})
        return Counter({GaussianStep(multiplier=1 / math.sqrt(squares)): 1} if squares else {})

    def epsilon(self, next_event: Event | None = None) -> float:
        """The worst client's epsilon so far, or at worst once ``next_event`` is charged too."""
        plan, (worst, rounds, squares) = self._plan, self._worst(next_event)
        if worst is None or not rounds:
            return 0.0
        delta = plan.delta_of("server")
        if worst.rate < 1:
            found = steps_epsilon({worst: rounds}, delta)
        else:
            found = composed_epsilon(delta, squares)
        return plan.charges.covered("server", found)

    def _worst(self, next_event: Event | None) -> tuple[GaussianStep | None, int, float]:
        """The worst round, and the number of rounds and mu^2 of the client that lost most."""
        worst, limit = self._step, self._plan.max_participations
        rounds = self._most_rounds + self._unknown
        squares = self._most_squares + self._unknown_squares
        if next_event is not None:
            step = server_step(next_event)
            worst = step if worst is None else worst_step((worst, step))
            rounds, squares = rounds + 1, squares + square_of(step)
        if worst is not None and limit is not None and rounds > limit:
            rounds, squares = limit, min(squares, limit * square_of(worst))
        return worst, rounds, squares
