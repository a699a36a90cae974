"""What one round costs, as immutable data: the only thing that accountants see.

An event holds what was chosen (mechanism, encoding, clipping norm, noise multiplier, sampling) and
what follows from it (scale, sensitivities, variances). ``event_from_json`` derives the second from
the first again and refuses a record in which they disagree.

>>> event = skellam_event(dimension=650, clip=0.3, noise_multiplier=0.7, encoding="wide",
...     modulus_bits=32, cap=159, min_survivors=47, expected_cohort=100,
...     sampling=Sampling(kind="poisson", rate=100 / 1437))
>>> round(event.l2, 3), round(event.share_variance, 3)
(1631.686, 8204.881)
>>> event_from_json(event.to_json()) == event
True
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fedsys.errors import MechanismError
from fedsys.privacy import narrow, validation
from fedsys.privacy.clipping import squared_norm_limit, wide_scale
from fedsys.privacy.rings import check_bits

__all__ = [
    "Encoding",
    "Event",
    "GaussianEvent",
    "Guarantee",
    "Sampling",
    "SamplingKind",
    "SkellamEvent",
    "SumEvent",
    "UnprotectedEvent",
    "event_from_json",
    "gaussian_event",
    "skellam_event",
    "unprotected_event",
]

Encoding = Literal["wide", "narrow"]
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


@dataclass(frozen=True, kw_only=True, slots=True)
class SkellamEvent(SumEvent):
    """Integers of bounded norm plus one Skellam share from each client, topped up to a constant.

    Attributes:
        encoding: ``wide`` or ``narrow``.
        modulus_bits: b; the sum is taken mod 2^b.
        padded_dimension: coordinates of the encoded vector.
        scale: s, integers per unit of the update.
        l2: D2, largest l2 norm of one client's integers.
        l1: D1, largest l1 norm.
        share_variance: of the noise that each client adds, in squared integers.
        total_variance: V*, of the noise in every release.
    """

    mechanism: ClassVar[str] = "distributed-skellam"

    encoding: Encoding
    modulus_bits: int
    padded_dimension: int
    scale: float
    l2: float
    l1: float
    share_variance: float
    total_variance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianEvent(SumEvent):
    """Integers of bounded norm plus rounded Gaussian noise, from the server or from each client.

    Attributes:
        local: whether each client adds the noise of deviation z s C itself.
        modulus_bits: b; the sum is taken mod 2^b.
        scale: s, integers per unit of the update.
        l2: D2, largest l2 norm of one client's integers.
        share_variance: of the noise that each client adds (0 if the server adds it).
        total_variance: V*, of the noise in every release.
    """

    mechanism: ClassVar[str] = "central-gaussian"

    local: bool
    modulus_bits: int
    scale: float
    l2: float
    share_variance: float
    total_variance: float

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``event_from_json`` turns back into this event."""
        body = SumEvent.to_json(self)
        if body.pop("local"):
            body["mechanism"] = "local-gaussian"
        return body


@dataclass(frozen=True, kw_only=True, slots=True)
class UnprotectedEvent(SumEvent):
    """A sum released without noise: every view's epsilon is infinite."""

    mechanism: ClassVar[str] = "none"

    modulus_bits: int


Event = SkellamEvent | GaussianEvent | UnprotectedEvent


def _noise_variance(
    *, cap: int, min_survivors: int, colluders: int, guarantee: str
) -> tuple[float, float]:
    """(share, V*) in units of (z s C)^2.

    The outsider's noise is V* = unit whatever the cohort; the server's is what the m - c honest
    survivors of the smallest sum add.
    """
    if guarantee == "server":
        share = 1.0 / max(min_survivors - colluders, 1)
        return share, cap * share
    return 1.0 / cap, 1.0


def _check_ring(bits: int, *, cap: int, l2: float, deviation: float) -> None:
    largest = cap * l2 + _NOISE_TAIL * deviation
    if not largest < 2.0 ** (bits - 1):
        needed = math.ceil(math.log2(largest)) + 1
        raise MechanismError(
            f"modulus_bits={bits} is too small: {cap} clients and the noise reach {largest:.3g}, "
            f"which needs {needed} bits; raise aggregation.modulus_bits or use encoding='narrow'"
        )


def skellam_event(
    *,
    dimension: int,
    clip: float,
    noise_multiplier: float,
    encoding: Encoding,
    modulus_bits: int,
    cap: int,
    min_survivors: int,
    expected_cohort: float,
    sampling: Sampling,
    guarantee: Guarantee = "outsider",
    colluders: int = 0,
) -> SkellamEvent:
    """The event of a distributed Skellam round, with everything that follows from the choices.

    Raises:
        MechanismError: a value is out of range, or the ring is too small for the sum.
    """
    validation.integer("dimension", dimension, most=1 << 36)
    validation.positive("clip", clip)
    validation.positive("noise_multiplier", noise_multiplier)
    validation.one_of("encoding", encoding, ("wide", "narrow"))
    validation.integer("cap", cap)
    check_bits(modulus_bits)
    unit_share, unit_total = _noise_variance(
        cap=cap, min_survivors=min_survivors, colluders=colluders, guarantee=guarantee
    )
    if encoding == "wide":
        padded = dimension
        scale = wide_scale(dimension, clip)
        l2 = math.sqrt(squared_norm_limit(dimension))
        l1 = math.sqrt(dimension) * l2
    else:
        geometry = narrow.geometry(
            dimension=dimension,
            clip=clip,
            noise_multiplier=noise_multiplier * math.sqrt(unit_total),
            cohort=expected_cohort,
            modulus_bits=modulus_bits,
        )
        padded, scale = geometry.padded_dimension, geometry.scale
        l2, l1 = geometry.l2, geometry.l1
    unit = (noise_multiplier * scale * clip) ** 2
    share, total = unit * unit_share, unit * unit_total
    if encoding == "wide":
        _check_ring(modulus_bits, cap=cap, l2=l2, deviation=math.sqrt(total))
    return SkellamEvent(
        dimension=dimension,
        clip=clip,
        noise_multiplier=noise_multiplier,
        cap=cap,
        min_survivors=min_survivors,
        expected_cohort=expected_cohort,
        sampling=sampling,
        guarantee=guarantee,
        colluders=colluders,
        encoding=encoding,
        modulus_bits=modulus_bits,
        padded_dimension=padded,
        scale=scale,
        l2=l2,
        l1=l1,
        share_variance=share,
        total_variance=total,
    )


def gaussian_event(
    *,
    local: bool,
    dimension: int,
    clip: float,
    noise_multiplier: float,
    modulus_bits: int,
    cap: int,
    min_survivors: int,
    expected_cohort: float,
    sampling: Sampling,
    guarantee: Guarantee = "outsider",
    colluders: int = 0,
) -> GaussianEvent:
    """The event of a round with Gaussian noise, the server's or (``local``) each client's.

    Raises:
        MechanismError: a value is out of range, or the ring is too small for the sum.
    """
    validation.integer("dimension", dimension, most=1 << 36)
    validation.positive("clip", clip)
    validation.positive("noise_multiplier", noise_multiplier)
    validation.integer("cap", cap)
    check_bits(modulus_bits)
    if guarantee == "server" and not local:
        raise MechanismError(
            "guarantee='server' cannot hold under central-gaussian: the server sees the sum before "
            "the noise; use distributed-skellam or local-gaussian"
        )
    scale = wide_scale(dimension, clip)
    l2 = math.sqrt(squared_norm_limit(dimension))
    unit = (noise_multiplier * l2) ** 2
    total = cap * unit if local else unit
    _check_ring(modulus_bits, cap=cap, l2=l2, deviation=math.sqrt(total))
    return GaussianEvent(
        local=local,
        dimension=dimension,
        clip=clip,
        noise_multiplier=noise_multiplier,
        cap=cap,
        min_survivors=min_survivors,
        expected_cohort=expected_cohort,
        sampling=sampling,
        guarantee=guarantee,
        colluders=colluders,
        modulus_bits=modulus_bits,
        scale=scale,
        l2=l2,
        share_variance=unit if local else 0.0,
        total_variance=total,
    )


def unprotected_event(
    *,
    dimension: int,
    clip: float,
    modulus_bits: int,
    cap: int,
    min_survivors: int,
    expected_cohort: float,
    sampling: Sampling,
    colluders: int = 0,
) -> UnprotectedEvent:
    """The event of a round without noise."""
    validation.integer("dimension", dimension, most=1 << 36)
    validation.integer("cap", cap)
    check_bits(modulus_bits)
    _check_ring(modulus_bits, cap=cap, l2=math.sqrt(squared_norm_limit(dimension)), deviation=0.0)
    return UnprotectedEvent(
        dimension=dimension,
        clip=clip,
        noise_multiplier=0.0,
        cap=cap,
        min_survivors=min_survivors,
        expected_cohort=expected_cohort,
        sampling=sampling,
        colluders=colluders,
        modulus_bits=modulus_bits,
    )


_CHOSEN = (
    "dimension",
    "clip",
    "modulus_bits",
    "cap",
    "min_survivors",
    "expected_cohort",
    "colluders",
)


def event_from_json(body: Mapping[str, Any]) -> Event:
    """The event that a JSON object describes; everything derivable is derived again.

    Raises:
        MechanismError: the mechanism is unknown, a key is missing or superfluous, a value is out of
            range, or a derived value differs from what its parameters give.
    """
    mechanism = body.get("mechanism")
    try:
        chosen: dict[str, Any] = {name: body[name] for name in _CHOSEN}
        chosen["sampling"] = Sampling(
            kind=body["sampling"], rate=body["sampling_rate"], participation=body["participation"]
        )
        if mechanism == "none":
            event: Event = unprotected_event(**chosen)
        elif mechanism == "distributed-skellam":
            event = skellam_event(
                **chosen,
                noise_multiplier=body["noise_multiplier"],
                guarantee=body["guarantee"],
                encoding=body["encoding"],
            )
        elif mechanism in ("central-gaussian", "local-gaussian"):
            event = gaussian_event(
                **chosen,
                noise_multiplier=body["noise_multiplier"],
                guarantee=body["guarantee"],
                local=mechanism == "local-gaussian",
            )
        else:
            raise MechanismError(f"unknown mechanism {mechanism!r}: it cannot be accounted")
    except KeyError as missing:
        raise MechanismError(f"an event of {mechanism} lacks the key {missing}") from None
    derived = event.to_json()
    if extra := sorted(set(body) - set(derived)):
        raise MechanismError(f"an event of {mechanism} has unknown keys: {', '.join(extra)}")
    for name, value in derived.items():
        if not _agrees(body.get(name), value):
            raise MechanismError(
                f"an event's {name}={body.get(name)!r} disagrees with {value!r}, which its other "
                "values give"
            )
    return event


def _agrees(found: object, wanted: object) -> bool:
    """Equality, up to the last bits of floating point."""
    if isinstance(wanted, float):
        return (
            isinstance(found, (int, float))
            and not isinstance(found, bool)
            and math.isclose(found, wanted, rel_tol=1e-9, abs_tol=0.0)
        )
    return type(found) is type(wanted) and found == wanted
