"""Sums of clipped updates in floating point, rounded to integers once: fast, but not a release.

No single update is encoded. The cohort's sum S = sum_k min(1, C / |x_k|) x_k is computed in
floating point, scaled by s and rounded, and the noise is added to those integers. Removing one
client changes S by at most C (1 + 1e-4), where 1e-4 is a generous allowance for errors of clipping
and summing in floating point, and rounding changes each coordinate by at most one more. So

    D2 = s C (1 + 1e-4) + sqrt(d).

The allowance is measured, not proved, so a run that sums in this way is marked "not a release". It
serves research on accuracy and speed.

>>> round(encoded_norm(10_000, "float") / encoded_norm(10_000, "wide"), 6)
1.015725
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy.encoding.clipping import squared_norm_limit
from fedsys.privacy.encoding.rings import to_ring

__all__ = ["ALLOWANCE", "FixedPoint", "encoded_norm"]

ALLOWANCE = 1e-4
"""The relative error allowed for clipping and summing in floating point."""

_FRACTION_BITS = 20


def encoded_norm(dimension: int, encoding: str) -> float:
    """D2, in integers, for the encodings with s = 64 sqrt(d) / C: ``wide`` and ``float``."""
    norm = math.sqrt(squared_norm_limit(dimension))
    return norm * (1 + ALLOWANCE) + math.sqrt(dimension) if encoding == "float" else norm


class FixedPoint:
    """Adds a cohort's partial sums so that the result does not depend on their order.

    Each partial sum is rounded to integers, s 2^20 per unit of the update, and adding integers is
    associative. The last 20 bits are rounded away once, at the end.

    Args:
        scale: s, integers per unit of the update.
    """

    def __init__(self, scale: float) -> None:
        self._scale = math.ldexp(scale, _FRACTION_BITS)

    @property
    def units(self) -> float:
        """s 2^20, integers of a partial sum per unit of the update."""
        return self._scale

    def add(self, total: NDArray[np.int64], part: NDArray[Any]) -> None:
        """Adds a partial sum (d,) of clipped updates, in the update's units, to `total` (d,)."""
        scaled = part.astype(np.float64)
        scaled *= self._scale
        np.rint(scaled, out=scaled)
        total += scaled.astype(np.int64)  # not in float64, which is exact to 2^53 only

    def round(self, total: NDArray[np.int64], *, bits: int) -> NDArray[Any]:
        """(d,) the sum's integers mod 2^bits, half rounded up."""
        half = np.int64(1 << (_FRACTION_BITS - 1))
        rounded: NDArray[np.int64] = total + half
        rounded >>= np.int64(_FRACTION_BITS)
        return to_ring(rounded, bits=bits)
