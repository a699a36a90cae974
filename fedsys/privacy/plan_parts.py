"""The parts of a privacy plan, and their values under one flat set of names.

>>> [name for name, part in PARTS.items() if "clip" in part.__annotations__]
['update']
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedsys.privacy.events import EncodingKind, Guarantee, Noise, SamplingKind

__all__ = [
    "PARTS",
    "Assumptions",
    "CohortPlan",
    "MechanismPlan",
    "PlanValues",
    "Promise",
    "Unit",
    "UpdatePlan",
]

Unit = Literal["client", "example"]


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


PARTS: Mapping[str, type[Any]] = {
    "how": MechanismPlan,
    "update": UpdatePlan,
    "cohorts": CohortPlan,
    "promise": Promise,
    "assumed": Assumptions,
}
"""Names of a plan's attributes and their types; every key of a plan's JSON is a field of one."""


class PlanValues:
    """The values of a plan's parts as its own attributes, one property each."""

    __slots__ = ()

    how: MechanismPlan
    update: UpdatePlan
    cohorts: CohortPlan
    promise: Promise
    assumed: Assumptions

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
