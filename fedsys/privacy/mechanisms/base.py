"""What every mechanism does: encode updates, draw noise, decode the sum, describe the cost."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.clipping import IntegerUpdates, clip_to_integers
from fedsys.privacy.events import Event
from fedsys.privacy.randomness import Entropy
from fedsys.privacy.rings import from_ring, to_ring

__all__ = ["Encoded", "Mechanism", "WideEncoding", "add_noise"]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Encoded:
    """K clipped updates as ring elements, and what the client may know about them.

    Attributes:
        values: (K, length) integers mod 2^b, in ``ring_dtype(b)``; no noise yet.
        clipped: (K,) whether the update's norm exceeded the clipping norm.
        finite: (K,) whether the update was finite; otherwise its row encodes zeros.
        norms: (K,) l2 norms before clipping.
    """

    values: NDArray[Any]
    clipped: NDArray[np.bool_]
    finite: NDArray[np.bool_]
    norms: NDArray[np.float64]


@runtime_checkable
class Mechanism(Protocol):
    """One privacy mechanism, its parameters fixed.

    A round is: every client sends ``encode(update) + noise_shares(1)`` mod 2^b; the sum of the
    survivors' vectors plus ``top_up(survivors)`` is released; ``decode`` turns it into the mean
    over the constant q N.
    """

    @property
    def event(self) -> Event:
        """What one round costs."""
        ...

    @property
    def length(self) -> int:
        """Coordinates of an encoded vector (at least the update's dimension)."""
        ...

    @property
    def modulus_bits(self) -> int:
        """b: vectors are added mod 2^b."""
        ...

    @property
    def rotates(self) -> bool:
        """Whether ``encode`` and ``decode`` use the round's public seed."""
        ...

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the noise in each coordinate of the decoded mean."""
        ...

    def encode(
        self,
        updates: NDArray[Any],
        *,
        seed: bytes = b"",
        entropy: Entropy | Sequence[Entropy] = os.urandom,
    ) -> Encoded:
        """Clips and encodes K updates (K, d), float32 or float64; never refuses their values.

        Args:
            updates: one row a client.
            seed: public, the same for all clients of a round and fresh each round.
            entropy: for encodings that round at random; with one source a client, row k depends
                on the k-th alone.

        Raises:
            MechanismError: the array has another shape or dtype, or the seed is missing.
        """
        ...

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """The noise that ``clients`` clients add, (clients, length).

        With one entropy source a client, row k depends on the k-th source alone.

        Raises:
            MechanismError: there are neither one source nor ``clients``, where noise is drawn.
        """
        ...

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """The noise (length,) that the coordinator adds to a sum of ``survivors`` clients.

        Raises:
            MechanismError: a cohort above the cap, or nobody, was summed.
        """
        ...

    def decode(self, total: NDArray[Any], *, seed: bytes = b"") -> NDArray[np.float64]:
        """The mean update (d,): the sum mod 2^b (length,), lifted, over s q N.

        Raises:
            MechanismError: the sum has another shape, or is not reduced mod 2^b.
        """
        ...


def add_noise(values: NDArray[Any], noise: NDArray[np.int64], *, bits: int) -> NDArray[Any]:
    """``values + noise`` mod 2^bits, in place and returned.

    Args:
        values: ring elements, in ``ring_dtype(bits)``.
        noise: signed integers of the same shape.
        bits: b.
    """
    values += noise.astype(values.dtype)
    if bits != 8 * values.dtype.itemsize:
        values &= values.dtype.type((1 << bits) - 1)
    return values


class WideEncoding:
    """The encoding that wide mechanisms share: integer clipping, native ring, no rotation.

    Args:
        event: of one round.
        scale: s, integers per unit of the update.
    """

    def __init__(self, event: Event, scale: float) -> None:
        self._event = event
        self._scale = scale

    @property
    def event(self) -> Event:
        """What one round costs."""
        return self._event

    @property
    def length(self) -> int:
        """Coordinates of an encoded vector: the update's own."""
        return self._event.dimension

    @property
    def modulus_bits(self) -> int:
        """b: vectors are added mod 2^b."""
        return self._event.modulus_bits

    @property
    def rotates(self) -> bool:
        """No: ``encode`` and ``decode`` use no seed."""
        return False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._event!r})"

    def clip(self, updates: NDArray[Any]) -> IntegerUpdates:
        """The signed integers behind ``encode``.

        Raises:
            MechanismError: the array has another width or dtype.
        """
        if updates.ndim != 2 or updates.shape[1] != self._event.dimension:
            raise MechanismError(
                f"updates must have shape (K, {self._event.dimension}), got {updates.shape}"
            )
        return clip_to_integers(updates, clip=self._event.clip)

    def encode(
        self,
        updates: NDArray[Any],
        *,
        seed: bytes = b"",
        entropy: Entropy | Sequence[Entropy] = os.urandom,
    ) -> Encoded:
        """Clips and encodes K updates (K, d); ``seed`` and ``entropy`` are not used.

        Raises:
            MechanismError: the array has another shape or dtype.
        """
        integers = self.clip(updates)
        return Encoded(
            values=to_ring(integers.values, bits=self.modulus_bits),
            clipped=integers.clipped,
            finite=integers.finite,
            norms=integers.norms,
        )

    def decode(self, total: NDArray[Any], *, seed: bytes = b"") -> NDArray[np.float64]:
        """The mean update (d,) of a sum mod 2^b (d,); ``seed`` is not used.

        Raises:
            MechanismError: the sum has another shape, or is not reduced mod 2^b.
        """
        if total.shape != (self.length,):
            raise MechanismError(f"the sum must have shape ({self.length},), got {total.shape}")
        signed = from_ring(total, bits=self.modulus_bits)
        return signed.astype(np.float64) / (self._scale * self._event.expected_cohort)

    def check_survivors(self, survivors: int) -> int:
        """How many shares are missing below the cap.

        Raises:
            MechanismError: a cohort above the cap, or nobody, was summed.
        """
        if not 0 < survivors <= self._event.cap:
            raise MechanismError(
                f"survivors must be from 1 to the cap {self._event.cap}, got {survivors}"
            )
        return self._event.cap - survivors

    def deviation_of(self, variance: float) -> float:
        """Deviation of the decoded mean, in the update's units, from the sum's ``variance``."""
        return math.sqrt(variance) / (self._scale * self._event.expected_cohort)
