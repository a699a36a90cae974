"""The parts of a privacy plan, and one flat set of names for their values.

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
        mechanism: the mechanism's name.
        noise_multiplier: z.
        noise: ``per-client``, or ``once`` where a simulation draws the noise of the whole sum.
        example_rate: the largest probability that an example is in a local batch (unit
            ``example``).
        steps: the largest number of local steps in a round (unit ``example``).
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
        dimension: d, the number of coordinates of an update.
        clip: C, the clipping norm (the first round's, where it adapts).
        encoding: ``wide``, ``narrow``, or ``float`` (see `fedsys.privacy.encoding.float_sums`).
        modulus_bits: b.
        adaptive_clip: whether rounds may clip at norms other than ``clip``, at the same cost.
    """

    dimension: int
    clip: float
    encoding: EncodingKind = "wide"
    modulus_bits: int = 32
    adaptive_clip: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortPlan:
    """How cohorts are drawn, their size, and how often a client takes part.

    Attributes:
        population: N, the number of clients that may be sampled.
        expected_cohort: n = q N.
        cap: n_cap, the largest cohort that is not aborted.
        min_survivors: m, the fewest survivors whose sum is released.
        sampling: how cohorts are drawn.
        participation: p, the probability that a cohort member secretly contributes its update.
        max_participations: the most rounds to which a client contributes its update. In further
            rounds it sends zeros and its noise share; in buffered rounds it is not asked.
        min_separation: rounds between two participations of one client, where that is enforced;
            under banded-mf with Poisson sampling, the number of groups that take turns.
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
        guarantee: the view whose epsilon z keeps within the budget.
        budget: the largest epsilon allowed in the guaranteed view; None for no limit.
        unit: whose contribution is protected.
    """

    guarantee: Guarantee = "outsider"
    budget: float | None = None
    unit: Unit = "client"


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
    """Assumptions about clients that cannot be checked.

    Attributes:
        colluders: c, the number of curious clients that collude with the server or each other.
        dropout: the assumed probability that a sampled client drops out.
        corrupt: the fraction of a cohort that secure aggregation assumes to collude, on which its
            quorum rests; None where secure aggregation is not used.
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
"""A plan's parts by attribute name. Every key of its JSON but two is a field of one of them."""


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
        """The mechanism's name."""
        return self.how.mechanism

    @property
    def noise_multiplier(self) -> float:
        """z, the noise multiplier."""
        return self.how.noise_multiplier

    @property
    def noise(self) -> Noise:
        """``once`` where a simulation draws the noise of the whole sum."""
        return self.how.noise

    @property
    def example_rate(self) -> float | None:
        """The largest probability that an example is in a local batch."""
        return self.how.example_rate

    @property
    def steps(self) -> int | None:
        """The largest number of local steps in a round."""
        return self.how.steps

    @property
    def dimension(self) -> int:
        """d, the number of coordinates of an update."""
        return self.update.dimension

    @property
    def clip(self) -> float:
        """C, the first round's clipping norm."""
        return self.update.clip

    @property
    def encoding(self) -> EncodingKind:
        """How updates become integers."""
        return self.update.encoding

    @property
    def modulus_bits(self) -> int:
        """b; vectors are added mod 2^b."""
        return self.update.modulus_bits

    @property
    def adaptive_clip(self) -> bool:
        """Whether rounds may clip at norms other than ``clip``."""
        return self.update.adaptive_clip

    @property
    def population(self) -> int:
        """N, the number of clients that may be sampled."""
        return self.cohorts.population

    @property
    def expected_cohort(self) -> float:
        """n = q N, the expected size of a cohort."""
        return self.cohorts.expected_cohort

    @property
    def cap(self) -> int:
        """n_cap, the largest cohort that is not aborted."""
        return self.cohorts.cap

    @property
    def min_survivors(self) -> int:
        """m, the fewest survivors whose sum is released."""
        return self.cohorts.min_survivors

    @property
    def sampling(self) -> SamplingKind:
        """How cohorts are drawn."""
        return self.cohorts.sampling

    @property
    def participation(self) -> float:
        """p, the probability that a cohort member secretly contributes its update."""
        return self.cohorts.participation

    @property
    def max_participations(self) -> int | None:
        """The most rounds to which a client contributes its update."""
        return self.cohorts.max_participations

    @property
    def min_separation(self) -> int | None:
        """Rounds between two participations of one client."""
        return self.cohorts.min_separation

    @property
    def guarantee(self) -> Guarantee:
        """The view whose epsilon z keeps within the budget."""
        return self.promise.guarantee

    @property
    def budget(self) -> float | None:
        """The largest epsilon allowed in the guaranteed view; None for no limit."""
        return self.promise.budget

    @property
    def unit(self) -> Unit:
        """Whose contribution is protected."""
        return self.promise.unit

    @property
    def colluders(self) -> int:
        """c, the number of curious clients that collude."""
        return self.assumed.colluders

    @property
    def dropout(self) -> float:
        """The assumed probability that a sampled client drops out."""
        return self.assumed.dropout

    @property
    def corrupt(self) -> float | None:
        """The fraction of a cohort that secure aggregation assumes to collude."""
        return self.assumed.corrupt
