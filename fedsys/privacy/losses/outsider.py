"""The outsider's view: every reserved round counts, aborted and lost ones too."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from fedsys.privacy.costs import GaussianKey, gaussian_steps, outsider_cost
from fedsys.privacy.events import Event
from fedsys.privacy.exact_gaussian import gaussian_epsilon
from fedsys.privacy.plan import PrivacyPlan
from fedsys.privacy.pld import gaussian_pld_epsilon
from fedsys.privacy.rdp import ORDERS, Vector, epsilon_of

__all__ = ["OutsiderLoss"]


class OutsiderLoss:
    """Someone who sees releases only, by the plan's accountant and, to check it, by Rényi orders.

    Where a client takes part in a bounded number of turns (``plan.turns``), the loss is that of so
    many rounds at the dearest price.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        self._rounds = 0
        self._sum: Vector = np.zeros_like(ORDERS)
        self._dearest: Vector = np.zeros_like(ORDERS)
        self._steps: Counter[GaussianKey] = Counter()

    def add(self, event: Event) -> None:
        """Charges one round.

        Raises:
            MechanismError: no accountant of the plan interprets the event.
        """
        self._rounds, self._sum, self._dearest = self._with(event)
        if self._plan.accountant != "rdp":
            key, steps = gaussian_steps(event)
            self._steps[key] += steps

    def _with(self, event: Event | None) -> tuple[int, Vector, Vector]:
        if event is None:
            return self._rounds, self._sum, self._dearest
        cost = outsider_cost(event)
        return self._rounds + 1, self._sum + cost, np.maximum(self._dearest, cost)

    def curve(self, next_event: Event | None = None) -> Vector:
        """(orders,) Rényi divergence at ``ORDERS``, of the rounds so far and the next if given."""
        rounds, total, dearest = self._with(next_event)
        turns = self._plan.turns(rounds)
        if turns == rounds:
            return total
        with np.errstate(invalid="ignore"):
            return np.minimum(total, turns * dearest)

    def rdp_epsilon(self, next_event: Event | None = None) -> float:
        """By Rényi orders alone: reported where nothing tighter applies, else the cross-check."""
        return epsilon_of(self.curve(next_event), self._plan.delta_released)

    def epsilon(self, next_event: Event | None = None) -> float:
        """Spent so far, or once ``next_event`` is charged too, by the reported accountant."""
        plan = self._plan
        if plan.accountant == "rdp":
            return self.rdp_epsilon(next_event)
        counts, rounds = Counter(self._steps), self._rounds
        if next_event is not None:
            key, steps = gaussian_steps(next_event)
            counts[key] += steps
            rounds += 1
        counts = self._limited(counts, rounds)
        if not counts:
            return 0.0
        if plan.accountant == "gaussian":
            # independent Gaussian mechanisms are one: squared inverse multipliers add up
            squares = sum(count / multiplier**2 for (multiplier, _), count in counts.items())
            return gaussian_epsilon(plan.delta_released, 1 / math.sqrt(squares))
        return gaussian_pld_epsilon(counts, plan.delta_released)

    def _limited(self, counts: Counter[GaussianKey], rounds: int) -> Counter[GaussianKey]:
        """Steps of one client: those of ``turns`` rounds at the least noise, if fewer than all."""
        turns = self._plan.turns(rounds)
        if turns == rounds:
            return counts
        worst = min(multiplier for multiplier, _ in counts), max(rate for _, rate in counts)
        return Counter({worst: -(-counts.total() * turns // rounds)})
