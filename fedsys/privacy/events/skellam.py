"""distributed-skellam: every client adds a share of the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, get_args

from fedsys.privacy import narrow, validation
from fedsys.privacy.clipping import wide_scale
from fedsys.privacy.events.base import Encoding, Guarantee, Sampling, SumEvent, check_ring
from fedsys.privacy.float_sums import encoded_norm
from fedsys.privacy.rings import check_bits

__all__ = ["SkellamEvent", "skellam_event"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SkellamEvent(SumEvent):
    """Integers of bounded norm plus one Skellam share from each client, topped up to a constant.

    Attributes:
        encoding: ``wide``, ``narrow``, or ``float`` (see `fedsys.privacy.float_sums`).
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
    validation.one_of("encoding", encoding, get_args(Encoding))
    validation.integer("cap", cap)
    check_bits(modulus_bits)
    unit_share, unit_total = _noise_variance(
        cap=cap, min_survivors=min_survivors, colluders=colluders, guarantee=guarantee
    )
    if encoding != "narrow":
        padded = dimension
        scale = wide_scale(dimension, clip)
        l2 = encoded_norm(dimension, encoding)
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
    if encoding != "narrow":
        check_ring(modulus_bits, cap=cap, l2=l2, deviation=math.sqrt(total))
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
