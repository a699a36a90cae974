"""The outsider's view: every reserved round counts, including aborted and lost ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fedsys.privacy.accounting.costs import outsider_step, rdp_epsilon, steps_epsilon
from fedsys.privacy.events import Event, GaussianStep
from fedsys.privacy.plan import PrivacyPlan

__all__ = ["OutsiderLoss", "worst_step"]


def worst_step(steps: Iterable[GaussianStep]) -> GaussianStep:
    """A step that costs at least as much as any of these: least noise and largest rate."""
    known = tuple(steps)
    return GaussianStep(
        multiplier=min(step.multiplier for step in known),
        rate=max(step.rate for step in known),
        replaces=any(step.replaces for step in known),
        count=max(step.count for step in known),
    )


class OutsiderLoss:
    """The privacy loss against somebody who sees releases only, by the plan's accountant.

    Where a client takes part in a bounded number of turns (``plan.turns``), the loss is that of
    this many rounds at the worst-case cost.

    Args:
        plan: the job's plan.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        self._rounds: Counter[GaussianStep] = Counter()

    def add(self, event: Event) -> None:
        """Charges one round.

        Raises:
            MechanismError: the event is unknown.
        """
        self._rounds[outsider_step(event)] += 1

    def steps(self, next_event: Event | None = None) -> Counter[GaussianStep]:
        """The steps that count against one client, including the next event if given."""
        counts = Counter(self._rounds)
        if next_event is not None:
            counts[outsider_step(next_event)] += 1
        rounds = counts.total()
        turns = self._plan.turns(rounds)
        return counts if turns == rounds else Counter({worst_step(counts): turns})

    def rdp_epsilon(self) -> float:
        """Epsilon from Rényi divergences alone, an upper bound to check the reported figure."""
        return rdp_epsilon(self.steps(), self._plan.delta_of("outsider"))

    def epsilon(self, next_event: Event | None = None) -> float:
        """Epsilon spent so far, or once ``next_event`` is charged too."""
        plan = self._plan
        found = steps_epsilon(self.steps(next_event), plan.delta_of("outsider"))
        return plan.charges.covered("outsider", found)
