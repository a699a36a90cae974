"""The sampler of integer noise: round(N(0, sigma^2)) by inversion, exact to 2^-977.

R is the smallest k with P[R <= k] > U for a uniform real U, of which as many bits are read as
needed: 16 decide almost every draw (`fedsys.privacy.noise.guide`), and 1,024 are read at most, so a
draw is within 2^-977 of its true distribution. A sigma whose table would not fit into a cache is
drawn on two grids (`fedsys.privacy.noise.grids`). For a still larger sigma, and for noise that is
shifted before it is rounded (correlated noise), the quantile is evaluated from 64 bits; where
floating point leaves the integer in doubt, high precision does, and where 64 bits do, further bits
settle it in the same way. ``NOISE.md`` says which bytes of a stream are read for what.

Randomness is an AES-256-CTR stream (NIST SP 800-38A) under a key from the operating system.

>>> noise_sampler(3.0).draw((6,), AesCtrStream(bytes(32)))
array([ 1,  0, -2,  0, -2, -4])
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.noise.grids import FEWEST_ON_GRIDS, on_grids, split
from fedsys.privacy.noise.guide import GuidedTable
from fedsys.privacy.noise.inversion import (
    decided,
    normal_quantile,
    sampler_distance,
    settle,
)
from fedsys.privacy.noise.lumps import LEAST_SIGMA, SMALL, deviation_of, powers
from fedsys.privacy.randomness import AesCtrStream

__all__ = ["MAX_SIGMA", "RoundedGaussian", "noise_sampler"]

MAX_SIGMA = float(1 << 40)

_BLOCK = 1 << 17
"""Draws at once: their leading bits, the guide and the draws stay in a second-level cache."""

_QUANTILES = 1 << 15  # the same where the quantile is evaluated: words of 256 KiB
_WORD = 64

_MANY = 1 << 21
"""Draws for a sum from which on they are replaced by fewer: about 10 ms."""

_RELATIVE_ERROR = 1e-13  # of `normal_quantile`; tests measure less than 1e-15
_FEWEST_WORD = 1 << 24  # closer to 0 or 1 (one draw in 2^39), 64 bits are too coarse


class _TableSampler:
    """Draws sums of one draw from each of some tables.

    Args:
        tables: the tables.
        deviation: of a draw, in integers.
    """

    def __init__(self, tables: tuple[GuidedTable, ...], deviation: float) -> None:
        self._tables = tables
        self._block = _BLOCK
        # A draw is at most 38 deviations + 2 in absolute value, so this many fit into an int32.
        self._summable = max(1, np.iinfo(np.int32).max // int(40 * deviation + 4))

    def draw_rows(self, streams: Sequence[AesCtrStream], width: int) -> NDArray[np.int64]:
        """One row of ``width`` draws per stream: (len(streams), width) int64.

        A row depends on its stream alone, so a device that draws its own row and a simulator that
        draws many get the same integers from the same keys. A stream may occur several times.
        """
        out = np.empty((len(streams), width), dtype=np.int64)
        for columns in self._columns(width):
            for rows, drawn in self._rows(streams, columns):
                out[rows, columns] = drawn
        return out

    def add_rows(self, values: NDArray[Any], streams: Sequence[AesCtrStream]) -> None:
        """Adds to `values` (K, n), in place, what `draw_rows` returns for K streams.

        Args:
            values: integers, signed or not; sums wrap around at their width.
            streams: one per row.
        """
        for columns in self._columns(values.shape[1]):
            for rows, drawn in self._rows(streams, columns):
                values[rows, columns] += drawn.astype(values.dtype)

    def add_sum(self, total: NDArray[np.int64], streams: Sequence[AesCtrStream]) -> None:
        """Adds to `total` (n,), in place, the sum of the rows that `draw_rows` returns.

        The noise of all streams is added up in the cache, block by block; no row is ever stored.
        """
        for columns in self._columns(total.size):
            part = total[columns]
            carried, held = np.zeros(part.size, dtype=np.int32), 0
            for _, drawn in self._rows(streams, columns):
                if drawn.dtype != np.int32 or held + len(drawn) > self._summable:
                    part += carried
                    carried[:], held = 0, 0
                if drawn.dtype != np.int32 or len(drawn) > self._summable:
                    part += drawn.sum(axis=0, dtype=np.int64)
                    continue
                carried += drawn[0] if len(drawn) == 1 else drawn.sum(axis=0, dtype=np.int32)
                held += len(drawn)
            part += carried

    def _columns(self, width: int) -> Iterator[slice]:
        """Columns that are drawn at once: a row's stream gives them one block after the other."""
        for start in range(0, width, self._block):
            yield slice(start, min(start + self._block, width))

    def _rows(
        self, streams: Sequence[AesCtrStream], columns: slice
    ) -> Iterator[tuple[slice, NDArray[np.signedinteger[Any]]]]:
        """Draws (R, n) for a block of columns, and their rows, as many as fit into the cache. The
        next ones overwrite them."""
        width = columns.stop - columns.start
        most = max(1, self._block // width)
        count = min(most, len(streams))
        leading = np.empty((count, width), dtype="<u2")
        drawn, coarse = (np.empty((count, width), dtype=np.int32) for _ in range(2))
        for start in range(0, len(streams), most):
            group = streams[start : start + most]
            some, found = leading[: len(group)], drawn[: len(group)]
            self._tables[0].draw(group, some, found)
            for table in self._tables[1:]:
                table.draw(group, some, coarse[: len(group)])
                found += coarse[: len(group)]
            yield slice(start, start + len(group)), found


class RoundedGaussian(_TableSampler):
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
        super().__init__(_tables(sigma), sigma)
        if not self._tables:
            self._block = _QUANTILES

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
            stream: supplies 2 bytes per draw and table, and further ones where they do not decide;
                8 bytes per draw with a shift or without a table.
            shift: (shape) added before rounding, exactly; |shift| <= 1.
        """
        out = np.empty(math.prod(shape), dtype=np.int64)
        if shift is None:
            for columns in self._columns(out.size):
                for _, drawn in self._rows([stream], columns):
                    out[columns] = drawn[0]
            return out.reshape(shape)
        shifts = shift.reshape(-1)
        for start in range(0, out.size, _QUANTILES):
            part = slice(start, min(start + _QUANTILES, out.size))
            words = stream.words(part.stop - start)
            out[part] = self._by_quantile(words, [stream], words.size, shifts[part])
        return out.reshape(shape)

    def add_many(self, total: NDArray[np.int64], count: int, stream: AesCtrStream) -> None:
        """Adds to `total` (n,), in place, noise for the sum of `count` draws: the draws themselves
        or, where they are many, fewer draws with the same variance and as many roundings, which
        hide as much (`fedsys.privacy.noise.lumps`)."""
        if not self._in_lumps(count, total.size):
            self.add_sum(total, [stream] * count)
            return
        large = Counter(powers(count))
        for terms, times in large.items():
            noise_sampler(deviation_of(terms, self.sigma)).add_sum(total, [stream] * times)
        for terms, times in Counter(powers(count - large.total())).items():
            _small_sum(terms).add_sum(total, [stream] * times)

    def draws(self, count: int, size: int) -> int:
        """How many numbers `add_many` draws for this many terms in a vector of this size."""
        if self._in_lumps(count, size):
            large = len(powers(count))
            count = large + len(powers(count - large))
        return count * size

    def _in_lumps(self, count: int, size: int) -> bool:
        return LEAST_SIGMA <= self.sigma <= MAX_SIGMA / 8 and count * size >= _MANY

    def _rows(
        self, streams: Sequence[AesCtrStream], columns: slice
    ) -> Iterator[tuple[slice, NDArray[np.signedinteger[Any]]]]:
        """See `_TableSampler`; without a table by the quantile, as int64."""
        if self._tables:
            yield from super()._rows(streams, columns)
            return
        width = columns.stop - columns.start
        most = max(1, self._block // width)
        for start in range(0, len(streams), most):
            group = streams[start : start + most]
            words = np.empty((len(group), width), dtype="<u8")
            for row, stream in zip(words, group, strict=True):
                stream.fill(row)
            drawn = self._by_quantile(words.reshape(-1), group, width, None)
            yield slice(start, start + len(group)), drawn.reshape(words.shape)

    def _by_quantile(
        self,
        words: NDArray[np.uint64],
        streams: Sequence[AesCtrStream],
        width: int,
        shift: NDArray[np.float64] | None,
    ) -> NDArray[np.int64]:
        """The draws (n,) for uniform words (n,), `width` consecutive words from each stream; for
        any sigma, and with a shift (n,) or None."""
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
            word = int(words[index])
            found = decided(word, self.sigma, offset)
            if found is None:
                found = settle(word, self.sigma, offset, streams[int(index) // max(width, 1)])
            drawn[index] = found
        return drawn


def _tables(sigma: float) -> tuple[GuidedTable, ...]:
    """The tables whose draws add up to this sigma; none where the quantile is evaluated."""
    if sigma <= FEWEST_ON_GRIDS:
        return (GuidedTable.rounded_gaussian(sigma),)
    if not on_grids(sigma):
        return ()
    fine, coarse, step = split(sigma)
    return GuidedTable.rounded_gaussian(fine), GuidedTable.rounded_gaussian(coarse, step)


@cache
def _small_sum(terms: int) -> _TableSampler:
    """Draws the sum of this many small terms, a power of two up to 64."""
    return _TableSampler((GuidedTable.small_sum(terms),), SMALL * terms)


@lru_cache(maxsize=32)
def noise_sampler(sigma: float) -> RoundedGaussian:
    """The sampler for this standard deviation; the most recently used are cached.

    Raises:
        MechanismError: noise of that size cannot be drawn.
    """
    return RoundedGaussian(sigma)
