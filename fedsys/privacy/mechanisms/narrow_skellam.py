"""distributed-skellam in the narrow encoding: 20 bits a coordinate and fewer.

Kairouz, Liu and Steinke 2021, Algorithm 1: clip, pad, rotate, scale, round at random until the norm
is within D2, add the noise share, reduce mod 2^b. Privacy rests on the integers' norm alone, which
is checked; rotation and wrap-around concern accuracy only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.clipping import check_updates, clipping_factors, finite_norms
from fedsys.privacy.events import SkellamEvent
from fedsys.privacy.hadamard import rotate, unrotate
from fedsys.privacy.mechanisms.base import Encoded
from fedsys.privacy.mechanisms.skellam import SkellamNoise
from fedsys.privacy.randomness import AesCtrStream, Entropy
from fedsys.privacy.rings import from_ring, to_ring

__all__ = ["NarrowSkellam", "round_at_random"]

_TRIES = 200
"""A try is accepted with probability 0.39 at least: all fail with probability 1e-43."""

_ROWS = 8  # encoded at once


def round_at_random(
    row: NDArray[np.float64], squared_limit: float, stream: AesCtrStream
) -> NDArray[np.int64]:
    """Rounds each coordinate (d,) up with the probability of its fraction, until sum r^2 <= limit.

    After ``_TRIES`` failures the row is truncated towards zero, which cannot lift its norm.
    """
    floor = np.floor(row)
    # u < fraction with u of 53 bits; the fraction is exact, so P[up] is within 2^-53 of it
    fraction = row - floor
    for _ in range(_TRIES):
        uniform = (stream.words(row.size) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        rounded: NDArray[np.int64] = (floor + (uniform < fraction)).astype(np.int64)
        if float(rounded @ rounded) <= squared_limit:
            return rounded
    truncated: NDArray[np.int64] = np.trunc(row * (1 - 2.0**-20)).astype(np.int64)
    if float(truncated @ truncated) <= squared_limit:
        return truncated
    return np.zeros_like(truncated)  # unreachable; the bound must not rest on that


class NarrowSkellam:
    """See ``Mechanism``; ``encode`` and ``decode`` need the round's public seed."""

    def __init__(self, event: SkellamEvent) -> None:
        self._event = event
        self._noise = SkellamNoise(event)

    def __repr__(self) -> str:
        return f"NarrowSkellam({self._event!r})"

    @property
    def event(self) -> SkellamEvent:
        """What one round costs."""
        return self._event

    @property
    def length(self) -> int:
        """The next power of two above the update's dimension."""
        return self._event.padded_dimension

    @property
    def modulus_bits(self) -> int:
        """b: vectors are added mod 2^b."""
        return self._event.modulus_bits

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the noise in each coordinate of the decoded mean."""
        event = self._event
        return float(np.sqrt(event.total_variance) / (event.scale * event.expected_cohort))

    def encode(
        self, updates: NDArray[Any], *, seed: bytes = b"", entropy: Entropy = os.urandom
    ) -> Encoded:
        """Clips, rotates and rounds K updates (K, d) to (K, length) integers mod 2^b.

        Args:
            updates: float32 or float64.
            seed: public, the same for the round's clients.
            entropy: for rounding.
        """
        event = self._event
        check_updates(updates, event.dimension)
        count = updates.shape[0]
        norms = np.empty(count, dtype=np.float64)
        finite = np.empty(count, dtype=np.bool_)
        values = np.empty((count, self.length), dtype=np.int64)
        stream = AesCtrStream.from_entropy(entropy)
        limit = event.l2 * event.l2 * (1 - 2.0**-50)
        for start in range(0, count, _ROWS):
            part = slice(start, min(start + _ROWS, count))
            rows = np.zeros((part.stop - start, self.length), dtype=np.float64)
            with np.errstate(over="ignore", invalid="ignore"):
                rows[:, : event.dimension] = updates[part]
                norms[part], finite[part] = finite_norms(rows)
            rows[~finite[part]] = 0.0
            factors = clipping_factors(norms[part], clip=event.clip, scale=event.scale)
            turned = rotate(rows * factors[:, None], seed)
            for offset, row in enumerate(turned):
                values[start + offset] = round_at_random(row, limit, stream)
        return Encoded(
            values=to_ring(values, bits=event.modulus_bits),
            clipped=norms > event.clip,
            finite=finite,
            norms=norms,
        )

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """(clients, length) independent shares of variance V* / n_cap."""
        return self._noise.noise_shares(clients, entropy)

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """One draw (length,) that completes ``survivors`` shares to variance V*."""
        return self._noise.top_up(survivors, entropy)

    def decode(self, total: NDArray[Any], *, seed: bytes = b"") -> NDArray[np.float64]:
        """The mean update (d,) of a sum mod 2^b (length,)."""
        if total.shape != (self.length,):
            raise MechanismError(f"the sum must have shape ({self.length},), got {total.shape}")
        signed = from_ring(total, bits=self.modulus_bits).astype(np.float64)
        straight = unrotate(signed[None, :], seed)[0, : self._event.dimension]
        mean: NDArray[np.float64] = straight / (self._event.scale * self._event.expected_cohort)
        return mean
