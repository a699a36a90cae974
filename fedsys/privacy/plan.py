"""A job's privacy parameters, fixed before its first round: constants of every claim.

>>> plan = make_plan(mechanism="distributed-gaussian", population=1437, expected_cohort=100,
...     rounds=40, dimension=650, clip=0.3, delta=1e-5, noise_multiplier=0.7)
>>> plan.cap, plan.min_survivors, plan.modulus_bits
(163, 44, 20)
>>> PrivacyPlan.from_json(plan.to_json()) == plan
True
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Unpack, cast, get_args

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.accounting.costs import Accountant, accountant_of, outsider_step
from fedsys.privacy.accounting.noise_charges import NoiseCharges, noise_charges
from fedsys.privacy.events import (
    EncodingKind,
    Event,
    EventChoices,
    Guarantee,
    Noise,
    SamplingKind,
    build_event,
)
from fedsys.privacy.mechanisms import Mechanism, mechanism_for
from fedsys.privacy.sampling.aborts import ABORT_SHARE, abort_delta, choose_cap_and_min_survivors
from fedsys.privacy.sampling.quorum import Cohorts, quorum_delta, remedy
from fedsys.privacy.views import View

__all__ = [
    "LEAST_NOISE",
    "Assumptions",
    "CohortPlan",
    "MechanismPlan",
    "PlanChoices",
    "PrivacyPlan",
    "Promise",
    "Unit",
    "UpdatePlan",
    "make_plan",
]

Unit = Literal["client", "example"]

LEAST_NOISE = 1e-2
"""Multipliers below it are refused, and calibration ends there."""

_LARGEST_POPULATION = 1 << 28
"""The accountant keeps an index of every client."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MechanismPlan:
    """Which noise is added.

    Attributes:
        mechanism: name of the mechanism.
        noise_multiplier: z.
        noise: ``per-client``, or ``once`` where a simulation draws the noise of the whole sum.
        example_rate: largest probability of an example being in a local batch (unit ``example``).
        steps: local steps in a round, at most (unit ``example``).
    """

    mechanism: str
    noise_multiplier: float
    noise: Noise = "per-client"
    example_rate: float | None = None
    steps: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdatePlan:
    """What an update is and how it becomes integers.

    Attributes:
        dimension: d, coordinates of an update.
        clip: C, the clipping norm (of the first round, where it adapts).
        encoding: ``wide``, ``narrow``, or ``float`` (see `fedsys.privacy.encoding.float_sums`).
        modulus_bits: b.
        adaptive_clip: whether rounds may clip at other norms than ``clip``; the cost is the same.
    """

    dimension: int
    clip: float
    encoding: EncodingKind = "wide"
    modulus_bits: int = 32
    adaptive_clip: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortPlan:
    """How cohorts come about, and how large and how often.

    Attributes:
        population: N, clients that might be sampled.
        expected_cohort: n = q N.
        cap: n_cap.
        min_survivors: m.
        sampling: how cohorts come about.
        participation: p of secret participation.
        max_participations: rounds to which any client contributes its update at most; in further
            ones it sends zeros and its share of noise, and in buffered rounds it is not asked.
        min_separation: rounds between two participations of one client, where that is enforced;
            under banded-mf with Poisson sampling the number of groups that take turns.
    """

    population: int
    expected_cohort: float
    cap: int
    min_survivors: int
    sampling: SamplingKind = "poisson"
    participation: float = 1.0
    max_participations: int | None = None
    min_separation: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Promise:
    """What is promised, and to whom.

    Attributes:
        guarantee: for which view z holds the budget.
        budget: epsilon not to be exceeded in the guaranteed view; None for no limit.
        unit: whose contribution is protected.
    """

    guarantee: Guarantee = "outsider"
    budget: float | None = None
    unit: Unit = "client"


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
    """What is assumed of clients and cannot be seen.

    Attributes:
        colluders: c, curious clients beside the server or among the participants.
        dropout: the assumed probability that a sampled client drops out.
        corrupt: fraction of a cohort that secure aggregation takes for colluders, on which its
            quorum rests; None where sums come about without it.
    """

    colluders: int = 0
    dropout: float = 0.0
    corrupt: float | None = None


_PARTS: Mapping[str, type[Any]] = {
    "how": MechanismPlan,
    "update": UpdatePlan,
    "cohorts": CohortPlan,
    "promise": Promise,
    "assumed": Assumptions,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyPlan:
    """Everything that the accountant of a job needs to know beside its rounds.

    Each value of its parts is also a property of the plan, and a key of its JSON.

    Attributes:
        rounds: T, the number of rounds for which delta is split.
        delta: of the job, in every view.
        how: mechanism and noise.
        update: dimension, clipping norm and encoding.
        cohorts: population, sampling and bounds.
        promise: guaranteed view, budget and unit.
        assumed: of clients.

    Raises:
        MechanismError: a value is out of range, two do not go together, or what aborts that show or
            the noise's distance from a Gaussian cost is too large a part of delta.
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
        validation.integer("rounds", self.rounds)
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
            raise MechanismError(
                f"a cohort of {self.expected_cohort:g} with corrupt={self.corrupt:g} and "
                f"dropout={self.dropout:g} misses the quorum of secure aggregation too often: that "
                f"shows, and costs {self.delta_quorum:.3g} over {self.rounds} rounds, more than a "
                f"tenth of delta={self.delta:g}: {self._quorum_remedy}"
            )
        if self.delta_abort > self.delta * ABORT_SHARE:
            raise MechanismError(
                f"aborts that show cost delta_abort={self.delta_abort:.3g}, more than a tenth of "
                f"delta={self.delta:g}: raise cap={event.cap} or lower "
                f"min_survivors={event.min_survivors}"
            )
        self.charges.require(self.guarantee)

    def _check_combinations(self) -> None:
        if self.mechanism != "none" and 0 < self.noise_multiplier < LEAST_NOISE:
            raise MechanismError(
                f"noise_multiplier={self.noise_multiplier:g} is below {LEAST_NOISE:g}: an epsilon "
                "of thousands protects nobody, and accountants cannot hold it; raise it, or say "
                "mechanism='none'"
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
        if self.sampling == "arrivals" and (
            self.max_participations is None or self.min_separation is not None
        ):
            raise MechanismError(
                "sampling='arrivals' needs max_participations, over which its epsilon is composed, "
                f"and knows no min_separation, got {self.max_participations} and "
                f"{self.min_separation}"
            )
        if (self.unit == "example") != (self.mechanism == "example-gaussian"):
            raise MechanismError(
                f"unit={self.unit!r} does not go with mechanism={self.mechanism!r}: "
                "example-gaussian protects examples, the others protect clients"
            )

    # -- the parts' values ------------------------------------------------------------------------

    @property
    def mechanism(self) -> str:
        """Name of the mechanism."""
        return self.how.mechanism

    @property
    def noise_multiplier(self) -> float:
        """z."""
        return self.how.noise_multiplier

    @property
    def noise(self) -> Noise:
        """``once`` where a simulation draws the noise of the whole sum."""
        return self.how.noise

    @property
    def example_rate(self) -> float | None:
        """Largest probability of an example being in a local batch."""
        return self.how.example_rate

    @property
    def steps(self) -> int | None:
        """Local steps in a round, at most."""
        return self.how.steps

    @property
    def dimension(self) -> int:
        """d."""
        return self.update.dimension

    @property
    def clip(self) -> float:
        """C, of the first round."""
        return self.update.clip

    @property
    def encoding(self) -> EncodingKind:
        """How updates become integers."""
        return self.update.encoding

    @property
    def modulus_bits(self) -> int:
        """b."""
        return self.update.modulus_bits

    @property
    def adaptive_clip(self) -> bool:
        """Whether rounds may clip at other norms than ``clip``."""
        return self.update.adaptive_clip

    @property
    def population(self) -> int:
        """N."""
        return self.cohorts.population

    @property
    def expected_cohort(self) -> float:
        """n = q N."""
        return self.cohorts.expected_cohort

    @property
    def cap(self) -> int:
        """n_cap."""
        return self.cohorts.cap

    @property
    def min_survivors(self) -> int:
        """m."""
        return self.cohorts.min_survivors

    @property
    def sampling(self) -> SamplingKind:
        """How cohorts come about."""
        return self.cohorts.sampling

    @property
    def by_turns(self) -> bool:
        """Whether no randomness of the sampling counts, only how often a client takes part."""
        return self.event().sampling.by_turns

    @property
    def participation(self) -> float:
        """p of secret participation."""
        return self.cohorts.participation

    @property
    def max_participations(self) -> int | None:
        """Rounds to which any client contributes its update at most."""
        return self.cohorts.max_participations

    @property
    def min_separation(self) -> int | None:
        """Rounds between two participations of one client."""
        return self.cohorts.min_separation

    @property
    def guarantee(self) -> Guarantee:
        """For which view z holds the budget."""
        return self.promise.guarantee

    @property
    def budget(self) -> float | None:
        """Epsilon not to be exceeded in the guaranteed view."""
        return self.promise.budget

    @property
    def unit(self) -> Unit:
        """Whose contribution is protected."""
        return self.promise.unit

    @property
    def colluders(self) -> int:
        """c."""
        return self.assumed.colluders

    @property
    def dropout(self) -> float:
        """The assumed probability that a sampled client drops out."""
        return self.assumed.dropout

    @property
    def corrupt(self) -> float | None:
        """Fraction of a cohort that secure aggregation takes for colluders."""
        return self.assumed.corrupt

    # -- delta and its parts ----------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """q = n / N."""
        return self.expected_cohort / self.population

    @property
    def delta_abort(self) -> float:
        """Part of delta for aborts that an outsider or participant can see, for any reason."""
        if self.mechanism == "none" or self.sampling == "arrivals":
            # nothing is promised; or neighbours have the same arrivals, and so the same aborts
            return 0.0
        return min(1.0, self._delta_bounds + self.delta_quorum)

    @property
    def delta_quorum(self) -> float:
        """Part of it for rounds that miss the quorum of secure aggregation."""
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
            groups=_groups(self.mechanism, self.sampling, self.min_separation),
        )

    @property
    def _quorum_remedy(self) -> str:
        # half of what aborts may take: the bounds of cohorts need some of it
        return remedy(self._cohorts, self.delta * ABORT_SHARE / 2)

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
            groups=_groups(self.mechanism, self.sampling, self.min_separation),
        )

    @property
    def charges(self) -> NoiseCharges:
        """Part of delta, by view, for the noise's distance from a Gaussian."""
        return _charges_of(self)

    def delta_of(self, view: View) -> float:
        """Delta at which a view is accounted: less what aborts that show cost, which the server
        sees anyway, and what the noise's distance from a Gaussian costs in that view."""
        left = self.delta - self.charges.of(view)
        return left if view == "server" else left - self.delta_abort

    @property
    def delta_released(self) -> float:
        """Delta at which the outsider's view is accounted."""
        return self.delta_of("outsider")

    @property
    def delta_server(self) -> float:
        """Delta at which the server's view is accounted."""
        return self.delta_of("server")

    # -- what follows -----------------------------------------------------------------------------

    def event(self, *, clip: float | None = None) -> Event:
        """The event of one round, at another clipping norm if it has adapted.

        Raises:
            MechanismError: ``clip`` is not above 0, or the ring is too small for it.
        """
        return _event_of(self, self.clip if clip is None else clip)

    def build_mechanism(self, *, clip: float | None = None) -> Mechanism:
        """The mechanism of one round, at another clipping norm if it has adapted.

        Raises:
            MechanismError: as `event`, or noise of that size cannot be drawn.
        """
        return mechanism_for(self.event(clip=clip))

    def covers(self, event: Event) -> bool:
        """Whether an event is one of this plan's rounds (at whatever norm, where it adapts).

        Raises:
            MechanismError: no event of this plan has that norm.
        """
        if not self.adaptive_clip and event.clip != self.clip:
            return False
        return self.event(clip=event.clip) == event

    @property
    def accountant(self) -> Accountant:
        """The accountant whose outsider epsilon is reported."""
        return accountant_of({outsider_step(self.event()): 1}, self.delta_released)

    def turns(self, rounds: int) -> int:
        """In how many of the first ``rounds`` rounds one client can have taken part, at most.

        Those are the rounds that an outsider counts: all of them under Poisson or fixed sampling,
        one in b where participations are b rounds apart, no more than max_participations where
        that is enforced.
        """
        apart = 1
        if self.sampling == "min-separation" and self.min_separation is not None:
            apart = self.min_separation
        apart = max(apart, _groups(self.mechanism, self.sampling, self.min_separation))
        turns = -(-rounds // apart)
        limited = self.by_turns or self.unit == "example"
        if limited and self.max_participations is not None:
            turns = min(turns, self.max_participations)
        return turns

    def contributions(self, rounds: int) -> int:
        """To how many of the first ``rounds`` rounds one client can have contributed, at most, for
        whoever sees the cohorts."""
        turns = self.turns(rounds)
        return turns if self.max_participations is None else min(turns, self.max_participations)

    def to_json(self) -> dict[str, Any]:
        """A flat JSON object for the ledger's header; ``from_json`` restores the plan."""
        body: dict[str, Any] = {"rounds": self.rounds, "delta": self.delta}
        for name in _PARTS:
            body |= dataclasses.asdict(getattr(self, name))
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> PrivacyPlan:
        """The plan that a header describes.

        Raises:
            MechanismError: a key is missing or unknown, or a value cannot be.
        """
        known = {
            name: [item.name for item in dataclasses.fields(part)] for name, part in _PARTS.items()
        }
        wrong = set(body) ^ {"rounds", "delta", *(key for keys in known.values() for key in keys)}
        if wrong:
            raise MechanismError(
                f"a privacy plan has missing or unknown keys: {', '.join(sorted(wrong))}"
            )
        parts = {
            name: _PARTS[name](**{key: body[key] for key in keys}) for name, keys in known.items()
        }
        return cls(rounds=body["rounds"], delta=body["delta"], **parts)

    def changed(self, **values: Any) -> PrivacyPlan:
        """The plan with other values of its parts, by the keys of its JSON.

        Raises:
            MechanismError: there is no such key, or a value cannot be.
        """
        return PrivacyPlan.from_json({**self.to_json(), **values})

    @property
    def protected(self) -> bool:
        """Whether any noise is added at all."""
        return self.mechanism != "none"


def _event_choices(body: Mapping[str, Any]) -> EventChoices:
    """What a plan's flat values choose of one round."""
    chosen = {name: body[name] for name in EventChoices.__annotations__ if name in body}
    return cast(EventChoices, {**chosen, "horizon": body["rounds"]})


@lru_cache(maxsize=256)
def _event_of(plan: PrivacyPlan, clip: float) -> Event:
    return build_event(plan.mechanism, **_event_choices({**plan.to_json(), "clip": clip}))


@lru_cache(maxsize=256)
def _charges_of(plan: PrivacyPlan) -> NoiseCharges:
    return noise_charges(
        plan.event(),
        delta=plan.delta,
        rounds=plan.rounds,
        turns=plan.turns(plan.rounds),
        contributions=plan.contributions(plan.rounds),
    )


def _groups(mechanism: str, sampling: str, min_separation: int | None) -> int:
    """Cyclic groups that take turns: under banded-mf with Poisson sampling only."""
    cyclic = mechanism == "banded-mf" and sampling == "poisson"
    return min_separation if cyclic and min_separation is not None else 1


class PlanChoices(EventChoices, total=False):
    """What a plan may be given beside what `EventChoices` lists, flat.

    Attributes:
        mechanism: name of the mechanism.
        rounds: T.
        delta: of the job.
        epsilon: instead of ``noise_multiplier``: the least noise that meets it is chosen, and it is
            the budget unless one is given.
        budget: epsilon not to be exceeded.
        dropout: assumed; 0.05 by default.
        corrupt: assumed of secure aggregation, or None.
        max_participations: rounds to which a client contributes at most.
        unit: follows from the mechanism by default.
        adaptive_clip: whether the norm adapts.
    """

    mechanism: str
    rounds: int
    delta: float
    epsilon: float | None
    budget: float | None
    dropout: float
    corrupt: float | None
    max_participations: int | None
    unit: Unit | None
    adaptive_clip: bool


def make_plan(**choices: Unpack[PlanChoices]) -> PrivacyPlan:
    """A plan with everything derived that was left out or is None.

    Give ``noise_multiplier``, or ``epsilon`` for the least noise that meets it in the guaranteed
    view. Cap and fewest survivors default to the tightest whose aborts cost at most a hundredth of
    delta, ``modulus_bits`` (or 0) to the least ring that holds the largest sum and its noise.

    Args:
        **choices: see `PlanChoices`.

    Raises:
        MechanismError: a value is out of range, or nothing meets the target.
    """
    body: dict[str, Any] = {name: value for name, value in choices.items() if value is not None}
    mechanism, epsilon = body["mechanism"], body.pop("epsilon", None)
    body.setdefault("dropout", 0.05)
    if "cap" not in body or "min_survivors" not in body:
        _derive_bounds(body)
    body.setdefault("unit", "example" if mechanism == "example-gaussian" else "client")
    body.setdefault("noise", "once" if body.get("encoding") == "float" else "per-client")
    if mechanism == "none":
        body["noise_multiplier"] = 0.0
    elif ("noise_multiplier" in body) == (epsilon is not None):
        raise MechanismError(
            "give either noise_multiplier or epsilon, got "
            f"noise_multiplier={body.get('noise_multiplier')!r} and epsilon={epsilon!r}"
        )
    target = None
    if epsilon is not None and mechanism != "none":
        from fedsys.privacy.calibration import calibrate

        target = validation.positive("epsilon", epsilon)
        body.setdefault("budget", target)
        trial = _plan_of({"modulus_bits": _any_ring(body), **_whole(body), "noise_multiplier": 1.0})
        body["noise_multiplier"] = calibrate(target, trial)
    if not body.get("modulus_bits"):
        event = build_event(mechanism, **_event_choices({**_whole(body), "modulus_bits": 0}))
        body["modulus_bits"] = event.modulus_bits
    return _plan_of(body)


def _derive_bounds(body: dict[str, Any]) -> None:
    sampling = body.get("sampling", "poisson")
    if sampling == "arrivals":  # a buffer holds the same number of uploads every time
        body.setdefault("cap", round(body["expected_cohort"]))
        body.setdefault("min_survivors", round(body["expected_cohort"]))
        return
    guarantee = body.get("guarantee", "outsider")
    bounds = choose_cap_and_min_survivors(
        population=body["population"],
        expected_cohort=body["expected_cohort"],
        rounds=body["rounds"],
        delta=body["delta"],
        dropout=body["dropout"],
        sampling=sampling,
        colluders=body.get("colluders", 0),
        above_colluders=guarantee == "server",
        groups=_groups(body["mechanism"], sampling, body.get("min_separation")),
    )
    body.setdefault("cap", bounds.cap)
    body.setdefault("min_survivors", bounds.min_survivors)


def _whole(body: Mapping[str, Any]) -> dict[str, Any]:
    """The choices without those that ask for a derived value."""
    return {name: value for name, value in body.items() if name != "modulus_bits" or value}


def _any_ring(body: Mapping[str, Any]) -> int:
    """A modulus that no noise exceeds, while the noise is being looked for."""
    return 16 if body.get("encoding") == "narrow" else 64


def _plan_of(body: Mapping[str, Any]) -> PrivacyPlan:
    """The plan of flat values, defaults filled in.

    Raises:
        MechanismError: a key is missing or unknown, or a value cannot be.
    """
    defaults: dict[str, Any] = {}
    for part in _PARTS.values():
        for item in dataclasses.fields(part):
            if item.default is not dataclasses.MISSING:
                defaults[item.name] = item.default
    return PrivacyPlan.from_json({**defaults, **body})
