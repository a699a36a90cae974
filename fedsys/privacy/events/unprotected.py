"""none: no noise, no privacy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fedsys.privacy import validation
from fedsys.privacy.clipping import squared_norm_limit
from fedsys.privacy.events.base import Sampling, SumEvent, check_ring
from fedsys.privacy.rings import check_bits

__all__ = ["UnprotectedEvent", "unprotected_event"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UnprotectedEvent(SumEvent):
    """A sum released without noise: every view's epsilon is infinite.

    Attributes:
        modulus_bits: b; the sum is taken mod 2^b.
    """

    mechanism: ClassVar[str] = "none"

    modulus_bits: int


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
    """The event of a round without noise.

    Raises:
        MechanismError: a value is out of range, or the ring is too small for the sum.
    """
    validation.integer("dimension", dimension, most=1 << 36)
    validation.integer("cap", cap)
    check_bits(modulus_bits)
    check_ring(modulus_bits, cap=cap, l2=math.sqrt(squared_norm_limit(dimension)), deviation=0.0)
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
