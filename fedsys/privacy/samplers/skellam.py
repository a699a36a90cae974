"""Skellam noise by inversion of a fixed-point distribution function: no floating point.

X = Poisson(mu/2) - Poisson(mu/2) has P[X = k] = exp(-mu) I_k(mu) and variance mu. A table holds
floor(2^128 P[X <= k]) for all k that 128 bits can resolve. A draw is a uniform 64-bit word u; X is
the number of table entries <= u. Only when u equals the upper 64 bits of an entry does the lower
half matter, and a second word decides. What is left is the table's truncation: each entry is
within 2^-120 of the true distribution function.

>>> sampler = skellam_sampler(4.0)
>>> sampler.draw((2, 5), AesCtrStream(bytes(32)))
array([[ 0,  0,  1,  0,  0],
       [-3,  0,  0,  0,  4]])
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.randomness import AesCtrStream

__all__ = ["MAX_VARIANCE", "SkellamSampler", "skellam_probabilities", "skellam_sampler"]

MAX_VARIANCE = float(1 << 40)
"""A standard deviation of 2^20; its table has 28 million entries of 16 bytes."""

_TABLE_BITS = 128
_GUARD_BITS = 192  # relative precision of the recurrence, in bits
_BLOCK = 1 << 15
_WORD = 64


def _half_width(variance: float) -> int:
    """Smallest K with P[|X| > K] < 2^-129, by the Chernoff bound.

    log P[X >= k] <= sqrt(k^2 + mu^2) - mu - k asinh(k / mu).
    """
    target = -(_TABLE_BITS + 2) * math.log(2)

    def log_tail(k: int) -> float:
        ratio = k / variance
        # sqrt(k^2 + mu^2) - mu, without cancellation
        return k * ratio / (math.hypot(1.0, ratio) + 1.0) - k * math.asinh(ratio)

    low, high = 0, 64
    while log_tail(high) > target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if log_tail(middle) > target else (low, middle)
    return high


def skellam_probabilities(variance: float, bits: int = _TABLE_BITS + 16) -> list[int]:
    """2^bits P[X = k] for k = 0..K, rounded down, in exact integer arithmetic.

    Miller's backward recurrence I_(k-1) = I_(k+1) + (2 k / mu) I_k, normalised by
    exp(mu) = I_0 + 2 sum I_k; mu is taken as the exact rational that the float is. The relative
    error is below 2^-150.
    """
    width = _half_width(variance)
    numerator, denominator = variance.as_integer_ratio()
    # Far enough out that the arbitrary start is forgotten: each step shrinks its influence by
    # (I_k / I_(k-1))^2, and the tail beyond 1.5 K is below 2^-250 of the total.
    start = width + max(64, width // 2)
    above, here = 0, 1 << _GUARD_BITS
    values = [0] * (start + 1)
    for k in range(start, 0, -1):
        values[k] = here
        above, here = here, above + 2 * k * denominator * here // numerator
    values[0] = here
    total = values[0] + 2 * sum(values[1:])
    return [(value << bits) // total for value in values[: width + 1]]


class SkellamSampler:
    """Draws integers with this Skellam distribution, to within ``total_variation``.

    Args:
        variance: a float in (0, 2^40].

    Raises:
        MechanismError: another variance.

    Attributes:
        variance: mu, of one draw.
        half_width: the largest magnitude that can be drawn.
        total_variation: an upper bound on the distance of one draw from the true distribution.
    """

    def __init__(self, variance: float) -> None:
        if not (isinstance(variance, float) and 0 < variance <= MAX_VARIANCE):
            raise MechanismError(
                f"a Skellam variance must be in (0, 2^40], got {variance!r}; lower the noise "
                "multiplier or the model's dimension"
            )
        self.variance = variance
        extra = 16
        half = skellam_probabilities(variance, _TABLE_BITS + extra)
        self.half_width = len(half) - 1
        probabilities = half[:0:-1] + half
        # Centre the mass lost to truncation and rounding on both tails alike.
        one = 1 << (_TABLE_BITS + extra)
        running = (one - sum(probabilities)) // 2
        self.total_variation = 2.0**-120 * len(probabilities)
        high = np.empty(len(probabilities), dtype=np.uint64)
        low = np.empty(len(probabilities), dtype=np.uint64)
        mask = (1 << _WORD) - 1
        for index, probability in enumerate(probabilities):
            running += probability
            entry = running >> extra
            high[index] = entry >> _WORD
            low[index] = entry & mask
        # Nothing lies above the last entry: it is the end of the unit interval.
        high[-1] = low[-1] = mask
        self._high, self._low = high, low
        self._guide_bits = 16 if len(probabilities) < 1 << 16 else 20
        starts = np.arange(1 << self._guide_bits, dtype=np.uint64)
        starts <<= np.uint64(_WORD - self._guide_bits)
        first = np.searchsorted(high, starts, side="left")
        ends = starts + np.uint64((1 << (_WORD - self._guide_bits)) - 1)
        last = np.searchsorted(high, ends, side="right")
        self._guide = first.astype(np.int32)
        self._crowded = last - first > 1  # more than one table entry in the bucket
        self._high.setflags(write=False)
        self._low.setflags(write=False)

    def __repr__(self) -> str:
        return f"SkellamSampler(variance={self.variance!r})"

    def draw(self, shape: tuple[int, ...], stream: AesCtrStream) -> NDArray[np.int64]:
        """Independent draws of this shape, as int64, from one stream."""
        out = np.empty(math.prod(shape), dtype=np.int64)
        for start in range(0, out.size, _BLOCK):
            part = out[start : start + _BLOCK]
            part[:] = self.invert(stream.words(part.size), [stream], part.size)
        return out.reshape(shape)

    def draw_rows(self, streams: list[AesCtrStream], width: int) -> NDArray[np.int64]:
        """One row of ``width`` draws a stream: (len(streams), width) int64.

        A row depends on its stream alone, so that a device that draws its own row and a simulator
        that draws many get the same integers from the same keys.
        """
        out = np.empty((len(streams), width), dtype=np.int64)
        if width > _BLOCK // 2:
            for row, stream in zip(out, streams, strict=True):
                row[:] = self.draw((width,), stream)
            return out
        rows_at_once = max(1, _BLOCK // max(width, 1))
        words = np.empty((rows_at_once, width), dtype=np.uint64)
        for start in range(0, len(streams), rows_at_once):
            group = streams[start : start + rows_at_once]
            for index, stream in enumerate(group):
                stream.fill(words[index])
            block = words[: len(group)].reshape(-1)
            out[start : start + len(group)] = self.invert(block, group, width).reshape(-1, width)
        return out

    def invert(
        self, words: NDArray[np.uint64], streams: list[AesCtrStream], width: int
    ) -> NDArray[np.int32]:
        """The draw that each uniform word (n,) stands for.

        Args:
            words: uniform 64-bit words; consecutive runs of ``width`` belong to one stream.
            streams: where a second word comes from, for the one draw in 2^48 that needs it.
            width: words a stream.
        """
        bucket = (words >> np.uint64(_WORD - self._guide_bits)).view(np.int64)
        index = self._guide.take(bucket)
        bound = self._high.take(index)
        np.add(index, words > bound, out=index, casting="unsafe")
        doubtful = words == bound
        crowded = self._crowded.take(bucket)
        if crowded.any():
            many = np.flatnonzero(crowded)
            found = np.searchsorted(self._high, words[many], side="left")
            index[many] = found
            doubtful[many] = self._high.take(found, mode="clip") == words[many]
        if doubtful.any():
            self._settle(words, index, np.flatnonzero(doubtful), streams, width)
        index -= np.int32(self.half_width)
        return index

    def _settle(
        self,
        words: NDArray[np.uint64],
        index: NDArray[np.int32],
        where: NDArray[np.int64],
        streams: list[AesCtrStream],
        width: int,
    ) -> None:
        """Counts entries <= u by all 128 bits where the first 64 are those of an entry."""
        last = len(self._high) - 1
        for position in where:
            second = streams[int(position) // max(width, 1)].words(1)[0]
            entry = int(index[position])
            while (
                entry < last and self._high[entry] == words[position] and self._low[entry] <= second
            ):
                entry += 1
            index[position] = entry


@lru_cache(maxsize=64)
def skellam_sampler(variance: float) -> SkellamSampler:
    """The sampler of this variance; the tables of the 64 variances used last are kept.

    Raises:
        MechanismError: as `SkellamSampler`.
    """
    return SkellamSampler(variance)
