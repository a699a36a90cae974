"""A job's privacy parameters: fixed before its first round, and constants of every claim.

>>> from fedsys.privacy.planning import make_plan
>>> plan = make_plan(mechanism="distributed-gaussian", population=1437, expected_cohort=100,
...     rounds=40, dimension=650, clip=0.3, delta=1e-5, noise_multiplier=0.7)
>>> PrivacyPlan.from_json(plan.to_json()) == plan
True
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast, get_args

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.accounting.costs import Accountant, accountant_of, outsider_step
from fedsys.privacy.accounting.noise_charges import NoiseCharges, noise_charges
from fedsys.privacy.events import Event, EventChoices, build_event
from fedsys.privacy.mechanisms import Mechanism, mechanism_for
from fedsys.privacy.plan_parts import (
    PARTS,
    Assumptions,
    CohortPlan,
    MechanismPlan,
    PlanValues,
    Promise,
    Unit,
    UpdatePlan,
)
from fedsys.privacy.sampling.aborts import ABORT_SHARE, abort_delta
from fedsys.privacy.sampling.quorum import Cohorts, quorum_delta, remedy
from fedsys.privacy.views import View

__all__ = ["LEAST_NOISE", "PrivacyPlan", "QuorumMissed", "event_choices", "turn_groups"]

LEAST_NOISE = 1e-2
"""The smallest noise multiplier: plans below it are refused and calibration stops there."""

_MOST_ROUNDS = 10**9
_LARGEST_POPULATION = 1 << 28
"""A bound on the accountant's memory: it keeps an index per client."""


class QuorumMissed(MechanismError):
    """A plan whose cohorts miss the quorum of secure aggregation too often.

    Attributes:
        cohorts: the plan's cohorts.
        delta: the plan's delta.
    """

    def __init__(self, message: str, *, cohorts: Cohorts, delta: float) -> None:
        super().__init__(message)
        self.cohorts = cohorts
        self.delta = delta

    def remedy(self) -> str:
        """What would help. It is searched for, which takes seconds: not for a plan of a stranger's.

        The cost may take half of what aborts may: bounds on the cohort's size need some of it too.
        """
        return remedy(self.cohorts, self.delta * ABORT_SHARE / 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyPlan(PlanValues):
    """Everything a job's accountant needs to know apart from the rounds themselves.

    Each value of its parts is also a property of the plan (`PlanValues`) and a key of its JSON.

    Attributes:
        rounds: T, the number of rounds that delta covers.
        delta: the job's delta, the same in every view.
        how: mechanism and noise.
        update: dimension, clipping norm and encoding.
        cohorts: population, sampling and bounds.
        promise: guaranteed view, budget and unit.
        assumed: assumptions about clients.

    Raises:
        MechanismError: a value is out of range, two values are incompatible, or visible aborts or
            the noise's distance from a Gaussian would cost too large a part of delta.
    """

    rounds: int
    delta: float
    how: MechanismPlan
    update: UpdatePlan
    cohorts: CohortPlan
    promise: Promise
    assumed: Assumptions

    def __post_init__(self) -> None:
        validation.integer("population", self.population, most=_LARGEST_POPULATION)
        validation.integer("rounds", self.rounds, most=_MOST_ROUNDS)
        if validation.integer("cap", self.cap) > self.population:
            raise MechanismError(
                f"cap={self.cap} exceeds population={self.population}: no cohort is that large"
            )
        validation.fraction("delta", self.delta)
        validation.fraction("dropout", self.dropout, zero=True)
        validation.one_of("unit", self.unit, get_args(Unit))
        if self.budget is not None:
            validation.positive("epsilon", self.budget)
        if self.max_participations is not None:
            validation.integer("max_participations", self.max_participations)
        if self.min_separation is not None:
            validation.integer("min_separation", self.min_separation)
        if self.corrupt is not None:
            validation.fraction("corrupt", self.corrupt, zero=True)
        self._check_combinations()
        event = self.event()
        if self.mechanism == "none":
            return
        if self.delta_quorum > self.delta * ABORT_SHARE:
            raise QuorumMissed(
                f"a cohort of {self.expected_cohort:g} with corrupt={self.corrupt:g} and "
                f"dropout={self.dropout:g} misses the quorum of secure aggregation too often: that "
                f"is visible and costs {self.delta_quorum:.3g} over {self.rounds} rounds, more "
                f"than a tenth of delta={self.delta:g}",
                cohorts=self._cohorts,
                delta=self.delta,
            )
        if self.delta_abort > self.delta * ABORT_SHARE:
            raise MechanismError(
                f"visible aborts cost delta_abort={self.delta_abort:.3g}, more than a tenth of "
                f"delta={self.delta:g}: raise cap={event.cap} or lower "
                f"min_survivors={event.min_survivors}"
            )
        self.charges.require(self.guarantee)

    def _check_combinations(self) -> None:
        if self.mechanism != "none" and 0 < self.noise_multiplier < LEAST_NOISE:
            raise MechanismError(
                f"noise_multiplier={self.noise_multiplier:g} is below {LEAST_NOISE:g}: an epsilon "
                "of thousands protects nobody and exceeds what accountants can compute; raise it, "
                "or choose mechanism='none'"
            )
        if self.guarantee == "server" and self.max_participations is None:
            raise MechanismError(
                "guarantee='server' needs max_participations: its epsilon is composed over the "
                "rounds in which one client takes part; set privacy.max_participations"
            )
        if self.sampling == "min-separation" and (
            self.max_participations is None or self.min_separation is None
        ):
            raise MechanismError(
                "sampling='min-separation' needs min_separation and max_participations, got "
                f"{self.min_separation} and {self.max_participations}"
            )
        if self.sampling in ("arrivals", "chosen") and (
            self.max_participations is None or self.min_separation is not None
        ):
            raise MechanismError(
                f"sampling={self.sampling!r} needs max_participations, over which its epsilon is "
                f"composed, and takes no min_separation, got {self.max_participations} and "
                f"{self.min_separation}"
            )
        if (self.unit == "example") != (self.mechanism == "example-gaussian"):
            raise MechanismError(
                f"unit={self.unit!r} does not go with mechanism={self.mechanism!r}: "
                "example-gaussian protects examples, the others protect clients"
            )

    @property
    def by_turns(self) -> bool:
        """Whether the cost depends on how often a client takes part, not on random sampling."""
        return self.event().sampling.by_turns

    # -- delta and its parts ----------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """q = n / N."""
        return self.expected_cohort / self.population

    @property
    def delta_abort(self) -> float:
        """The part of delta spent on aborts that an outsider or participant can see."""
        if self.mechanism == "none" or self.sampling == "arrivals":
            # Either nothing is promised, or neighbours have the same arrivals and the same aborts.
            return 0.0
        return min(1.0, self._delta_bounds + self.delta_quorum)

    @property
    def delta_quorum(self) -> float:
        """The part of `delta_abort` for rounds that miss the quorum of secure aggregation."""
        if self.mechanism == "none" or self.corrupt is None or self.sampling == "arrivals":
            return 0.0
        return quorum_delta(self._cohorts)

    @property
    def _cohorts(self) -> Cohorts:
        return Cohorts(
            population=self.population,
            expected=self.expected_cohort,
            rounds=self.rounds,
            cap=self.cap,
            min_survivors=self.min_survivors,
            corrupt=self.corrupt or 0.0,
            dropout=self.dropout,
            colluders=self.colluders,
            sampling=self.sampling,
            groups=turn_groups(self.mechanism, self.sampling, self.min_separation),
        )

    @property
    def _delta_bounds(self) -> float:
        return abort_delta(
            population=self.population,
            expected_cohort=self.expected_cohort,
            rounds=self.rounds,
            cap=self.cap,
            min_survivors=self.min_survivors,
            dropout=self.dropout,
            sampling=self.sampling,
            groups=turn_groups(self.mechanism, self.sampling, self.min_separation),
        )

    @property
    def charges(self) -> NoiseCharges:
        """The part of delta, by view, spent on the noise's distance from a Gaussian."""
        return _charges_of(self)

    def delta_of(self, view: View) -> float:
        """The delta at which a view is accounted.

        The job's delta less what the noise's distance from a Gaussian costs in that view and, but
        for the server (which sees cohorts anyway), less the cost of visible aborts.
        """
        left = self.delta - self.charges.of(view)
        return left if view == "server" else left - self.delta_abort

    @property
    def delta_released(self) -> float:
        """The delta at which the outsider's view is accounted."""
        return self.delta_of("outsider")

    @property
    def delta_server(self) -> float:
        """The delta at which the server's view is accounted."""
        return self.delta_of("server")

    # -- derived values ----------------------------------------------------------------------------

    def event(self, *, clip: float | None = None) -> Event:
        """One round's event, at another clipping norm if that has adapted.

        Raises:
            MechanismError: ``clip`` is not above 0, or the ring is too small for it.
        """
        return _event_of(self, self.clip if clip is None else clip)

    def build_mechanism(self, *, clip: float | None = None) -> Mechanism:
        """One round's mechanism, at another clipping norm if that has adapted.

        Raises:
            MechanismError: as for `event`, or noise of that size cannot be drawn.
        """
        return mechanism_for(self.event(clip=clip))

    def covers(self, event: Event) -> bool:
        """Whether an event describes a round of this plan, at any norm where the norm adapts.

        Raises:
            MechanismError: no event of this plan can have the given event's norm.
        """
        if not self.adaptive_clip and event.clip != self.clip:
            return False
        return self.event(clip=event.clip) == event

    @property
    def accountant(self) -> Accountant:
        """The accountant whose outsider epsilon is reported."""
        return accountant_of({outsider_step(self.event()): 1}, self.delta_released)

    def turns(self, rounds: int) -> int:
        """The most of the first ``rounds`` rounds that count against one client, for an outsider.

        All of them under Poisson or fixed sampling; one in b where participations are b rounds
        apart; never more than max_participations where that is enforced.
        """
        apart = 1
        if self.sampling == "min-separation" and self.min_separation is not None:
            apart = self.min_separation
        apart = max(apart, turn_groups(self.mechanism, self.sampling, self.min_separation))
        turns = -(-rounds // apart)
        limited = self.by_turns or self.unit == "example"
        if limited and self.max_participations is not None:
            turns = min(turns, self.max_participations)
        return turns

    def contributions(self, rounds: int) -> int:
        """The most of the first ``rounds`` rounds to which one client can have contributed, for
        somebody who sees the cohorts."""
        turns = self.turns(rounds)
        return turns if self.max_participations is None else min(turns, self.max_participations)

    def to_json(self) -> dict[str, Any]:
        """A flat JSON object for the ledger's header; ``from_json`` restores the plan."""
        body: dict[str, Any] = {"rounds": self.rounds, "delta": self.delta}
        for name in PARTS:
            body |= dataclasses.asdict(getattr(self, name))
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> PrivacyPlan:
        """The plan that a header describes.

        Raises:
            MechanismError: a key is missing or unknown, or a value is invalid.
        """
        known = {
            name: [item.name for item in dataclasses.fields(part)] for name, part in PARTS.items()
        }
        wrong = set(body) ^ {"rounds", "delta", *(key for keys in known.values() for key in keys)}
        if wrong:
            raise MechanismError(
                f"a privacy plan has missing or unknown keys: {', '.join(sorted(wrong))}"
            )
        parts = {
            name: PARTS[name](**{key: body[key] for key in keys}) for name, keys in known.items()
        }
        return cls(rounds=body["rounds"], delta=body["delta"], **parts)

    def changed(self, **values: Any) -> PrivacyPlan:
        """A copy of the plan with some values replaced, by the keys of its JSON.

        Raises:
            MechanismError: a key is unknown, or a value is invalid.
        """
        return PrivacyPlan.from_json({**self.to_json(), **values})

    @property
    def protected(self) -> bool:
        """Whether any noise is added at all."""
        return self.mechanism != "none"


def event_choices(body: Mapping[str, Any]) -> EventChoices:
    """The choices for one round that a plan's flat values contain."""
    chosen = {name: body[name] for name in EventChoices.__annotations__ if name in body}
    return cast(EventChoices, {**chosen, "horizon": body["rounds"]})


@lru_cache(maxsize=256)
def _event_of(plan: PrivacyPlan, clip: float) -> Event:
    return build_event(plan.mechanism, **event_choices({**plan.to_json(), "clip": clip}))


@lru_cache(maxsize=256)
def _charges_of(plan: PrivacyPlan) -> NoiseCharges:
    return noise_charges(
        plan.event(),
        delta=plan.delta,
        rounds=plan.rounds,
        turns=plan.turns(plan.rounds),
        contributions=plan.contributions(plan.rounds),
    )


def turn_groups(mechanism: str, sampling: str, min_separation: int | None) -> int:
    """The number of cyclic groups that take turns; 1 except under banded-mf with Poisson
    sampling."""
    cyclic = mechanism == "banded-mf" and sampling == "poisson"
    return min_separation if cyclic and min_separation is not None else 1
