"""Other people's accountants on the outsider's epsilon: dp-accounting always, Opacus where it fits.

Each re-derives the same job from its noise multipliers and sampling rates alone:

- dp-accounting's Rényi accountant on Gaussian noise of the same variance: for Gaussian mechanisms a
  cross-check from above, for Skellam noise a bound from below (Skellam noise costs more);
- dp-accounting's loss distributions: what is reported where they apply, else a tighter figure;
- Opacus' PRV accountant: a second opinion on Poisson-sampled Gaussian rounds.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dp_accounting
from dp_accounting.rdp import rdp_privacy_accountant

from fedsys.audit.spending import Spending
from fedsys.audit.wording import claim, epsilon_text
from fedsys.errors import MechanismError
from fedsys.privacy import Event, PrivacyPlan
from fedsys.privacy.costs import gaussian_steps
from fedsys.privacy.events import GaussianEvent, SkellamEvent
from fedsys.privacy.pld import DISCRETIZATION, gaussian_pld_epsilon
from fedsys.privacy.rdp import ORDERS
from fedsys.records import Claim

__all__ = ["GaussianRounds", "cross_checks", "gaussian_rounds"]

_VERSION = importlib.metadata.version("dp-accounting")
_SLACK = 1e-6
_LEFT_OUT = 0.01
"""By how much dp-accounting's figure may be too high for orders that it leaves out."""
_BETWEEN_ORDERS = 0.05
"""By how much our bound at fractional orders may exceed the exact value."""
_COMPARABLE = 6.0
"""Epsilon up to which both hold of every job. Beyond, the best order may come close to 1, where our
bound is loose and dp-accounting leaves orders out: either may exceed the other by most of it."""
_WIDEST_GRID = 100.0
"""Epsilon above which no further loss distribution is computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianRounds:
    """A job as Gaussian mechanisms, for accountants that know nothing else.

    Attributes:
        steps: (noise multiplier, Poisson sampling rate, how often); only those in which one client
            can take part.
        subset: (population, cohort) where cohorts have a fixed size, else None.
        exact: whether the mechanism is Gaussian, so that figures must agree; otherwise they are
            bounds from below.
    """

    steps: tuple[tuple[float, float, int], ...]
    subset: tuple[int, int] | None
    exact: bool

    @property
    def sampled(self) -> bool:
        """Whether every step is Poisson-sampled."""
        return self.subset is None and all(rate < 1 for _, rate, _ in self.steps)


def gaussian_rounds(plan: PrivacyPlan, events: Counter[Event]) -> GaussianRounds | None:
    """The job as Gaussian rounds; None where a mechanism's cost is of another kind."""
    counts: Counter[tuple[float, float]] = Counter()
    for event, count in events.items():
        found = _steps_of(event)
        if found is None:
            return None
        key, steps = found
        counts[key] += steps * count
    rounds = sum(events.values())
    turns = plan.turns(rounds)
    if turns < rounds:  # at worst all of them at the least noise
        worst = min(multiplier for multiplier, _ in counts), max(rate for _, rate in counts)
        counts = Counter({worst: -(-counts.total() * turns // rounds)})
    fixed = plan.unit == "client" and plan.sampling == "fixed" and plan.participation == 1
    return GaussianRounds(
        steps=tuple(sorted((*key, count) for key, count in counts.items())),
        subset=(plan.population, round(plan.expected_cohort)) if fixed else None,
        exact=not any(isinstance(event, SkellamEvent) for event in events),
    )


def _steps_of(event: Event) -> tuple[tuple[float, float], int] | None:
    """((noise multiplier, sampling rate), steps) of one round; None if it is no Gaussian one."""
    if not isinstance(event, (GaussianEvent, SkellamEvent)):
        try:
            return gaussian_steps(event)
        except MechanismError:
            return None
    how = event.sampling
    rate = how.participation * (how.rate if how.kind == "poisson" else 1.0)
    return (float(f"{math.sqrt(event.total_variance) / event.l2:.12g}"), rate), 1


def cross_checks(plan: PrivacyPlan, events: Counter[Event], spending: Spending) -> Iterator[Claim]:
    """One claim for each further accountant that applies."""
    rounds = gaussian_rounds(plan, events)
    if rounds is None or not rounds.steps:
        return
    delta, reported = plan.delta_released, spending.spent.outsider
    by_rdp = _dp_accounting_rdp(rounds, delta)
    if rounds.exact:
        ours = reported if plan.accountant == "rdp" else spending.rdp_outsider
        yield claim(
            "Epsilon cross-check: Rényi orders",
            _agree(reported, ours, by_rdp),
            claimed=f"{epsilon_text(reported)} reported, {epsilon_text(ours)} by our orders",
            rederived=epsilon_text(by_rdp),
            by=f"dp-accounting {_VERSION} RDP",
        )
    else:
        yield claim(
            "Epsilon cross-check: Gaussian noise of the same variance",
            reported * (1 + _LEFT_OUT) >= by_rdp - _SLACK,
            claimed=epsilon_text(reported),
            rederived=f"at least {epsilon_text(by_rdp)}",
            by=f"dp-accounting {_VERSION} RDP on Gaussian rounds, a bound from below",
        )
    if rounds.exact and rounds.subset is None and plan.accountant != "pld":
        yield _loss_distribution(rounds, delta, reported)
    if rounds.exact and rounds.sampled and reported < _WIDEST_GRID:
        yield _opacus(rounds, delta, reported, plan.accountant == "pld")


def _agree(reported: float, ours: float, theirs: float) -> bool | None:
    """Whether both Rényi figures agree and cover what is reported; None: too large to compare."""
    if reported > ours + _SLACK:
        return False
    if (
        theirs <= ours * (1 + _LEFT_OUT) + _SLACK
        and ours <= theirs * (1 + _BETWEEN_ORDERS) + _SLACK
    ):
        return True
    alike = theirs <= 2 * ours and ours <= 2 * theirs
    return None if alike and max(ours, theirs) > _COMPARABLE else False


def _dp_accounting_rdp(rounds: GaussianRounds, delta: float) -> float:
    """By dp-accounting's Rényi accountant.

    Under REPLACE_ONE it leaves the sensitivity as it is, although one client's update replaced by
    another moves the sum twice as far: the multiplier is halved here.
    """
    relation = dp_accounting.NeighboringRelation
    accountant = rdp_privacy_accountant.RdpAccountant(
        ORDERS.tolist(),
        relation.ADD_OR_REMOVE_ONE if rounds.subset is None else relation.REPLACE_ONE,
    )
    for multiplier, rate, count in rounds.steps:
        if rounds.subset is None:
            event = dp_accounting.GaussianDpEvent(multiplier)
            if rate < 1:
                event = dp_accounting.PoissonSampledDpEvent(rate, event)
        else:
            event = dp_accounting.SampledWithoutReplacementDpEvent(
                *rounds.subset, dp_accounting.GaussianDpEvent(multiplier / 2)
            )
        with _quiet():
            accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without dp-accounting's remark on each order that it leaves out of the minimum."""

    def wanted(record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _loss_distribution(rounds: GaussianRounds, delta: float, reported: float) -> Claim:
    by = f"dp-accounting {_VERSION} PLD in steps of {DISCRETIZATION:g}"
    if not reported < _WIDEST_GRID:
        return claim(
            "Epsilon cross-check: loss distribution",
            None,
            claimed=epsilon_text(reported),
            rederived="too little noise to be worth one",
            by=by,
        )
    steps = {(multiplier, rate): count for multiplier, rate, count in rounds.steps}
    tight = gaussian_pld_epsilon(steps, delta)
    return claim(
        "Epsilon cross-check: loss distribution",
        tight <= reported + DISCRETIZATION * 10 + _SLACK,
        claimed=f"at most {epsilon_text(reported)}",
        rederived=epsilon_text(tight),
        by=by,
    )


def _opacus(rounds: GaussianRounds, delta: float, reported: float, tight: bool) -> Claim:
    name = "Epsilon cross-check: second opinion"
    try:
        from fedsys.audit.opacus_accounting import prv_epsilon
    except ImportError:
        return claim(
            name,
            None,
            claimed=epsilon_text(reported),
            rederived="Opacus is not installed",
            by="Opacus PRV",
            rests_on="dp-accounting",
        )
    try:
        opinion = prv_epsilon(rounds.steps, delta)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        return claim(
            name,
            None,
            claimed=epsilon_text(reported),
            rederived=f"Opacus cannot tell: {error}",
            by="Opacus PRV",
            rests_on="dp-accounting",
        )
    slack = 0.02 + 0.01 * reported
    return claim(
        name,
        opinion <= reported + slack and (not tight or reported <= opinion + slack),
        claimed=epsilon_text(reported),
        rederived=epsilon_text(opinion),
        by="Opacus PRV",
    )
