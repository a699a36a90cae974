"""The narrow encoding for slow uplinks: rotate, scale and round at random, to at most 20 bits.

Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with
Secure Aggregation" (ICML 2021), Algorithm 1 and Section 4, but with rounded Gaussian noise (see
``NOISE.md``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsys.errors import MechanismError

__all__ = ["MAX_BITS", "NarrowGeometry", "geometry", "padded_dimension"]

MAX_BITS = 20
_DEVIATIONS = 4  # k: the ring holds the sum up to k standard deviations
_LOG_INVERSE_BETA = 0.5  # beta = exp(-1/2): a rounding is accepted with probability >= 1 - beta


@dataclass(frozen=True, kw_only=True, slots=True)
class NarrowGeometry:
    """What follows from the narrow encoding's parameters.

    Attributes:
        padded_dimension: the smallest power of two that is at least the dimension.
        scale: s, integers per unit of the update.
        l2: D2, the largest l2 norm of a rounded update.
    """

    padded_dimension: int
    scale: float
    l2: float


def padded_dimension(dimension: int) -> int:
    """The smallest power of two that is at least ``dimension``."""
    return 1 << max(dimension - 1, 0).bit_length()


def geometry(
    *,
    dimension: int,
    clip: float,
    noise_multiplier: float,
    cohort: float,
    modulus_bits: int,
) -> NarrowGeometry:
    """Scale and sensitivity by Kairouz et al. 2021, Section 4, with k = 4 and beta = exp(-1/2).

    With d the padded dimension and n sigma_loc^2 = z^2 C^2,

        s^2 = (4^b - n k^2) / (4 k^2 (C^2 n^2 / d + n sigma_loc^2)),
        D2^2 = min{(s C + sqrt(d))^2,
                   (s C)^2 + d / 4 + sqrt(2 log(1 / beta)) (s C + sqrt(d) / 2)}.

    Args:
        dimension: the number of coordinates of an update.
        clip: C, the clipping norm.
        noise_multiplier: z, of the whole sum.
        cohort: n, the expected size of a cohort.
        modulus_bits: b, from 2 to 20.

    Raises:
        MechanismError: ``modulus_bits`` is out of range or leaves no room for the cohort.
    """
    if not 2 <= modulus_bits <= MAX_BITS:
        raise MechanismError(
            f"encoding='narrow' needs modulus_bits from 2 to {MAX_BITS}, got {modulus_bits}"
        )
    padded = padded_dimension(dimension)
    room = 4.0**modulus_bits - cohort * _DEVIATIONS**2
    if room <= 0:
        raise MechanismError(
            f"modulus_bits={modulus_bits} is too small for a cohort of {cohort:g}: rounding alone "
            "overflows the ring"
        )
    spread = clip**2 * (cohort**2 / padded + noise_multiplier**2)
    scale = math.sqrt(room / (4 * _DEVIATIONS**2 * spread))
    length = scale * clip
    l2 = min(
        length + math.sqrt(padded),
        math.sqrt(
            length**2
            + padded / 4
            + math.sqrt(2 * _LOG_INVERSE_BETA) * (length + math.sqrt(padded) / 2)
        ),
    )
    return NarrowGeometry(padded_dimension=padded, scale=scale, l2=l2)
