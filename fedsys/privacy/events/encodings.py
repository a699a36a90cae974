"""How an update becomes integers: the encoding, and what follows from it.

- ``wide``: scaled by s = 64 sqrt(d) / C, rounded and clipped in the integers, so that the largest
  norm D2 is exactly s C (`fedsys.privacy.encoding.clipping`).
- ``narrow``: rotated and rounded at random, to at most 20 bits per coordinate
  (`fedsys.privacy.encoding.narrow`).
- ``float``: summed in floating point and rounded once, by a simulation only; not a release
  (`fedsys.privacy.encoding.float_sums`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.encoding import narrow
from fedsys.privacy.encoding.clipping import wide_scale
from fedsys.privacy.encoding.float_sums import encoded_norm
from fedsys.privacy.encoding.rings import MAX_BITS, RINGS, check_bits

__all__ = ["Encoding", "EncodingKind", "Geometry", "check_ring", "least_ring"]

EncodingKind = Literal["wide", "narrow", "float"]

_NOISE_TAIL = 12
"""Standard deviations of noise that must fit into the ring together with the largest sum. A
coordinate of a release exceeds them with probability 2 Q(12) < 2^-107; then the mean is wrong, but
no private data is revealed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """What follows from an encoding's parameters.

    Attributes:
        length: the number of coordinates of an encoded vector.
        scale: s, integers per unit of the update.
        l2: D2, the largest l2 norm of one client's integers.
    """

    length: int
    scale: float
    l2: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """An encoding and its parameters.

    Attributes:
        kind: ``wide``, ``narrow`` or ``float``.
        dimension: d, the number of coordinates of an update.
        clip: C, the l2 norm to which an update is clipped.
        modulus_bits: b; vectors are added mod 2^b.

    Raises:
        MechanismError: a value is out of range.
    """

    kind: EncodingKind
    dimension: int
    clip: float
    modulus_bits: int

    def __post_init__(self) -> None:
        validation.one_of("encoding", self.kind, get_args(EncodingKind))
        validation.integer("dimension", self.dimension, most=1 << 36)
        validation.positive("clip", self.clip)
        check_bits(self.modulus_bits)

    def geometry(self, *, cohort: float, total_multiplier: float) -> Geometry:
        """Length, scale and norm; only the narrow encoding's depend on the arguments.

        Args:
            cohort: n, the expected size of a cohort.
            total_multiplier: the deviation of the whole sum's noise, over D2.

        Raises:
            MechanismError: the narrow encoding has no room for that cohort.
        """
        return _geometry(self, cohort, total_multiplier)


@lru_cache(maxsize=1024)
def _geometry(encoding: Encoding, cohort: float, total_multiplier: float) -> Geometry:
    if encoding.kind != "narrow":
        return Geometry(
            length=encoding.dimension,
            scale=wide_scale(encoding.dimension, encoding.clip),
            l2=encoded_norm(encoding.dimension, encoding.kind),
        )
    found = narrow.geometry(
        dimension=encoding.dimension,
        clip=encoding.clip,
        noise_multiplier=total_multiplier,
        cohort=cohort,
        modulus_bits=encoding.modulus_bits,
    )
    return Geometry(length=found.padded_dimension, scale=found.scale, l2=found.l2)


def _largest(*, cap: int, l2: float, deviation: float) -> float:
    """The largest magnitude of a coordinate: n_cap times D2, plus 12 deviations of noise."""
    return cap * l2 + _NOISE_TAIL * deviation


def check_ring(bits: int, *, cap: int, l2: float, deviation: float) -> None:
    """Refuses a ring in which the largest sum and its noise could wrap around.

    Args:
        bits: b, where the modulus is 2^b.
        cap: n_cap, the number of updates in the largest sum.
        l2: D2, the largest norm of one update's integers.
        deviation: the standard deviation of the noise in the sum, in integers.

    Raises:
        MechanismError: ``cap`` updates of norm ``l2`` and 12 deviations of noise do not fit.
    """
    largest = _largest(cap=cap, l2=l2, deviation=deviation)
    if not largest < 2.0 ** (bits - 1):
        remedy = "more than any ring holds: lower the noise multiplier or the clipping norm"
        if math.isfinite(largest) and (needed := math.ceil(math.log2(largest)) + 1) <= MAX_BITS:
            remedy = (
                f"which needs {needed} bits; raise aggregation.modulus_bits, leave it at 0 (the "
                "least that fits) or use encoding='narrow'"
            )
        raise MechanismError(
            f"modulus_bits={bits} is too small: {cap} clients and the noise reach {largest:.3g}, "
            f"{remedy}"
        )


def least_ring(*, cap: int, l2: float, deviation: float) -> int:
    """The fewest bits, of those in `encoding.rings.RINGS`, that hold the largest sum.

    Args:
        cap: n_cap, the number of updates in the largest sum.
        l2: D2, the largest norm of one update's integers.
        deviation: the standard deviation of the noise in the sum, in integers. The ring holds 12
            deviations besides the sum, so a coordinate wraps with probability below 2^-107.

    Raises:
        MechanismError: no ring is large enough.
    """
    largest = _largest(cap=cap, l2=l2, deviation=deviation)
    for bits in RINGS:
        if largest < 2.0 ** (bits - 1):
            return bits
    raise MechanismError(
        f"{cap} clients and the noise reach {largest:.3g}, more than any ring holds: lower the "
        "noise multiplier or the clipping norm"
    )
