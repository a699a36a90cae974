"""What every mechanism does: encode updates, draw noise, decode the sum, describe the cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy.encoding.encoded import Encoded
from fedsys.privacy.events import Event
from fedsys.privacy.randomness import Entropy

__all__ = ["Encoder", "Mechanism", "NoiseSource", "add_noise"]


class Encoder(Protocol):
    """How updates become integers mod 2^b and sums become means."""

    @property
    def length(self) -> int:
        """Coordinates of an encoded vector (at least the update's dimension)."""
        ...

    @property
    def rotates(self) -> bool:
        """Whether ``encode`` and ``decode`` use the round's public seed."""
        ...

    @property
    def sums_integers(self) -> bool:
        """Whether a vector is the update's clipped integers and nothing else, so that a host may
        clip many updates and add their integers at once."""
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

    def decode(self, total: NDArray[Any], *, seed: bytes = b"") -> NDArray[np.float64]:
        """The mean update (d,): the sum mod 2^b (length,), lifted, over s q N.

        Raises:
            MechanismError: the sum has another shape, or is not reduced mod 2^b.
        """
        ...


class NoiseSource(Protocol):
    """Who adds which noise, and what hosts need to know about it."""

    @property
    def adds_shares(self) -> bool:
        """Whether clients add noise."""
        ...

    @property
    def draws_ahead(self) -> bool:
        """Whether the coordinator's noise depends on nothing that a round brings, so that a host
        may draw it beforehand."""
        ...

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """The noise that ``clients`` clients add, (clients, length); zeros where they add none.

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

    def skip_to(self, position: int, entropy: Entropy) -> None:
        """Draws past the noise of rounds before the one numbered ``position`` (from 0), where noise
        is correlated over rounds: each reserved round has its position, released or not."""
        ...

    def state_bytes(self) -> bytes:
        """What is remembered from round to round: to be durable before a round that used it is
        committed, as secret as the noise. Empty where nothing is."""
        ...

    def restore(self, state: bytes) -> None:
        """Takes up a state that ``state_bytes`` gave.

        Raises:
            MechanismError: it is another job's, or damaged.
        """
        ...


class Mechanism(Encoder, NoiseSource, Protocol):
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
    def modulus_bits(self) -> int:
        """b: vectors are added mod 2^b."""
        ...

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the noise in each coordinate of the decoded mean; the largest of
        all rounds where noise is correlated over them."""
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
