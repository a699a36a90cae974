"""banded-mf: the server's noise (C^-1 Z)_t, exact in integers, rounded once a release.

With c_0 = 1, n_t = round(Z_t - sum_{j>=1} c_j n_(t-j)) where Z is real Gaussian. Because x_t is an
integer vector, y_t = x_t + n_t = round((C x + Z)_t - sum_{j>=1} c_j y_(t-j)): each release is a
function of the Gaussian mechanism on C x and of earlier releases, so its privacy holds exactly,
rounding included. The c_j are multiples of 2^-20, so the sum is exact in 64-bit integers.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.events import BandedEvent
from fedsys.privacy.mechanisms.base import WideEncoding
from fedsys.privacy.randomness import AesCtrStream, Entropy
from fedsys.privacy.samplers import RoundedGaussian
from fedsys.privacy.strategies import DENOMINATOR_BITS, banded_strategy

__all__ = ["BandedGaussian"]

_MAGIC = b"fedsys banded-mf state v1\x00"
_HEADER = struct.Struct("<QQQ32s")
_BLOCK = 1 << 15


class BandedGaussian(WideEncoding):
    """See ``Mechanism``; unlike the others it remembers the noise of its last rounds.

    Every reserved round takes one position, released or not (``skip`` a round that was cut off).
    ``state_bytes`` must be durable *before* a round is committed, and stays as secret as the noise:
    whoever reads it reads the sums.
    """

    def __init__(self, event: BandedEvent) -> None:
        super().__init__(event, event.scale)
        self._banded = event
        strategy = banded_strategy(horizon=event.horizon, bands=event.min_separation)
        self._numerators = strategy.numerators
        self._white = RoundedGaussian(event.white_deviation)
        self._past: deque[NDArray[np.int64]] = deque(maxlen=max(strategy.bands - 1, 1))
        self._position = 0
        self._deviation = self.deviation_of(event.total_variance)

    @property
    def position(self) -> int:
        """Rounds whose noise was drawn."""
        return self._position

    @property
    def noise_deviation(self) -> float:
        """Largest standard deviation of the noise in a coordinate of any round's decoded mean."""
        return self._deviation

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """Zeros (clients, d): clients add nothing."""
        return np.zeros((clients, self.length), dtype=np.int64)

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """The next position's noise (d,), whatever the number of survivors.

        Raises:
            MechanismError: the job's rounds are used up; a cohort above the cap, or nobody, was
                summed.
        """
        self.check_survivors(survivors)
        return self.skip(entropy)

    def skip(self, entropy: Entropy) -> NDArray[np.int64]:
        """Draws the next position's noise (d,), for a round that releases nothing.

        Raises:
            MechanismError: the job's rounds are used up.
        """
        if self._position >= self._banded.horizon:
            raise MechanismError(
                f"banded-mf was planned for {self._banded.horizon} rounds: the job ends here"
            )
        stream = AesCtrStream.from_entropy(entropy)
        noise = np.empty(self.length, dtype=np.int64)
        mask = (1 << DENOMINATOR_BITS) - 1
        used = min(len(self._numerators) - 1, len(self._past))
        for start in range(0, self.length, _BLOCK):
            part = slice(start, start + _BLOCK)
            carried = np.zeros(noise[part].shape, dtype=np.int64)
            for back in range(1, used + 1):
                carried -= self._numerators[back] * self._past[-back][part]
            fraction = (carried & mask).astype(np.float64) * 2.0**-DENOMINATOR_BITS
            noise[part] = self._white.draw(carried.shape, stream, fraction)
            noise[part] += carried >> DENOMINATOR_BITS
        self._past.append(noise)
        self._position += 1
        return noise.copy()

    def state_bytes(self) -> bytes:
        """Position and remembered noise, to be stored beside a checkpoint, mode 0600."""
        header = _HEADER.pack(
            self._position, len(self._past), self.length, bytes.fromhex(self._banded.strategy)
        )
        return _MAGIC + header + b"".join(noise.astype("<i8").tobytes() for noise in self._past)

    def restore(self, state: bytes) -> None:
        """Takes up a state that ``state_bytes`` wrote.

        Raises:
            MechanismError: it is another job's, or damaged.
        """
        start = len(_MAGIC) + _HEADER.size
        if len(state) < start or not state.startswith(_MAGIC):
            raise MechanismError("not a banded-mf state: the checkpoint is damaged")
        position, count, width, digest = _HEADER.unpack_from(state, len(_MAGIC))
        expected = min(position, len(self._numerators) - 1)
        if (
            width != self.length
            or digest.hex() != self._banded.strategy
            or count < expected
            or len(state) != start + 8 * count * width
        ):
            raise MechanismError("a banded-mf state of another model or strategy, or cut off")
        vectors = np.frombuffer(state, dtype="<i8", offset=start).reshape(count, width)
        self._past.clear()
        self._past.extend(vector.astype(np.int64) for vector in vectors)
        self._position = position
