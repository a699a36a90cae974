"""Several runs' rounds as one: the arithmetic of totals, in any view.

A run is a *part*: its Gaussian steps as they count against one client, and the share of its delta
that is spent on anything else. Parts are added by composing all of their steps at the largest of
their deltas, minus what all parts spend on anything else.

That rests on Zhu, Dong and Wang, "Optimal Accounting of Differential Privacy via Characteristic
Function" (AISTATS 2022), Theorem 10: "If (P, Q) dominates M and (P', Q') dominates M', then
(P x P', Q x Q') dominates the composed mechanism (M, M')." A run's steps dominate what it reveals
of *any* client: in the participant's view they are those of the client that met curious ones most
often, in the server's those of the client with the largest mu^2 or the most rounds. So the total
covers every client, though the worst one may differ from run to run, and client numbers need not
mean the same people. (That the worst client's steps dominate those of the others is our own step:
more rounds, less noise and less amplification never lower a divergence.)

It needs one pair of neighbours: jobs of different units, or whose neighbours differ in the view
(`Standing.alike`), do not compose. For these epsilons are added, each a promise of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsys.agreement import is_finite
from fedsys.privacy.accounting.costs import (
    Steps,
    outsider_step,
    rdp_epsilon,
    server_step,
    squares_of,
    steps_epsilon,
    together_step,
)
from fedsys.privacy.events import GaussianStep
from fedsys.privacy.plan import PrivacyPlan
from fedsys.privacy.views import View

__all__ = [
    "MOST_STEPS",
    "Part",
    "Standing",
    "composed",
    "cost_together",
    "covered",
    "part_of",
    "promised_part",
    "replaces",
    "together",
    "usable",
]

_SPARE = 1e-9
"""Fraction of a total's delta that is reserved for the noise's distance from a Gaussian."""
MOST_STEPS = 4
"""The most kinds of steps that a header may state: each of them takes a loss distribution."""
_MOST_ROUNDS = 10**6
"""The most steps of one kind that a header may state."""
_HOPELESS = 500.0
"""Epsilon by Rényi orders above which that figure stands: a loss distribution would be huge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one run, or several together, cost in one view.

    Attributes:
        steps: the rounds' steps, as they can affect one client; empty where only epsilons are
            known.
        delta: the delta at which the part is stated.
        overhead: the portion of delta for everything but the steps.
        aside: the portion of the overhead for the noise's distance from a Gaussian.
        log_distance: log of that distance, in total variation; -inf where it is 0.
    """

    steps: Steps
    delta: float
    overhead: float
    aside: float
    log_distance: float

    def to_json(self) -> dict[str, Any]:
        """For a ledger's header: ``steps`` as (multiplier, rate, 1 if replaced, count)."""
        return {
            "delta": self.delta,
            "overhead": self.overhead,
            "aside": self.aside,
            "log_distance": max(self.log_distance, -1e308),
            "steps": [
                [step.multiplier, step.rate, float(step.replaces), float(count * step.count)]
                for step, count in sorted(self.steps.items())
                if count
            ],
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Part | None:
        """Reads what `to_json` wrote, from an untrusted file; None for anything else."""
        names = ("delta", "overhead", "aside", "log_distance")
        numbers = [body.get(name) for name in names]
        rows = body.get("steps")
        if not isinstance(rows, list) or not 0 < len(rows) <= MOST_STEPS:
            return None
        if not all(map(_number, numbers)) or not all(map(_is_step, rows)):
            return None
        delta, overhead, aside, log_distance = (float(value) for value in numbers)  # type: ignore[arg-type]
        if not (0 < delta < 1 and 0 <= aside <= overhead < delta):
            return None
        steps: Counter[GaussianStep] = Counter()
        for multiplier, rate, replaces, count in rows:
            step = GaussianStep(
                multiplier=float(multiplier), rate=float(rate), replaces=bool(replaces)
            )
            steps[step] += int(count)
        return cls(
            steps=steps, delta=delta, overhead=overhead, aside=aside, log_distance=log_distance
        )


def _number(value: object) -> bool:
    return is_finite(value)


def _is_step(row: object) -> bool:
    if not isinstance(row, list) or len(row) != 4 or not all(map(_number, row)):
        return False
    multiplier, rate, replaces, count = row
    known = multiplier > 0 and 0 < rate <= 1 and replaces in (0, 1)
    return bool(known and 1 <= count <= _MOST_ROUNDS and count == int(count))


def part_of(plan: PrivacyPlan, view: View, steps: Steps) -> Part:
    """A run's part, in one view."""
    charges = plan.charges
    aside, largest = charges.of(view), charges.largest[view]
    log_distance = -math.inf
    if aside > 0:
        log_distance = math.log(aside) - float(np.logaddexp(0.0, largest))
    return Part(
        steps=steps,
        delta=plan.delta,
        overhead=plan.delta - plan.delta_of(view),
        aside=aside,
        log_distance=log_distance,
    )


def left(parts: Sequence[Part]) -> float:
    """The largest of the parts' deltas, minus what all of them spend on anything but steps."""
    return max(part.delta for part in parts) - math.fsum(part.overhead for part in parts)


def covered(parts: Sequence[Part], epsilon: float) -> float:
    """The total epsilon, or infinity where the parts' noise is too far from Gaussian for it.

    Each part's distance K was charged as (1 + e^eps) K at the part's own eps. At the total's eps,
    (1 + e^eps) times the sum of the distances must not exceed what the parts set aside, plus the
    `_SPARE` of the total's delta.
    """
    distances = [part.log_distance for part in parts if part.log_distance > -math.inf]
    if not distances or math.isinf(epsilon):
        return epsilon
    needed = float(np.logaddexp.reduce(distances)) + float(np.logaddexp(0.0, epsilon))
    there = math.fsum(part.aside for part in parts) + left(parts) * _SPARE
    return epsilon if needed <= math.log(there) else math.inf


def usable(parts: Sequence[Part]) -> float:
    """The delta at which all steps together are accounted; 0 or less if nothing is left."""
    return left(parts) * (1 - _SPARE)


def cost_together(parts: Sequence[Part]) -> tuple[float, float]:
    """(epsilon, delta) of all parts together, in the view of all of them.

    Args:
        parts: at least one; a single part keeps its own figure.
    """
    delta = max(part.delta for part in parts)
    steps = _steps_of(parts)
    at = usable(parts) if len(parts) > 1 else parts[0].delta - parts[0].overhead
    if at <= 0 or math.isinf(squares_of(steps)):
        return math.inf, delta
    found = rdp_epsilon(steps, at)
    if found <= _HOPELESS or math.isinf(found):
        found = steps_epsilon(steps, at)
    return covered(parts, found), delta


def _steps_of(parts: Sequence[Part]) -> Steps:
    """All steps of all parts."""
    steps: Counter[GaussianStep] = Counter()
    for part in parts:
        steps.update(part.steps)
    return steps


def together(parts: Sequence[Part]) -> Part:
    """Several parts as one, at the largest of their deltas."""
    return Part(
        steps=_steps_of(parts),
        delta=max(part.delta for part in parts),
        overhead=math.fsum(part.overhead for part in parts),
        aside=math.fsum(part.aside for part in parts),
        log_distance=float(np.logaddexp.reduce([part.log_distance for part in parts])),
    )


def promised_part(plan: PrivacyPlan, view: View) -> Part:
    """All rounds that a plan allows, as a part in a view, each at its worst."""
    event, rounds = plan.event(), plan.rounds
    if view == "server":
        return part_of(plan, view, {server_step(event): plan.contributions(rounds)})
    step = outsider_step(event) if view == "outsider" else together_step(event)
    return part_of(plan, view, {step: plan.turns(rounds)})


def replaces(plan: PrivacyPlan, view: View) -> bool:
    """Whether neighbours replace one client in a view: where cohorts have a fixed size, but not in
    the server's view, where the client takes part either way, nor where the unit is an example."""
    return plan.unit == "client" and view != "server" and plan.event().sampling.replaces


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What one job has spent or promised, for a total with others.

    Attributes:
        part: its rounds in one view; None where only its epsilon is known.
        epsilon: its epsilon alone.
        alike: what has to be equal for two jobs' rounds to compose: unit, whether neighbours
            replace, view.
    """

    part: Part | None
    epsilon: float
    alike: tuple[str, bool, str] = ("", False, "")

    @classmethod
    def of(cls, plan: PrivacyPlan, view: View, part: Part, epsilon: float) -> Standing:
        """The standing of a job under a plan."""
        alike = (plan.unit, replaces(plan, view), view)
        return cls(part=part if plan.protected else None, epsilon=epsilon, alike=alike)


def composed(standings: Sequence[Standing]) -> float:
    """The total epsilon of several jobs on one client.

    Jobs whose rounds compose are added as one sequence of Gaussian steps, at the largest of their
    deltas, or epsilon by epsilon where that gives less, as for jobs whose budget ends them before
    their last round; the others by adding epsilons. Added epsilons hold at the sum of the deltas
    (Dwork and Roth 2014, Theorem 3.16: for (eps_i, delta_i)-differentially private M_i, "M_[k] is
    (sum eps_i, sum delta_i)-differentially private").
    """
    groups: dict[tuple[str, bool, str], list[Standing]] = {}
    total = 0.0
    for each in standings:
        if each.part is None or each.part.delta <= 0:
            total += each.epsilon
        elif each.epsilon > 0:
            groups.setdefault(each.alike, []).append(each)
    for group in groups.values():
        added = math.fsum(each.epsilon for each in group)
        if len(group) > 1:
            parts = [each.part for each in group if each.part is not None]
            added = min(added, cost_together(parts)[0])
        total += added
    return total
