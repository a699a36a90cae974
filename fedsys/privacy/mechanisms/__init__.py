"""The mechanisms, by the names that a configuration uses.

A mechanism is an encoder (how updates become integers) and a noise source (who adds which noise).

>>> import os
>>> import numpy as np
>>> mechanism = build_mechanism("distributed-gaussian", dimension=650, clip=0.3,
...     noise_multiplier=0.7, expected_cohort=100, population=1437, cap=159, min_survivors=47)
>>> encoded, bits = mechanism.encode(np.zeros((2, 650), dtype=np.float32)), mechanism.modulus_bits
>>> vector = add_noise(encoded.values, mechanism.noise_shares(2, os.urandom), bits=bits)
>>> total = add_noise(vector[0], vector[1].astype(np.int64), bits=bits)
>>> total = add_noise(total, mechanism.top_up(2, os.urandom), bits=bits)
>>> mechanism.decode(total).shape
(650,)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy.encoding.encoded import Encoded
from fedsys.privacy.events import (
    MECHANISMS,
    SUMMED_ONCE,
    BandedEvent,
    CentralEvent,
    Event,
    EventChoices,
    ExampleEvent,
    LocalEvent,
    Noise,
    OnceEvent,
    SharedEvent,
    UnprotectedEvent,
    build_event,
    check_known,
)
from fedsys.privacy.mechanisms.banded import CorrelatedNoise
from fedsys.privacy.mechanisms.base import Encoder, Mechanism, NoiseSource, add_noise
from fedsys.privacy.mechanisms.narrow import NarrowEncoder
from fedsys.privacy.mechanisms.shares import ClientNoise, CoordinatorNoise, NoNoise
from fedsys.privacy.mechanisms.wide import WideEncoder
from fedsys.privacy.randomness import Entropy

__all__ = [
    "MECHANISMS",
    "SUMMED_ONCE",
    "CorrelatedNoise",
    "Encoded",
    "Mechanism",
    "Noise",
    "SumMechanism",
    "add_noise",
    "build_event",
    "build_mechanism",
    "mechanism_for",
]

_ENCODERS: Mapping[str, Callable[[Event], Encoder]] = {
    "wide": WideEncoder,
    "narrow": NarrowEncoder,
    "float": WideEncoder,
}
_NOISE: Mapping[type[Event], Callable[[Any], NoiseSource]] = {
    SharedEvent: ClientNoise,
    LocalEvent: ClientNoise,
    OnceEvent: CoordinatorNoise,
    CentralEvent: CoordinatorNoise,
    BandedEvent: CorrelatedNoise,
    ExampleEvent: NoNoise,
    UnprotectedEvent: NoNoise,
}


class SumMechanism:
    """The mechanism of an event: its encoder and its noise source; see ``Mechanism``.

    Args:
        event: one round's event.

    Raises:
        MechanismError: the event is of an unknown kind, or noise of that size cannot be drawn.
    """

    def __init__(self, event: Event) -> None:
        check_known(event)
        self.event = event
        self.modulus_bits = event.modulus_bits
        self._encoder = _ENCODERS[event.encoding.kind](event)
        self._noise = _NOISE[type(event)](event)
        self.length = self._encoder.length
        self.rotates = self._encoder.rotates
        self.sums_integers = self._encoder.sums_integers
        self.adds_shares = self._noise.adds_shares
        self.draws_ahead = self._noise.draws_ahead
        deviation = math.sqrt(event.total_variance)
        self.noise_deviation = deviation / (event.scale * event.expected_cohort)

    def __repr__(self) -> str:
        return f"SumMechanism({self.event!r})"

    def encode(
        self,
        updates: NDArray[Any],
        *,
        seed: bytes = b"",
        entropy: Entropy | Sequence[Entropy] = os.urandom,
    ) -> Encoded:
        """See ``Encoder``."""
        return self._encoder.encode(updates, seed=seed, entropy=entropy)

    def decode(self, total: NDArray[Any], *, seed: bytes = b"") -> NDArray[np.float64]:
        """See ``Encoder``."""
        return self._encoder.decode(total, seed=seed)

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """See ``NoiseSource``."""
        return self._noise.noise_shares(clients, entropy)

    def add_shares(self, vectors: NDArray[Any], entropy: Entropy | Sequence[Entropy]) -> None:
        """See ``NoiseSource``."""
        self._noise.add_shares(vectors, entropy)

    def add_share_sum(
        self, total: NDArray[np.int64], clients: int, entropy: Entropy | Sequence[Entropy]
    ) -> None:
        """See ``NoiseSource``."""
        self._noise.add_share_sum(total, clients, entropy)

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """See ``NoiseSource``."""
        return self._noise.top_up(survivors, entropy)

    def skip_to(self, position: int, entropy: Entropy) -> None:
        """See ``NoiseSource``."""
        self._noise.skip_to(position, entropy)

    def state_bytes(self) -> bytes:
        """See ``NoiseSource``."""
        return self._noise.state_bytes()

    def restore(self, state: bytes) -> None:
        """See ``NoiseSource``."""
        self._noise.restore(state)


def mechanism_for(event: Event) -> Mechanism:
    """The mechanism whose rounds cost this event.

    Raises:
        MechanismError: there is none, or noise of that size cannot be drawn.
    """
    return SumMechanism(event)


def build_mechanism(name: str, **choices: Unpack[EventChoices]) -> Mechanism:
    """The mechanism with this name.

    Args:
        name: one of ``MECHANISMS``.
        **choices: see `fedsys.privacy.events.EventChoices`.

    Raises:
        MechanismError: the name is unknown, or a value is invalid.
    """
    return mechanism_for(build_event(name, **choices))
