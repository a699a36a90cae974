"""Independent noise: clients' noise shares, or one draw by the coordinator, or none.

A release under ``ClientNoise`` holds exactly n_cap rounded terms no matter who took part: the
survivors' shares and the missing ones, which the coordinator draws, one by one or in lumps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.events import Event
from fedsys.privacy.noise import noise_sampler
from fedsys.privacy.randomness import AesCtrStream, Entropy

__all__ = ["ClientNoise", "CoordinatorNoise", "NoNoise", "NoShares", "check_survivors"]


def check_survivors(event: Event, survivors: int) -> int:
    """The number of noise shares that are missing from n_cap.

    Raises:
        MechanismError: the number of survivors is 0 or exceeds the cap.
    """
    if not 0 < survivors <= event.cap:
        raise MechanismError(f"survivors must be from 1 to the cap {event.cap}, got {survivors}")
    return event.cap - survivors


class _Memoryless:
    """Noise that is independent from round to round."""

    def skip_to(self, position: int, entropy: Entropy) -> None:
        """Does nothing, because no round depends on another."""

    def state_bytes(self) -> bytes:
        """Empty, because nothing is remembered."""
        return b""

    def restore(self, state: bytes) -> None:
        """Refuses a state, because only correlated noise has one.

        Raises:
            MechanismError: ``state`` is not empty.
        """
        if state:
            raise MechanismError("the state is for correlated noise, but noise is independent here")


class NoShares:
    """Clients add no noise.

    Args:
        length: the coordinates of a vector.
    """

    adds_shares = False

    def __init__(self, length: int) -> None:
        self._length = length

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """Zeros (clients, length): clients add nothing."""
        return np.zeros((clients, self._length), dtype=np.int64)

    def add_shares(self, vectors: NDArray[Any], entropy: Entropy | Sequence[Entropy]) -> None:
        """Does nothing."""

    def add_share_sum(
        self, total: NDArray[np.int64], clients: int, entropy: Entropy | Sequence[Entropy]
    ) -> None:
        """Does nothing."""


class ClientNoise(_Memoryless):
    """Every client adds a noise share; the coordinator adds those missing from n_cap.

    Args:
        event: one round's event.

    Raises:
        MechanismError: noise of that size cannot be drawn.
    """

    adds_shares = True
    draws_ahead = False

    def __init__(self, event: Event) -> None:
        self._event = event
        self._length = event.length
        self._sampler = noise_sampler(math.sqrt(event.share_variance))

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """Independent noise shares (clients, length).

        Raises:
            MechanismError: the number of sources is neither one nor ``clients``.
        """
        return self._sampler.draw_rows(_streams(clients, entropy), self._length)

    def add_shares(self, vectors: NDArray[Any], entropy: Entropy | Sequence[Entropy]) -> None:
        """Adds `noise_shares` to vectors (K, length) mod 2^b, in place.

        Raises:
            MechanismError: as `noise_shares`.
        """
        self._sampler.add_rows(vectors, _streams(len(vectors), entropy))
        bits = self._event.modulus_bits
        if bits != 8 * vectors.dtype.itemsize:
            vectors &= vectors.dtype.type((1 << bits) - 1)

    def add_share_sum(
        self, total: NDArray[np.int64], clients: int, entropy: Entropy | Sequence[Entropy]
    ) -> None:
        """Adds the sum of `noise_shares` to `total` (length,), in place.

        From one source nobody can tell the clients' shares apart, so their sum is drawn as a
        coordinator draws many missing ones: the same law, from fewer draws.

        Raises:
            MechanismError: as `noise_shares`.
        """
        if callable(entropy):
            self._sampler.add_many(total, clients, AesCtrStream.from_entropy(entropy))
        else:
            self._sampler.add_sum(total, _streams(clients, entropy))

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """Noise (length,) for the sum of n_cap - survivors further shares.

        Raises:
            MechanismError: the number of survivors is 0 or exceeds the cap.
        """
        missing = check_survivors(self._event, survivors)
        noise = np.zeros(self._length, dtype=np.int64)
        if missing:
            self._sampler.add_many(noise, missing, AesCtrStream.from_entropy(entropy))
        return noise


def _streams(clients: int, entropy: Entropy | Sequence[Entropy]) -> list[AesCtrStream]:
    """One stream per client; the same for all clients if there is one source."""
    if callable(entropy):
        return [AesCtrStream.from_entropy(entropy)] * clients
    if len(entropy) != clients:
        raise MechanismError(
            f"{clients} clients need one entropy source or {clients}, got {len(entropy)}"
        )
    return [AesCtrStream.from_entropy(source) for source in entropy]


class CoordinatorNoise(NoShares, _Memoryless):
    """The coordinator draws the noise of the whole sum as one rounded term.

    Args:
        event: one round's event.

    Raises:
        MechanismError: noise of that size cannot be drawn.
    """

    draws_ahead = True

    def __init__(self, event: Event) -> None:
        super().__init__(event.length)
        self._event = event
        self._sampler = noise_sampler(math.sqrt(event.total_variance))

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """All of the noise (length,), independent of the number of survivors.

        Raises:
            MechanismError: the number of survivors is 0 or exceeds the cap.
        """
        check_survivors(self._event, survivors)
        return self._sampler.draw((self._length,), AesCtrStream.from_entropy(entropy))


class NoNoise(NoShares, _Memoryless):
    """No noise is added to the sum.

    Args:
        event: one round's event.
    """

    draws_ahead = False

    def __init__(self, event: Event) -> None:
        super().__init__(event.length)
        self._event = event

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """Zeros (clients, length)."""
        return np.zeros((clients, self._length), dtype=np.int64)

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """Zeros (length,).

        Raises:
            MechanismError: the number of survivors is 0 or exceeds the cap.
        """
        check_survivors(self._event, survivors)
        return np.zeros(self._length, dtype=np.int64)
