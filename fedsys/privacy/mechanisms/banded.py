"""banded-mf: the server's noise (C^-1 Z)_t, exact in integers and rounded once per release.

With c_0 = 1, the noise is n_t = round(Z_t - sum_{j>=1} c_j n_(t-j)) with Z real Gaussian. Because
x_t is an integer vector, y_t = x_t + n_t = round((C x + Z)_t - sum_{j>=1} c_j y_(t-j)). So each
release is a function of the Gaussian mechanism on C x and of earlier releases, and its privacy
holds exactly, rounding included. The c_j are multiples of 2^-20, so the sum is exact in 64-bit
integers.
"""

from __future__ import annotations

import struct
from collections import deque

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.events import BandedEvent
from fedsys.privacy.factorization import DENOMINATOR_BITS
from fedsys.privacy.mechanisms.shares import NoShares, check_survivors
from fedsys.privacy.noise import noise_sampler
from fedsys.privacy.randomness import AesCtrStream, Entropy

__all__ = ["CorrelatedNoise"]

_MAGIC = b"fedsys banded-mf state v1\x00"
_HEADER = struct.Struct("<QQQ32s")
_BLOCK = 1 << 15


class CorrelatedNoise(NoShares):
    """See ``NoiseSource``; unlike the others, it remembers the noise of its last rounds.

    Every reserved round takes one position, released or not (``skip`` a round that was cut off).
    ``state_bytes`` must be durable *before* a round is committed. It must be kept as secret as the
    noise: anyone who reads it can recover the sums.

    Args:
        event: one round's event.

    Raises:
        MechanismError: noise of that size cannot be drawn.
    """

    draws_ahead = False

    def __init__(self, event: BandedEvent) -> None:
        super().__init__(event.length)
        self._event = event
        self._strategy = event.strategy
        self._numerators = event.factors.numerators
        self._white = noise_sampler(event.white_deviation)
        self._past: deque[NDArray[np.int64]] = deque(maxlen=max(event.bands - 1, 1))
        self._position = 0

    @property
    def position(self) -> int:
        """The number of rounds whose noise has been drawn."""
        return self._position

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """The next position's noise (d,), independent of the number of survivors.

        Raises:
            MechanismError: the job's rounds are used up, or the number of survivors is 0 or exceeds
                the cap.
        """
        check_survivors(self._event, survivors)
        return self.skip(entropy)

    def skip_to(self, position: int, entropy: Entropy) -> None:
        """Draws and discards the noise of rounds before ``position``, which released nothing.

        Raises:
            MechanismError: the job's rounds are used up.
        """
        while self._position < position:
            self.skip(entropy)

    def skip(self, entropy: Entropy) -> NDArray[np.int64]:
        """Draws the next position's noise (d,); `top_up` adds it, a lost round discards it.

        Raises:
            MechanismError: the job's rounds are used up.
        """
        if self._position >= self._event.horizon:
            raise MechanismError(
                f"banded-mf was planned for {self._event.horizon} rounds: the job ends here"
            )
        stream = AesCtrStream.from_entropy(entropy)
        noise = np.empty(self._length, dtype=np.int64)
        mask = (1 << DENOMINATOR_BITS) - 1
        used = min(len(self._numerators) - 1, len(self._past))
        for start in range(0, self._length, _BLOCK):
            part = slice(start, start + _BLOCK)
            carried = np.zeros(noise[part].shape, dtype=np.int64)
            for back in range(1, used + 1):
                carried -= self._numerators[back] * self._past[-back][part]
            # carried 2^-20 = whole + fraction, and round(Z + whole + fraction) =
            # whole + round(Z + fraction) because `whole` is an integer: no float holds the sum.
            fraction = (carried & mask).astype(np.float64) * 2.0**-DENOMINATOR_BITS
            noise[part] = self._white.draw(carried.shape, stream, fraction)
            noise[part] += carried >> DENOMINATOR_BITS
        self._past.append(noise)
        self._position += 1
        return noise.copy()

    def state_bytes(self) -> bytes:
        """Position and remembered noise, to be stored next to a checkpoint with mode 0600."""
        header = _HEADER.pack(
            self._position, len(self._past), self._length, bytes.fromhex(self._strategy)
        )
        return _MAGIC + header + b"".join(noise.astype("<i8").tobytes() for noise in self._past)

    def restore(self, state: bytes) -> None:
        """Restores a state that ``state_bytes`` returned.

        Raises:
            MechanismError: it belongs to another job, or is damaged.
        """
        start = len(_MAGIC) + _HEADER.size
        if len(state) < start or not state.startswith(_MAGIC):
            raise MechanismError("not a banded-mf state: the checkpoint is damaged")
        position, count, width, digest = _HEADER.unpack_from(state, len(_MAGIC))
        expected = min(position, len(self._numerators) - 1)
        if (
            width != self._length
            or digest.hex() != self._strategy
            or count < expected
            or len(state) != start + 8 * count * width
        ):
            raise MechanismError(
                "the banded-mf state belongs to another model or factorization, or is cut off"
            )
        vectors = np.frombuffer(state, dtype="<i8", offset=start).reshape(count, width)
        self._past.clear()
        self._past.extend(vector.astype(np.int64) for vector in vectors)
        self._position = position
