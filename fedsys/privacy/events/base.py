"""What events have in common: a noisy sum over a sampled cohort."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fedsys.errors import MechanismError
from fedsys.privacy import validation

__all__ = ["Encoding", "Guarantee", "Sampling", "SamplingKind", "SumEvent", "check_ring"]

Encoding = Literal["wide", "narrow", "float"]
Guarantee = Literal["outsider", "server"]
SamplingKind = Literal["poisson", "fixed", "min-separation"]

_NOISE_TAIL = 12
"""Standard deviations of noise that must fit into the ring beside the largest sum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a round's cohort comes about.

    Attributes:
        kind: ``poisson`` (each client independently with probability ``rate``), ``fixed`` (a
            uniform subset of constant size) or ``min-separation`` (no randomness counted).
        rate: q, the probability that a given client is in the cohort.
        participation: p, the probability with which a cohort member secretly contributes its
            update rather than zero.

    Raises:
        MechanismError: the kind is another, or a probability outside (0, 1].
    """

    kind: SamplingKind
    rate: float
    participation: float = 1.0

    def __post_init__(self) -> None:
        validation.one_of("sampling", self.kind, ("poisson", "fixed", "min-separation"))
        validation.probability("sampling rate", self.rate)
        validation.probability("participation", self.participation)


@dataclass(frozen=True, kw_only=True, slots=True)
class SumEvent:
    """One noisy sum over a cohort, released.

    Attributes:
        dimension: d, coordinates of the update.
        clip: C, the l2 norm to which an update is clipped.
        noise_multiplier: z; the noise that the guaranteed view sees has deviation z C.
        cap: n_cap, above which a cohort aborts the round.
        min_survivors: m, below which it aborts.
        expected_cohort: n = q N, the constant denominator of the mean.
        sampling: how the cohort came about.
        guarantee: for which view z was chosen.
        colluders: c, curious clients that the server view assumes.

    Raises:
        MechanismError: a value is out of range, or no round could be released with these bounds.
    """

    mechanism: ClassVar[str]

    dimension: int
    clip: float
    noise_multiplier: float
    cap: int
    min_survivors: int
    expected_cohort: float
    sampling: Sampling
    guarantee: Guarantee = "outsider"
    colluders: int = 0

    def __post_init__(self) -> None:
        validation.integer("dimension", self.dimension, most=1 << 36)
        validation.positive("clip", self.clip)
        validation.positive("noise_multiplier", self.noise_multiplier, zero=True)
        validation.integer("cap", self.cap)
        validation.integer("min_survivors", self.min_survivors)
        validation.positive("expected_cohort", self.expected_cohort)
        validation.one_of("guarantee", self.guarantee, ("outsider", "server"))
        validation.integer("colluders", self.colluders, least=0)
        if self.min_survivors > self.cap:
            raise MechanismError(
                f"min_survivors={self.min_survivors} exceeds cap={self.cap}: every round aborts"
            )
        if self.guarantee == "server" and self.min_survivors <= self.colluders:
            raise MechanismError(
                f"min_survivors={self.min_survivors} must exceed colluders={self.colluders}: with "
                "fewer, no honest client's noise is left"
            )

    @property
    def worst_honest_shares(self) -> int:
        """Honest noise shares in the smallest sum that is released; one's own at least."""
        return max(self.min_survivors - self.colluders, 1)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``event_from_json`` turns back into this event."""
        body: dict[str, Any] = {"mechanism": self.mechanism}
        for item in dataclasses.fields(self):
            if item.name == "sampling":
                body["sampling"] = self.sampling.kind
                body["sampling_rate"] = self.sampling.rate
                body["participation"] = self.sampling.participation
            else:
                body[item.name] = getattr(self, item.name)
        return body


def check_ring(bits: int, *, cap: int, l2: float, deviation: float) -> None:
    """Refuses a ring in which the largest sum and its noise could wrap around.

    Args:
        bits: b, of the modulus 2^b.
        cap: n_cap, updates in the largest sum.
        l2: D2, of one update's integers.
        deviation: of the noise in the sum, in integers.

    Raises:
        MechanismError: ``cap`` updates of norm ``l2`` and 12 deviations of noise do not fit.
    """
    largest = cap * l2 + _NOISE_TAIL * deviation
    if not largest < 2.0 ** (bits - 1):
        remedy = "no ring holds that: lower the noise multiplier or the clipping norm"
        if math.isfinite(largest):
            needed = math.ceil(math.log2(largest)) + 1
            remedy = (
                f"which needs {needed} bits; raise aggregation.modulus_bits or use "
                "encoding='narrow'"
            )
        raise MechanismError(
            f"modulus_bits={bits} is too small: {cap} clients and the noise reach {largest:.3g}, "
            f"{remedy}"
        )
