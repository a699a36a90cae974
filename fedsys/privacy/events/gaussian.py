"""central-gaussian and local-gaussian: rounded Gaussian noise, the server's or each client's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.clipping import wide_scale
from fedsys.privacy.events.base import Encoding, Guarantee, Sampling, SumEvent, check_ring
from fedsys.privacy.float_sums import encoded_norm
from fedsys.privacy.rings import check_bits

__all__ = ["GaussianEvent", "gaussian_event"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianEvent(SumEvent):
    """Integers of bounded norm plus rounded Gaussian noise, from the server or from each client.

    Attributes:
        local: whether each client adds the noise of deviation z s C itself.
        modulus_bits: b; the sum is taken mod 2^b.
        scale: s, integers per unit of the update.
        l2: D2, largest l2 norm of one client's integers.
        encoding: ``wide``, or ``float`` (see `fedsys.privacy.float_sums`).
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
    encoding: Encoding = "wide"

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``event_from_json`` turns back into this event."""
        body = SumEvent.to_json(self)
        if body.pop("local"):
            body["mechanism"] = "local-gaussian"
        return body


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
    encoding: Encoding = "wide",
) -> GaussianEvent:
    """The event of a round with Gaussian noise, the server's or (``local``) each client's.

    Raises:
        MechanismError: a value is out of range, or the ring is too small for the sum.
    """
    validation.integer("dimension", dimension, most=1 << 36)
    validation.positive("clip", clip)
    validation.positive("noise_multiplier", noise_multiplier)
    validation.integer("cap", cap)
    validation.one_of("encoding", encoding, ("wide",) if local else ("wide", "float"))
    check_bits(modulus_bits)
    if guarantee == "server" and not local:
        raise MechanismError(
            "guarantee='server' cannot hold under central-gaussian: the server sees the sum before "
            "the noise; use distributed-skellam or local-gaussian"
        )
    scale = wide_scale(dimension, clip)
    l2 = encoded_norm(dimension, encoding)
    unit = (noise_multiplier * l2) ** 2
    total = cap * unit if local else unit
    check_ring(modulus_bits, cap=cap, l2=l2, deviation=math.sqrt(total))
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
        encoding=encoding,
    )
