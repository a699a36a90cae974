"""The interface of mechanisms: encode updates, draw noise, decode the sum, state the cost."""

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
        """The number of coordinates of an encoded vector, at least the update's dimension."""
        ...

    @property
    def rotates(self) -> bool:
        """Whether ``encode`` and ``decode`` use the round's public seed."""
        ...

    @property
    def sums_integers(self) -> bool:
        """Whether an encoded vector is just the update's clipped integers, so that a host may clip
        many updates and add their integers at once."""
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
            updates: one row per client.
            seed: public, the same for all clients of a round and fresh in each round.
            entropy: for encodings that round at random; with one source per client, row k depends
                on the k-th source alone.

        Raises:
            MechanismError: the array has another shape or dtype, or the seed is missing.
        """
        ...

    def decode(self, total: NDArray[Any], *, seed: bytes = b"") -> NDArray[np.float64]:
        """The mean update (d,): the signed sum, from its value mod 2^b (length,), over s q N.

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
        """Whether the coordinator's noise depends on nothing that happens in a round, so that a
        host may draw it beforehand."""
        ...

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """The noise that ``clients`` clients add, (clients, length); zeros where they add none.

        With one entropy source per client, row k depends on the k-th source alone.

        Raises:
            MechanismError: noise is drawn and the number of sources is neither one nor ``clients``.
        """
        ...

    def add_shares(self, vectors: NDArray[Any], entropy: Entropy | Sequence[Entropy]) -> None:
        """Adds `noise_shares` to the vectors (K, length) of K clients mod 2^b, in place, without an
        array of the noise; does nothing where clients add none.

        Raises:
            MechanismError: as `noise_shares`.
        """
        ...

    def add_share_sum(
        self, total: NDArray[np.int64], clients: int, entropy: Entropy | Sequence[Entropy]
    ) -> None:
        """Adds the sum of `noise_shares` to `total` (length,), in place, without an array of the
        noise; does nothing where clients add none. With one source the sum's law is the same, but
        many shares are not drawn one by one.

        Raises:
            MechanismError: as `noise_shares`.
        """
        ...

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """The noise (length,) that the coordinator adds to a sum of ``survivors`` clients.

        Raises:
            MechanismError: the number of survivors is 0 or exceeds the cap.
        """
        ...

    def skip_to(self, position: int, entropy: Entropy) -> None:
        """Draws and discards the noise of rounds before ``position`` (counted from 0), where noise
        is correlated over rounds. Each reserved round has a position, released or not."""
        ...

    def state_bytes(self) -> bytes:
        """What is remembered from round to round; empty if nothing is. It must be durable before a
        round that used it is committed, and is as secret as the noise."""
        ...

    def restore(self, state: bytes) -> None:
        """Restores a state that ``state_bytes`` returned.

        Raises:
            MechanismError: it belongs to another job, or is damaged.
        """
        ...


class Mechanism(Encoder, NoiseSource, Protocol):
    """One privacy mechanism with fixed parameters.

    In a round, every client sends ``encode(update) + noise_shares(1)`` mod 2^b. The sum of the
    survivors' vectors plus ``top_up(survivors)`` is released, and ``decode`` turns it into the mean
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
        """The standard deviation of the noise in each coordinate of the decoded mean; the largest
        over all rounds where noise is correlated."""
        ...


def add_noise(values: NDArray[Any], noise: NDArray[np.int64], *, bits: int) -> NDArray[Any]:
    """Adds noise to ``values`` mod 2^bits in place, and returns them.

    Args:
        values: elements of the ring, in ``ring_dtype(bits)``.
        noise: signed integers of the same shape.
        bits: b.
    """
    values += noise.astype(values.dtype)
    if bits != 8 * values.dtype.itemsize:
        values &= values.dtype.type((1 << bits) - 1)
    return values
