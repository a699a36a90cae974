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
from functools import lru_cache
from typing import Any, Literal, get_args

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.aborts import ABORT_SHARE, abort_delta, choose_cap_and_min_survivors
from fedsys.privacy.costs import Accountant, accountant_of
from fedsys.privacy.events import (
    Encoding,
    Event,
    Guarantee,
    SamplingKind,
    UnprotectedEvent,
)
from fedsys.privacy.mechanisms import (
    SUMMED_ONCE,
    Mechanism,
    Noise,
    build_event,
    mechanism_for,
)
from fedsys.privacy.quorum import Cohorts, quorum_delta, remedy

__all__ = ["LEAST_NOISE", "PrivacyPlan", "Unit", "make_plan"]

Unit = Literal["client", "example"]

_SAMPLER_DISTANCE = 2.0**-96
"""Total variation of one draw of noise from its true distribution; tables reach 2^-100."""

LEAST_NOISE = 1e-2
"""Multipliers below it are refused, and calibration ends there."""

_LARGEST_POPULATION = 1 << 28
"""The accountant keeps an index of every client."""


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
        encoding: ``wide``, ``narrow``, or ``float`` (see `fedsys.privacy.float_sums`).
        modulus_bits: b.
        sampling: how cohorts come about.
        participation: p of secret participation.
        guarantee: for which view z holds the budget.
        colluders: c, curious clients beside the server or among the participants.
        dropout: the assumed probability that a sampled client drops out.
        max_participations: rounds in which any client takes part at most, where that is enforced.
        budget: epsilon not to be exceeded in the guaranteed view; None for no limit.
        unit: whose contribution is protected.
        min_separation: rounds between two participations of one client, where that is enforced;
            under banded-mf with Poisson sampling the number of groups that take turns.
        example_rate: largest probability of an example being in a local batch (unit ``example``).
        steps: local steps in a round, at most (unit ``example``).
        noise: ``per-client``, or ``once`` where a simulation draws the noise of the whole sum.
        adaptive_clip: whether rounds may clip at other norms than ``clip``; the cost is the same.
        corrupt: fraction of a cohort that secure aggregation takes for colluders, on which its
            committee's quorum rests; None where sums come about without it.

    Raises:
        MechanismError: a value is out of range, two do not go together, or aborts that show would
            cost more than a tenth of delta.
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
    min_separation: int | None = None
    example_rate: float | None = None
    steps: int | None = None
    noise: Noise = "per-client"
    adaptive_clip: bool = False
    corrupt: float | None = None

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
        if self.min_separation is not None:
            validation.integer("min_separation", self.min_separation)
        validation.one_of("noise", self.noise, get_args(Noise))
        if self.noise == "once" and self.mechanism not in SUMMED_ONCE:
            raise MechanismError(
                f"noise='once' is for {', '.join(SUMMED_ONCE)}; {self.mechanism} adds noise to "
                "each client's update"
            )
        if self.encoding == "float" and self.noise != "once":
            raise MechanismError("a sum in floating point has no shares of noise: noise='once'")
        if (self.unit == "example") != (self.mechanism == "example-gaussian"):
            raise MechanismError(
                f"unit={self.unit!r} does not go with mechanism={self.mechanism!r}: "
                "example-gaussian protects examples, the others protect clients"
            )
        if self.corrupt is not None:
            validation.fraction("corrupt", self.corrupt, zero=True)
        event = self.event()
        if self.mechanism != "none" and self.delta_quorum > self.delta * ABORT_SHARE:
            raise MechanismError(
                f"a cohort of {self.expected_cohort:g} with corrupt={self.corrupt:g} and "
                f"dropout={self.dropout:g} misses the quorum of secure aggregation too often: that "
                f"shows, and costs {self.delta_quorum:.3g} over {self.rounds} rounds, more than a "
                f"tenth of delta={self.delta:g}: {self._quorum_remedy}"
            )
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
        """Part of delta for aborts that an outsider or participant can see, for any reason."""
        if self.mechanism == "none":
            return 0.0  # nothing is promised, so nothing is paid
        return min(1.0, self._delta_bounds + self.delta_quorum)

    @property
    def delta_quorum(self) -> float:
        """Part of it for rounds that miss the quorum of secure aggregation."""
        if self.mechanism == "none" or self.corrupt is None:
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
        return mechanism_for(self.event(clip=clip), self.noise)

    def covers(self, event: Event) -> bool:
        """Whether an event is one of this plan's rounds (at whatever norm, where it adapts).

        Raises:
            MechanismError: no event of this plan has that norm.
        """
        if not self.adaptive_clip and event.clip != self.clip:
            return False
        if self.event(clip=event.clip) == event:
            return True
        return self.event(clip=event.clip).to_json() == event.to_json()

    @property
    def accountant(self) -> Accountant:
        """The accountant whose outsider epsilon is reported."""
        return accountant_of(self.event())

    def turns(self, rounds: int) -> int:
        """In how many of the first ``rounds`` rounds one client can have taken part, at most.

        Those are the rounds that an outsider counts: all of them under Poisson or fixed sampling,
        one in b where participations are b rounds apart.
        """
        apart = 1
        if self.sampling == "min-separation" and self.min_separation is not None:
            apart = self.min_separation
        apart = max(apart, _groups(self.mechanism, self.sampling, self.min_separation))
        turns = -(-rounds // apart)
        limited = self.sampling == "min-separation" or self.unit == "example"
        if limited and self.max_participations is not None:
            turns = min(turns, self.max_participations)
        return turns

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
        wrong = set(body) ^ known
        if wrong:
            raise MechanismError(
                f"a privacy plan has missing or unknown keys: {', '.join(sorted(wrong))}"
            )
        return cls(**body)

    @property
    def protected(self) -> bool:
        """Whether any noise is added at all."""
        return not isinstance(self.event(), UnprotectedEvent)


@lru_cache(maxsize=256)
def _event_of(plan: PrivacyPlan, clip: float) -> Event:
    return build_event(
        plan.mechanism,
        dimension=plan.dimension,
        clip=clip,
        noise_multiplier=plan.noise_multiplier,
        expected_cohort=plan.expected_cohort,
        population=plan.population,
        cap=plan.cap,
        min_survivors=plan.min_survivors,
        encoding=plan.encoding,
        modulus_bits=plan.modulus_bits,
        sampling=plan.sampling,
        participation=plan.participation,
        guarantee=plan.guarantee,
        colluders=plan.colluders,
        horizon=plan.rounds,
        min_separation=plan.min_separation,
        example_rate=plan.example_rate,
        steps=plan.steps,
    )


def _groups(mechanism: str, sampling: str, min_separation: int | None) -> int:
    """Cyclic groups that take turns: under banded-mf with Poisson sampling only."""
    cyclic = mechanism == "banded-mf" and sampling == "poisson"
    return min_separation if cyclic and min_separation is not None else 1


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
    unit: Unit | None = None,
    min_separation: int | None = None,
    example_rate: float | None = None,
    steps: int | None = None,
    noise: Noise | None = None,
    adaptive_clip: bool = False,
    corrupt: float | None = None,
) -> PrivacyPlan:
    """A plan with everything derived that was left out.

    Give ``noise_multiplier``, or ``epsilon`` for the least noise that meets it in the guaranteed
    view (then also the budget unless one is given). Cap and fewest survivors default to the
    tightest whose aborts cost at most a hundredth of delta.

    Args but ``epsilon`` are the attributes of `PrivacyPlan` that they are called after.

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
            above_colluders=guarantee == "server",
            groups=_groups(mechanism, sampling, min_separation),
        )
        cap = bounds.cap if cap is None else cap
        min_survivors = bounds.min_survivors if min_survivors is None else min_survivors
    if unit is None:
        unit = "example" if mechanism == "example-gaussian" else "client"
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
        min_separation=min_separation,
        example_rate=example_rate,
        steps=steps,
        noise=noise or ("once" if encoding == "float" else "per-client"),
        adaptive_clip=adaptive_clip,
        corrupt=corrupt,
    )
    if noise_multiplier is not None:
        return plan
    from fedsys.privacy.calibration import calibrate

    target = validation.positive("epsilon", 0.0 if epsilon is None else epsilon)
    multiplier = calibrate(target, plan)
    return dataclasses.replace(
        plan, noise_multiplier=multiplier, budget=target if budget is None else budget
    )
