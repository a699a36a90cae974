"""A job's privacy parameters, fixed before its first round: constants of every claim.

>>> plan = make_plan(mechanism="distributed-skellam", population=1437, expected_cohort=100,
...     rounds=40, dimension=650, clip=0.3, delta=1e-5, noise_multiplier=0.7)
>>> plan.cap, plan.min_survivors
(163, 44)
>>> PrivacyPlan.from_json(plan.to_json()) == plan
True
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.aborts import ABORT_SHARE, abort_delta, choose_cap_and_min_survivors
from fedsys.privacy.events import (
    Encoding,
    Event,
    GaussianEvent,
    Guarantee,
    SamplingKind,
    SkellamEvent,
)
from fedsys.privacy.mechanisms import Mechanism, build_event, mechanism_for

__all__ = ["PrivacyPlan", "Unit", "make_plan"]

Unit = Literal["client", "example"]

_SAMPLER_DISTANCE = 2.0**-96
"""Total variation of one draw of noise from its true distribution; tables reach 2^-100."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyPlan:
    """Everything that the accountant of a job needs to know beside its rounds.

    Attributes:
        mechanism: name of the mechanism.
        population: N, clients that might be sampled.
        expected_cohort: n = q N.
        rounds: T, the number of rounds for which delta is split.
        dimension: d, coordinates of an update.
        clip: C, the clipping norm (of the first round, where it adapts).
        noise_multiplier: z.
        delta: of the job, in every view.
        cap: n_cap.
        min_survivors: m.
        encoding: ``wide`` or ``narrow``.
        modulus_bits: b.
        sampling: how cohorts come about.
        participation: p of secret participation.
        guarantee: for which view z holds the budget.
        colluders: c, curious clients beside the server or among the participants.
        dropout: the assumed probability that a sampled client drops out.
        max_participations: rounds in which any client takes part at most, where that is enforced.
        budget: epsilon not to be exceeded in the guaranteed view; None for no limit.
        unit: whose contribution is protected.
    """

    mechanism: str
    population: int
    expected_cohort: float
    rounds: int
    dimension: int
    clip: float
    noise_multiplier: float
    delta: float
    cap: int
    min_survivors: int
    encoding: Encoding = "wide"
    modulus_bits: int = 32
    sampling: SamplingKind = "poisson"
    participation: float = 1.0
    guarantee: Guarantee = "outsider"
    colluders: int = 0
    dropout: float = 0.0
    max_participations: int | None = None
    budget: float | None = None
    unit: Unit = "client"

    def __post_init__(self) -> None:
        validation.integer("rounds", self.rounds)
        validation.fraction("delta", self.delta)
        validation.fraction("dropout", self.dropout, zero=True)
        validation.one_of("unit", self.unit, get_args(Unit))
        if self.budget is not None:
            validation.positive("epsilon", self.budget)
        if self.max_participations is not None:
            validation.integer("max_participations", self.max_participations)
        if self.guarantee == "server" and self.max_participations is None:
            raise MechanismError(
                "guarantee='server' needs max_participations: its epsilon is composed over the "
                "rounds in which one client takes part; set privacy.max_participations"
            )
        if self.sampling == "min-separation" and self.max_participations is None:
            raise MechanismError(
                "sampling='min-separation' needs max_participations: set it in [privacy]"
            )
        event = self.event()
        if self.mechanism != "none" and self.delta_abort > self.delta * ABORT_SHARE:
            raise MechanismError(
                f"aborts that show cost delta_abort={self.delta_abort:.3g}, more than a tenth of "
                f"delta={self.delta:g}: raise cap={event.cap} or lower "
                f"min_survivors={event.min_survivors}"
            )

    @property
    def rate(self) -> float:
        """q = n / N."""
        return self.expected_cohort / self.population

    @property
    def delta_abort(self) -> float:
        """Part of delta for aborts that an outsider or participant can see."""
        return abort_delta(
            population=self.population,
            expected_cohort=self.expected_cohort,
            rounds=self.rounds,
            cap=self.cap,
            min_survivors=self.min_survivors,
            dropout=self.dropout,
            sampling=self.sampling,
        )

    @property
    def delta_sampler(self) -> float:
        """Part of delta for the samplers' distance from the true noise, over all draws."""
        return min(1.0, self.rounds * (self.cap + 64.0) * 2 * self.dimension * _SAMPLER_DISTANCE)

    @property
    def delta_released(self) -> float:
        """Delta at which the outsider and participant views are accounted."""
        return self.delta - self.delta_abort - self.delta_sampler

    @property
    def delta_server(self) -> float:
        """Delta at which the server view is accounted: the server sees every abort anyway."""
        return self.delta - self.delta_sampler

    def event(self, *, clip: float | None = None) -> Event:
        """The event of one round, at another clipping norm if it has adapted."""
        return build_event(
            self.mechanism,
            dimension=self.dimension,
            clip=self.clip if clip is None else clip,
            noise_multiplier=self.noise_multiplier,
            expected_cohort=self.expected_cohort,
            population=self.population,
            cap=self.cap,
            min_survivors=self.min_survivors,
            encoding=self.encoding,
            modulus_bits=self.modulus_bits,
            sampling=self.sampling,
            participation=self.participation,
            guarantee=self.guarantee,
            colluders=self.colluders,
        )

    def build_mechanism(self, *, clip: float | None = None) -> Mechanism:
        """The mechanism of one round, at another clipping norm if it has adapted."""
        return mechanism_for(self.event(clip=clip))

    def covers(self, event: Event) -> bool:
        """Whether an event is one of this plan's rounds (at whatever clipping norm)."""
        if self.event(clip=event.clip) == event:
            return True
        return self.event(clip=event.clip).to_json() == event.to_json()

    @property
    def accountant(self) -> Literal["pld", "rdp"]:
        """The accountant whose outsider epsilon is reported."""
        event = self.event()
        gaussian = isinstance(event, GaussianEvent) and not event.local
        return "pld" if gaussian and event.sampling.kind == "poisson" else "rdp"

    def to_json(self) -> dict[str, Any]:
        """A JSON object for the ledger's header; ``from_json`` restores the plan."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> PrivacyPlan:
        """The plan that a header describes.

        Raises:
            MechanismError: a key is missing or unknown, or a value cannot be.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        if set(body) != known:
            wrong = ", ".join(sorted(set(body) ^ known))
            raise MechanismError(f"a privacy plan has missing or unknown keys: {wrong}")
        return cls(**body)

    @property
    def protected(self) -> bool:
        """Whether any noise is added at all."""
        return isinstance(self.event(), (SkellamEvent, GaussianEvent))


def make_plan(
    *,
    mechanism: str,
    population: int,
    expected_cohort: float,
    rounds: int,
    dimension: int,
    clip: float,
    delta: float,
    noise_multiplier: float | None = None,
    epsilon: float | None = None,
    cap: int | None = None,
    min_survivors: int | None = None,
    encoding: Encoding = "wide",
    modulus_bits: int = 32,
    sampling: SamplingKind = "poisson",
    participation: float = 1.0,
    guarantee: Guarantee = "outsider",
    colluders: int = 0,
    dropout: float = 0.05,
    max_participations: int | None = None,
    budget: float | None = None,
    unit: Unit = "client",
) -> PrivacyPlan:
    """A plan with everything derived that was left out.

    Give ``noise_multiplier``, or ``epsilon`` for the least noise that meets it in the guaranteed
    view (then also the budget unless one is given). Cap and fewest survivors default to the
    tightest whose aborts cost at most a hundredth of delta.

    Raises:
        MechanismError: a value is out of range, or nothing meets the target.
    """
    if cap is None or min_survivors is None:
        bounds = choose_cap_and_min_survivors(
            population=population,
            expected_cohort=expected_cohort,
            rounds=rounds,
            delta=delta,
            dropout=dropout,
            sampling=sampling,
            colluders=colluders,
            for_quorum=guarantee == "server",
        )
        cap = bounds.cap if cap is None else cap
        min_survivors = bounds.min_survivors if min_survivors is None else min_survivors
    if mechanism == "none":
        noise_multiplier = 0.0
    elif (noise_multiplier is None) == (epsilon is None):
        raise MechanismError(
            "give either noise_multiplier or epsilon, "
            f"got noise_multiplier={noise_multiplier!r} and epsilon={epsilon!r}"
        )
    plan = PrivacyPlan(
        mechanism=mechanism,
        population=population,
        expected_cohort=expected_cohort,
        rounds=rounds,
        dimension=dimension,
        clip=clip,
        noise_multiplier=1.0 if noise_multiplier is None else noise_multiplier,
        delta=delta,
        cap=cap,
        min_survivors=min_survivors,
        encoding=encoding,
        modulus_bits=modulus_bits,
        sampling=sampling,
        participation=participation,
        guarantee=guarantee,
        colluders=colluders,
        dropout=dropout,
        max_participations=max_participations,
        budget=budget,
        unit=unit,
    )
    if noise_multiplier is not None:
        return plan
    from fedsys.privacy.calibration import calibrate

    assert_target = validation.positive("epsilon", epsilon if epsilon is not None else 0.0)
    multiplier = calibrate(assert_target, plan)
    return dataclasses.replace(
        plan,
        noise_multiplier=multiplier,
        budget=assert_target if budget is None else budget,
    )
