"""The sampler of integer noise: round(N(0, sigma^2)) by inversion, exact to 2^-977.

A table holds floor(2^64 P[R <= k]) for every k that 64 bits can resolve. A draw starts from a
uniform 64-bit word w, and R is determined by the number of entries below w. A guide over the
leading bits of w gives R at once if no entry lies in w's bucket, and otherwise where to look. Only
if w equals an entry are further bits of the uniform read, 1,024 in all
(`fedsys.privacy.noise.inversion.settle`), so a draw is within 2^-977 of its true distribution. For
large sigma, whose table would not fit into a cache, and for noise that is shifted before it is
rounded (correlated noise), the quantile is evaluated instead; where floating point leaves the
integer in doubt, further bits settle it in the same way.

Randomness is an AES-256-CTR stream (NIST SP 800-38A) under a key from the operating system.

>>> noise_sampler(3.0).draw((6,), AesCtrStream(bytes(32)))
array([ 0,  0,  2,  0, -1, -4])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.noise.inversion import normal_quantile, sampler_distance, settle
from fedsys.privacy.noise.table import upper_words
from fedsys.privacy.randomness import AesCtrStream

__all__ = ["MAX_SIGMA", "RoundedGaussian", "noise_sampler"]

MAX_SIGMA = float(1 << 40)

_LARGEST_TABLE = float(1 << 14)
"""The largest sigma drawn by table; above it the quantile is evaluated."""

_BLOCK = 1 << 15  # words at once: 256 KiB stay in the second-level cache
_WORD = 64
_SEARCH = np.iinfo(np.int32).min  # in the guide: the bucket has entries, so search them

_RELATIVE_ERROR = 1e-13  # of `normal_quantile`; tests measure less than 1e-15
_FEWEST_WORD = 1 << 24  # closer to 0 or 1 (one draw in 2^39), 64 bits are too coarse


class RoundedGaussian:
    """Draws round(shift + sigma N) for a fixed sigma.

    Args:
        sigma: a float in (0, 2^40].

    Raises:
        MechanismError: sigma is not such a float.

    Attributes:
        sigma: the standard deviation before rounding, in integers.
        total_variation: an upper bound on the distance of one draw from the true distribution.
    """

    def __init__(self, sigma: float) -> None:
        if not (isinstance(sigma, float) and 0 < sigma <= MAX_SIGMA):
            raise MechanismError(
                "the noise's standard deviation must be in (0, 2^40] integers, got "
                f"{sigma!r}; lower the noise multiplier"
            )
        self.sigma = sigma
        self.total_variation = sampler_distance(sigma)
        self._table = _Table(sigma) if sigma <= _LARGEST_TABLE else None

    def __repr__(self) -> str:
        return f"RoundedGaussian(sigma={self.sigma!r})"

    def draw(
        self,
        shape: tuple[int, ...],
        stream: AesCtrStream,
        shift: NDArray[np.float64] | None = None,
    ) -> NDArray[np.int64]:
        """Independent draws of this shape, as int64.

        Args:
            shape: the shape of the result.
            stream: supplies 8 bytes per draw, and 120 more for one draw in millions.
            shift: (shape) added before rounding, exactly; |shift| <= 1.
        """
        out = np.empty(math.prod(shape), dtype=np.int64)
        shifts = None if shift is None else shift.reshape(-1)
        for start in range(0, out.size, _BLOCK):
            part = slice(start, min(start + _BLOCK, out.size))
            words = stream.words(part.stop - start)
            if shifts is None:
                out[part] = self._invert(words, [stream], words.size)
            else:
                out[part] = self._by_quantile(words, [stream], words.size, shifts[part])
        return out.reshape(shape)

    def add(self, total: NDArray[np.int64], stream: AesCtrStream) -> None:
        """Adds a draw to each coordinate of `total` (n,), in place."""
        for start in range(0, total.size, _BLOCK):
            part = total[start : start + _BLOCK]
            part += self._invert(stream.words(part.size), [stream], part.size)

    def draw_rows(self, streams: Sequence[AesCtrStream], width: int) -> NDArray[np.int64]:
        """One row of ``width`` draws per stream: (len(streams), width) int64.

        A row depends on its stream alone, so a device that draws its own row and a simulator that
        draws many get the same integers from the same keys.
        """
        out = np.empty((len(streams), width), dtype=np.int64)
        if width > _BLOCK // 2:
            for row, stream in zip(out, streams, strict=True):
                row[:] = self.draw((width,), stream)
            return out
        rows_at_once = max(1, _BLOCK // max(width, 1))
        words = np.empty((rows_at_once, width), dtype="<u8")
        for start in range(0, len(streams), rows_at_once):
            group = streams[start : start + rows_at_once]
            for index, stream in enumerate(group):
                stream.fill(words[index])
            block = words[: len(group)].reshape(-1)
            out[start : start + len(group)] = self._invert(block, group, width).reshape(-1, width)
        return out

    def _invert(
        self, words: NDArray[np.uint64], streams: Sequence[AesCtrStream], width: int
    ) -> NDArray[np.signedinteger[Any]]:
        """The draws (n,) for uniform words (n,), `width` consecutive words from each stream."""
        if self._table is None:
            return self._by_quantile(words, streams, width, None)
        drawn, doubtful = self._table.invert(words)
        for index in doubtful:
            drawn[index] = settle(
                int(words[index]), self.sigma, 0.0, streams[int(index) // max(width, 1)]
            )
        return drawn

    def _by_quantile(
        self,
        words: NDArray[np.uint64],
        streams: Sequence[AesCtrStream],
        width: int,
        shift: NDArray[np.float64] | None,
    ) -> NDArray[np.int64]:
        """As `_invert`, from the normal quantile; for any sigma, and with a shift (n,) or None."""
        upper = (words >> np.uint64(_WORD - 1)).astype(np.bool_)
        # `near` counts cells from the nearer end of the unit interval, so that the tail lies in
        # [near, near + 1) / 2^64, below 1/2.
        near = np.where(upper, ~words, words)
        middle = near.astype(np.float64) + 0.5
        magnitude = normal_quantile(middle * 2.0**-_WORD)
        magnitude *= self.sigma
        real = np.where(upper, magnitude, -magnitude)
        if shift is not None:
            real += shift
        rounded = np.rint(real)
        # The quantile's slope at tail t is below 1 / t (times 1.26 at the median). The unread bits
        # move t by at most 2^-65, and converting the word to float64 moves it by at most 2^-54.
        tolerance = magnitude * _RELATIVE_ERROR + self.sigma * (1e-14 + 1.3 / middle)
        doubtful = np.abs(np.abs(real - rounded) - 0.5) <= tolerance + np.abs(real) * 2.0**-51
        doubtful |= near < _FEWEST_WORD
        drawn: NDArray[np.int64] = rounded.astype(np.int64)
        for index in np.flatnonzero(doubtful):
            offset = 0.0 if shift is None else float(shift[index])
            stream = streams[int(index) // max(width, 1)]
            drawn[index] = settle(int(words[index]), self.sigma, offset, stream)
        return drawn


class _Table:
    """The entries floor(2^64 P[R <= k]) for k = -K..K-1, and a guide into them."""

    def __init__(self, sigma: float) -> None:
        upper = upper_words(sigma)
        # P[R <= -k-1] = Q((k + 1/2) / sigma) = 1 - P[R <= k], and no entry is a multiple of 2^-64.
        self._entries = np.concatenate([upper[::-1], ~upper])
        self._least = -len(upper)
        bits = 16 if sigma < 4096 else 18
        self._shift = np.uint64(_WORD - bits)
        starts = np.arange(1 << bits, dtype=np.uint64) << self._shift
        ends = starts + np.uint64((1 << (_WORD - bits)) - 1)
        first = np.searchsorted(self._entries, starts, side="left")
        inside = np.searchsorted(self._entries, ends, side="right") - first
        self._first = first.astype(np.int32)
        self._crowded = inside > 1
        self._guide = np.where(inside == 0, first + self._least, _SEARCH).astype(np.int32)
        self._top_sixteen = bits == 16
        for array in (self._entries, self._first, self._crowded, self._guide):
            array.setflags(write=False)

    def invert(self, words: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
        """The draws (n,) for words (n,), and the indices of those that 64 bits do not decide."""
        if self._top_sixteen:
            bucket = words.view("<u2")[3::4]
        else:
            bucket = (words >> self._shift).view(np.int64)
        drawn = self._guide.take(bucket)
        where = np.flatnonzero(drawn == _SEARCH)
        if not where.size:
            return drawn, where
        some, buckets = words[where], bucket[where]
        index = self._first.take(buckets)
        bound = self._entries.take(index)
        index += some > bound
        doubtful = some == bound
        crowded = np.flatnonzero(self._crowded.take(buckets))
        if crowded.size:
            found = np.searchsorted(self._entries, some[crowded], side="left")
            index[crowded] = found
            doubtful[crowded] = self._entries.take(found, mode="clip") == some[crowded]
        drawn[where] = index + np.int32(self._least)
        return drawn, where[doubtful]


@lru_cache(maxsize=32)
def noise_sampler(sigma: float) -> RoundedGaussian:
    """The sampler for this standard deviation; the most recently used are cached.

    Raises:
        MechanismError: noise of that size cannot be drawn.
    """
    return RoundedGaussian(sigma)
