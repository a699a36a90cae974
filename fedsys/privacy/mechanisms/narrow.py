"""The narrow encoding: at most 20 bits per coordinate.

Kairouz, Liu and Steinke 2021, Algorithm 1: clip, pad, rotate, scale, round at random until the norm
is within D2, reduce mod 2^b. Privacy rests on the integers' norm alone, which is checked; rotation
and wrap-around affect accuracy only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.encoding.clipping import check_updates, clipping_factors, finite_norms
from fedsys.privacy.encoding.encoded import Encoded
from fedsys.privacy.encoding.hadamard import hadamard_transform, public_signs, unrotate
from fedsys.privacy.encoding.rings import from_ring, ring_dtype, to_ring
from fedsys.privacy.events import Event
from fedsys.privacy.randomness import AesCtrStream, Entropy

__all__ = ["NarrowEncoder", "round_at_random"]

_TRIES = 200
"""Each try is accepted with probability at least 0.39: all fail with probability 1e-43."""

_FRACTION_BITS = 16
_BLOCK = 1 << 16  # coordinates at once: 256 KiB of float32 stay in the second-level cache


def round_at_random(
    rows: NDArray[np.float32], squared_limit: float, streams: Sequence[AesCtrStream]
) -> NDArray[np.signedinteger[Any]]:
    """Rounds each coordinate up with probability its fractional part, until sum r^2 <= limit.

    In fixed point: the value is rounded to units of 2^-16, 16 random bits are added, and the result
    is shifted down, so that P[up] is the fractional part to within 2^-17. After ``_TRIES`` failures
    a row is truncated towards zero, which cannot increase its norm.

    Args:
        rows: (K, d) with norms of about sqrt(squared_limit) or less; overwritten.
        squared_limit: the bound on each row's squared norm after rounding.
        streams: K sources; row k's bits come from the k-th alone.

    Returns:
        (K, d) int32 where the fixed-point values fit, otherwise int64.
    """
    rows *= np.float32(1 << _FRACTION_BITS)
    np.rint(rows, out=rows)
    small = max(float(rows.max(initial=0)), -float(rows.min(initial=0))) < 2.0**30
    fixed = rows.astype(np.int32 if small else np.int64)
    rounded = np.empty_like(fixed)
    bits = np.empty(rows.shape, dtype=np.uint16)
    which = np.arange(len(rows))
    tried: slice | NDArray[np.intp] = slice(None)
    for _ in range(_TRIES):
        for row in which.tolist():
            streams[row].fill(bits[row])
        up = np.add(fixed[tried], bits[tried], dtype=fixed.dtype)
        rounded[tried] = np.right_shift(up, _FRACTION_BITS, out=up)
        over = _squares(up) > squared_limit
        if not over.any():
            return rounded
        which = tried = which[over]
    kept = np.sign(fixed[which]) * (np.abs(fixed[which]) >> _FRACTION_BITS)
    kept[_squares(kept) > squared_limit] = 0  # unreachable; the bound must not rest on that
    rounded[which] = kept
    return rounded


def _squares(rows: NDArray[np.signedinteger[Any]]) -> NDArray[np.float64]:
    """The rows' sums of squares (K,), exact below 2^53."""
    wide = rows.astype(np.float64)
    found: NDArray[np.float64] = np.vecdot(wide, wide)
    return found


class NarrowEncoder:
    """See ``Encoder``; ``encode`` and ``decode`` need the round's public seed.

    Args:
        event: one round's event.
    """

    rotates = True
    sums_integers = False

    def __init__(self, event: Event) -> None:
        self._event = event
        self._geometry = event.geometry

    @property
    def length(self) -> int:
        """The smallest power of two that is at least the update's dimension."""
        return self._geometry.length

    def encode(
        self,
        updates: NDArray[Any],
        *,
        seed: bytes = b"",
        entropy: Entropy | Sequence[Entropy] = os.urandom,
    ) -> Encoded:
        """Clips, rotates and rounds K updates (K, d) to (K, length) integers mod 2^b.

        Args:
            updates: (K, d) float32 or float64.
            seed: public, the same for all of the round's clients.
            entropy: for rounding; with one source per client, row k depends on the k-th alone.

        Raises:
            MechanismError: the array has another shape or dtype, the seed is empty, or the number
                of sources is neither one nor K.
        """
        event, geometry = self._event, self._geometry
        check_updates(updates, event.dimension)
        count = updates.shape[0]
        norms = np.empty(count, dtype=np.float64)
        finite = np.empty(count, dtype=np.bool_)
        values = np.empty((count, self.length), dtype=ring_dtype(event.modulus_bits))
        streams = _streams(entropy, count)
        limit = geometry.l2 * geometry.l2 * (1 - 2.0**-50)  # squaring in float64 may round up
        at_once = max(1, _BLOCK // self.length)
        signs = public_signs(self.length, seed).astype(np.float32) / math.sqrt(self.length)
        for start in range(0, count, at_once):
            part = slice(start, min(start + at_once, count))
            with np.errstate(over="ignore", invalid="ignore"):
                own = updates[part].astype(np.float64)
                norms[part], finite[part] = finite_norms(own)
            own[~finite[part]] = 0.0
            own *= clipping_factors(norms[part], clip=event.clip, scale=geometry.scale)[:, None]
            rows = np.zeros((len(own), self.length), dtype=np.float32)
            np.multiply(own, signs[: event.dimension], out=rows[:, : event.dimension])
            rounded = round_at_random(hadamard_transform(rows), limit, streams[part])
            values[part] = to_ring(rounded, bits=event.modulus_bits)
        return Encoded(values=values, clipped=norms > event.clip, unusable=~finite, norms=norms)

    def decode(self, total: NDArray[Any], *, seed: bytes = b"") -> NDArray[np.float64]:
        """The mean update (d,) from a sum mod 2^b (length,).

        Raises:
            MechanismError: the sum has another shape or is not reduced mod 2^b, or the seed is
                empty.
        """
        if total.shape != (self.length,):
            raise MechanismError(f"the sum must have shape ({self.length},), got {total.shape}")
        signed = from_ring(total, bits=self._event.modulus_bits).astype(np.float64)
        straight = unrotate(signed[None, :], seed)[0, : self._event.dimension]
        mean: NDArray[np.float64] = straight / (self._geometry.scale * self._event.expected_cohort)
        return mean


def _streams(entropy: Entropy | Sequence[Entropy], count: int) -> list[AesCtrStream]:
    """One stream per row; the same for all rows if there is one source."""
    if callable(entropy):
        return [AesCtrStream.from_entropy(entropy)] * count
    if len(entropy) != count:
        raise MechanismError(
            f"{count} clients need one entropy source or {count}, got {len(entropy)}"
        )
    return [AesCtrStream.from_entropy(source) for source in entropy]
