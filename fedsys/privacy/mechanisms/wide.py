"""The wide encoding: updates are clipped as integers and added in the ring, without rotation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.encoding.clipping import clip_to_integers
from fedsys.privacy.encoding.encoded import Encoded
from fedsys.privacy.encoding.rings import ring_dtype, signed_words, to_ring
from fedsys.privacy.events import Event
from fedsys.privacy.randomness import Entropy

__all__ = ["WideEncoder"]


class WideEncoder:
    """See ``Encoder``; neither seed nor entropy is used.

    Args:
        event: one round's event.
    """

    rotates = False
    sums_integers = True

    def __init__(self, event: Event) -> None:
        self._event = event
        self._per_mean = event.scale * event.expected_cohort

    @property
    def length(self) -> int:
        """The number of coordinates of an encoded vector: the update's dimension."""
        return self._event.dimension

    def encode(
        self,
        updates: NDArray[Any],
        *,
        seed: bytes = b"",
        entropy: Entropy | Sequence[Entropy] = os.urandom,
    ) -> Encoded:
        """Clips and encodes K updates (K, d).

        Raises:
            MechanismError: the array has another shape or dtype.
        """
        event = self._event
        if updates.ndim != 2 or updates.shape[1] != event.dimension:
            raise MechanismError(
                f"updates must have shape (K, {event.dimension}), got {updates.shape}"
            )
        integers = clip_to_integers(updates, clip=event.clip)
        values, bits = integers.values, event.modulus_bits
        if ring_dtype(bits) != np.uint32:
            return replace(integers, values=to_ring(values, bits=bits))
        ring = values.view(np.uint32)  # the same 32 bits, without a copy
        if bits < 32:
            ring &= np.uint32((1 << bits) - 1)
        return replace(integers, values=ring)

    def decode(self, total: NDArray[Any], *, seed: bytes = b"") -> NDArray[np.float64]:
        """The mean update (d,) from a sum mod 2^b (d,).

        Raises:
            MechanismError: the sum has another shape, or is not reduced mod 2^b.
        """
        if total.shape != (self.length,):
            raise MechanismError(f"the sum must have shape ({self.length},), got {total.shape}")
        signed = signed_words(total, bits=self._event.modulus_bits)
        mean: NDArray[np.float64] = np.divide(signed, self._per_mean, dtype=np.float64)
        return mean
