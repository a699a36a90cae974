"""What events have in common: a noisy sum over a sampled cohort.

An event states what a round reveals to each view as Gaussian mechanisms with a noise multiplier
(noise over sensitivity) and a sampling rate. Accountants know these `GaussianStep`s and nothing
else.

Neighbours. Under Poisson sampling the outsider's neighbours add or remove one client, and the
participant's are a cohort member's update or zero: one sensitivity. Where cohorts have a fixed size
(also under min-separation, and where the job's own code chooses them), removing a client lets
another in, so neighbours replace one client: two sensitivities, or half the multiplier. The
server's neighbours are a client's update or zero, and the client takes part either way: one
sensitivity under any sampling. In buffered rounds (``arrivals``) the same holds in every view: the
same uploads arrive in the same order either way. A buffer of fixed size has no neighbour with one
client fewer, because every later upload would move up.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.events.encodings import Encoding, Geometry, check_ring
from fedsys.privacy.views import View

__all__ = [
    "Cohort",
    "GaussianStep",
    "Guarantee",
    "RoundedTerms",
    "Sampling",
    "SamplingKind",
    "SumEvent",
]

Guarantee = Literal["outsider", "server"]
SamplingKind = Literal["poisson", "fixed", "min-separation", "chosen", "arrivals"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a round's cohort is drawn.

    Attributes:
        kind: ``poisson`` (each client independently with probability ``rate``), ``fixed`` (a
            uniform subset of constant size), ``min-separation``, ``chosen`` (by code of the
            job's own, from public values alone) or ``arrivals`` (a buffer of the first uploads to
            arrive); the last three claim no amplification.
        rate: q, the probability that a given client is in the cohort.
        participation: p, the probability that a cohort member secretly contributes its update
            rather than zero.

    Raises:
        MechanismError: the kind is unknown, a probability is outside (0, 1], or participation is
            below 1 under ``arrivals``.
    """

    kind: SamplingKind
    rate: float
    participation: float = 1.0

    def __post_init__(self) -> None:
        validation.one_of("sampling", self.kind, get_args(SamplingKind))
        validation.probability("sampling rate", self.rate)
        validation.probability("participation", self.participation)
        if self.kind == "arrivals" and self.participation < 1:
            raise MechanismError(
                f"participation={self.participation:g} with sampling='arrivals': buffered rounds "
                "claim no amplification; use participation=1"
            )

    @property
    def replaces(self) -> bool:
        """Whether neighbours replace one client rather than adding or removing one."""
        return self.kind in ("fixed", "min-separation", "chosen")

    @property
    def by_turns(self) -> bool:
        """Whether the cost depends on how often a client takes part, not on random sampling."""
        return self.kind in ("min-separation", "chosen", "arrivals")

    @property
    def counted_rate(self) -> float:
        """The probability of contributing an update that amplifies for an outsider."""
        if self.by_turns:
            return self.participation
        return self.rate * self.participation


@dataclass(frozen=True, kw_only=True, slots=True)
class Cohort:
    """A round's size.

    Attributes:
        expected: n = q N, the constant denominator of the mean.
        cap: n_cap; a larger cohort aborts the round.
        min_survivors: m; fewer survivors abort the round.

    Raises:
        MechanismError: a value is out of range, or no round could be released with these bounds.
    """

    expected: float
    cap: int
    min_survivors: int

    def __post_init__(self) -> None:
        validation.positive("expected_cohort", self.expected)
        validation.integer("cap", self.cap)
        validation.integer("min_survivors", self.min_survivors)
        if self.min_survivors > self.cap:
            raise MechanismError(
                f"min_survivors={self.min_survivors} exceeds cap={self.cap}: every round aborts"
            )


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class GaussianStep:
    """The Gaussian mechanisms that a round consists of, as one view sees them.

    Attributes:
        multiplier: noise over the sensitivity between neighbours; 0 where there is no noise.
        rate: the probability that the contribution is in the sum, where that is secret; else 1.
        replaces: whether neighbours replace the contribution; the multiplier is then relative to
            the doubled sensitivity.
        count: the number of such mechanisms in sequence.
    """

    multiplier: float
    rate: float = 1.0
    replaces: bool = False
    count: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundedTerms:
    """The rounded Gaussians whose sum a view relies on, coordinate by coordinate.

    Attributes:
        sigma: the standard deviation of each term before rounding, in integers.
        fewest: the least number of terms.
        most: the largest number of terms; a sum of more than one is only approximately a
            post-processed Gaussian, see ``NOISE.md``.
        draws: the number of the sampler's draws in a release.
    """

    sigma: float
    fewest: int
    most: int
    draws: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SumEvent(ABC):
    """One noisy sum over a cohort, released.

    Attributes:
        encoding: how updates become integers.
        noise_multiplier: z; the noise that the guaranteed view sees has deviation z D2.
        cohort: the cohort's size and bounds.
        sampling: how the cohort was drawn.
        guarantee: the view for which z was chosen.
        colluders: c, the number of curious clients that the server's view assumes.

    Raises:
        MechanismError: a value is out of range, no round could be released with these bounds, or
            the ring is too small for the sum.
    """

    mechanism: ClassVar[str]
    keys: ClassVar[tuple[str, ...]] = ()
    """Attributes that only this kind of event has in its JSON."""
    noiseless: ClassVar[bool] = False

    encoding: Encoding
    noise_multiplier: float
    cohort: Cohort
    sampling: Sampling
    guarantee: Guarantee = "outsider"
    colluders: int = 0

    @property
    def factorization(self) -> Mapping[str, Any] | None:
        """The coefficients that correlate the rounds' noise, as JSON; None if it is independent."""
        return None

    def __post_init__(self) -> None:
        validation.positive("noise_multiplier", self.noise_multiplier, zero=self.noiseless)
        validation.one_of("guarantee", self.guarantee, ("outsider", "server"))
        validation.integer("colluders", self.colluders, least=0)
        if self.guarantee == "server" and self.min_survivors <= self.colluders:
            raise MechanismError(
                f"min_survivors={self.min_survivors} must exceed colluders={self.colluders}: with "
                "fewer, no honest client's noise is left"
            )
        if self.sampling.kind == "arrivals":
            self._check_buffer()
        self._check()
        geometry = self.geometry
        if not (math.isfinite(geometry.scale) and geometry.scale > 0):
            raise MechanismError(
                f"clip={self.clip:g} is out of the range in which updates can be scaled: choose a "
                "larger one"
            )
        if self.encoding.kind != "narrow":
            deviation = math.sqrt(self.total_variance)
            check_ring(self.modulus_bits, cap=self.cap, l2=geometry.l2, deviation=deviation)

    def _check_buffer(self) -> None:
        """Refuses buffers whose number of uploads is not constant.

        Raises:
            MechanismError: the bounds differ, or the mechanism needs to know in which rounds a
                client may take part.
        """
        size = self.cohort.expected
        if self.mechanism in ("banded-mf", "example-gaussian"):
            raise MechanismError(
                f"sampling='arrivals' does not go with mechanism={self.mechanism!r}: use "
                "distributed-gaussian, central-gaussian or local-gaussian"
            )
        if not self.cap == self.min_survivors == size:
            raise MechanismError(
                f"sampling='arrivals' with expected_cohort={size:g}, cap={self.cap} and "
                f"min_survivors={self.min_survivors}: a buffer has one size, so all three are equal"
            )

    def _check(self) -> None:  # noqa: B027 - most kinds have nothing to refuse
        """Refuses values that this kind of event does not allow.

        Raises:
            MechanismError: there is one.
        """

    # -- who adds how much noise ------------------------------------------------------------------

    @property
    @abstractmethod
    def share_multiplier(self) -> float:
        """The deviation of the noise that each client adds, over D2; 0 where clients add none."""

    @property
    @abstractmethod
    def total_multiplier(self) -> float:
        """The deviation of the noise in every release, over D2."""

    # -- what each view sees ----------------------------------------------------------------------

    def outsider_step(self) -> GaussianStep:
        """What a round reveals to somebody who sees releases only.

        Under min-separation, chosen and arrivals this is a round *in which the client takes part*;
        under banded-mf with Poisson sampling, a round of the client's own group.
        """
        return self._towards_releases(self.total_multiplier, self.sampling.counted_rate)

    def together_step(self) -> GaussianStep:
        """What a round reveals to curious clients in it, who know their own noise shares."""
        curious = min(max(self.colluders, 1), self.cap - 1)
        left = self.total_multiplier**2 - curious * self.share_multiplier**2
        return self._towards_releases(math.sqrt(max(left, 0.0)), self.sampling.participation)

    def _towards_releases(self, multiplier: float, rate: float) -> GaussianStep:
        if self.sampling.replaces:
            return GaussianStep(multiplier=multiplier / 2, rate=rate, replaces=True)
        return GaussianStep(multiplier=multiplier, rate=rate)

    @abstractmethod
    def server_step(self, survivors: int | None = None) -> GaussianStep:
        """What a round in which the client's update was summed reveals to the server.

        Args:
            survivors: the number of clients in the sum; None for the fewest that may be released.
                Ignored where the client's secret coin amplifies: the ledger does not record how the
                coin fell, so such rounds are charged at the worst case.
        """

    @abstractmethod
    def terms(self, view: View) -> RoundedTerms | None:
        """The terms whose sum a view relies on; None where no noise protects it."""

    # -- derived values ---------------------------------------------------------------------------

    @property
    def geometry(self) -> Geometry:
        """The length, scale and largest norm of encoded vectors."""
        return self.encoding.geometry(
            cohort=self.cohort.expected, total_multiplier=self.total_multiplier
        )

    @property
    def dimension(self) -> int:
        """d, the number of coordinates of an update."""
        return self.encoding.dimension

    @property
    def clip(self) -> float:
        """C, the l2 norm to which an update is clipped."""
        return self.encoding.clip

    @property
    def modulus_bits(self) -> int:
        """b: vectors are added mod 2^b."""
        return self.encoding.modulus_bits

    @property
    def length(self) -> int:
        """The number of coordinates of an encoded vector."""
        return self.geometry.length

    @property
    def scale(self) -> float:
        """s, integers per unit of the update."""
        return self.geometry.scale

    @property
    def l2(self) -> float:
        """D2, the largest l2 norm of one client's integers."""
        return self.geometry.l2

    @property
    def cap(self) -> int:
        """n_cap; a larger cohort aborts the round."""
        return self.cohort.cap

    @property
    def min_survivors(self) -> int:
        """m; fewer survivors abort the round."""
        return self.cohort.min_survivors

    @property
    def expected_cohort(self) -> float:
        """n = q N, the constant denominator of the mean."""
        return self.cohort.expected

    @property
    def share_variance(self) -> float:
        """The variance of the noise that each client adds, in squared integers."""
        return (self.share_multiplier * self.l2) ** 2

    @property
    def total_variance(self) -> float:
        """V*, the variance of the noise in every release, in squared integers."""
        return (self.total_multiplier * self.l2) ** 2

    @property
    def own_noise(self) -> float:
        """The deviation of one client's own noise, in clipping norms."""
        return math.sqrt(self.share_variance) / (self.scale * self.clip)

    @property
    def worst_honest_shares(self) -> int:
        """Honest noise shares in the smallest sum that is released; at least the client's own."""
        return max(self.min_survivors - self.colluders, 1)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``event_from_json`` turns back into this event."""
        geometry = self.geometry
        body: dict[str, Any] = {
            "mechanism": self.mechanism,
            "encoding": self.encoding.kind,
            "dimension": self.dimension,
            "clip": self.clip,
            "modulus_bits": self.modulus_bits,
            "length": geometry.length,
            "scale": geometry.scale,
            "l2": geometry.l2,
            "noise_multiplier": self.noise_multiplier,
            "expected_cohort": self.expected_cohort,
            "cap": self.cap,
            "min_survivors": self.min_survivors,
            "sampling": self.sampling.kind,
            "sampling_rate": self.sampling.rate,
            "participation": self.sampling.participation,
            "guarantee": self.guarantee,
            "colluders": self.colluders,
            "share_variance": self.share_variance,
            "total_variance": self.total_variance,
        }
        return body | {name: getattr(self, name) for name in self.keys}
