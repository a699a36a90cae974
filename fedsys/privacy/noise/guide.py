"""Inversion by table: a draw reads 16 bits of the uniform, and 64 more only if they do not decide.

The table holds floor(2^64 P[R <= k]) for every k that 64 bits can resolve, and R is determined by
the number of entries below a uniform word w. The guide gives R at once for the 16 leading bits of w
if no entry begins with them. At a standard deviation of 100 that is so for 99 of 100 draws, which
then cost 2 bytes of the stream and one look-up. For the others the word is completed by 48 further
bits; only if it equals an entry does `fedsys.privacy.noise.inversion.settle` read 960 more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy.noise.inversion import settle
from fedsys.privacy.noise.lumps import settle_small_sum, small_sum_words
from fedsys.privacy.noise.table import upper_words
from fedsys.privacy.randomness import AesCtrStream

__all__ = ["GuidedTable"]

Settle = Callable[[int, AesCtrStream], int]

_LEADING = 16
_WORD = 64
_SEARCH = -(1 << 30)
"""In the guide, what is below: entries begin with these bits, so search from the first of them. For
the entry with index i it is i - 2^31 if the entry is alone, or i - 3 * 2^29 if it is not."""

_STEPS = 5
_FEW = 600  # as many searches cost as much as the steps
_ALONE, _CROWDED = -(1 << 31), -3 * (1 << 29)


class GuidedTable:
    """Draws step * R for an R on the integers that is as likely as -R.

    Args:
        upper: floor(2^64 P[R > k]) (K,) for k = 0..K-1, of which the last is 0; no P[R > k] is a
            multiple of 2^-64.
        settle: what R is for a word that equals an entry; it reads further bits from the stream.
        step: an integer by which draws are multiplied.
    """

    def __init__(self, upper: NDArray[np.uint64], settle: Settle, step: int = 1) -> None:
        self._settle, self._step = settle, step
        # P[R <= -k-1] = P[R > k] = 1 - P[R <= k]
        self.entries = np.concatenate([upper[::-1], ~upper])
        self._least = -len(upper)
        shift = np.uint64(_WORD - _LEADING)
        starts = np.arange(1 << _LEADING, dtype=np.uint64) << shift
        ends = starts + np.uint64((1 << (_WORD - _LEADING)) - 1)
        first = np.searchsorted(self.entries, starts, side="left")
        inside = np.searchsorted(self.entries, ends, side="right") - first
        found = (first + self._least) * step
        search = first + np.where(inside > 1, _CROWDED, _ALONE)
        self._guide = np.where(inside == 0, found, search).astype(np.int32)
        for array in (self.entries, self._guide):
            array.setflags(write=False)

    @classmethod
    def rounded_gaussian(cls, sigma: float, step: int = 1) -> GuidedTable:
        """The table of R = round(N(0, sigma^2))."""
        return cls(upper_words(sigma), lambda word, stream: settle(word, sigma, 0.0, stream), step)

    @classmethod
    def small_sum(cls, terms: int) -> GuidedTable:
        """The table of a sum of small terms; see `fedsys.privacy.noise.lumps`."""
        return cls(
            small_sum_words(terms), lambda word, stream: settle_small_sum(terms, word, stream)
        )

    def draw(
        self,
        streams: Sequence[AesCtrStream],
        leading: NDArray[np.uint16],
        drawn: NDArray[np.int32],
    ) -> None:
        """Overwrites `drawn` (R, n) with draws, row k from the k-th stream.

        Each stream gives its row's leading bits first, then the further ones that the row needs.

        Args:
            streams: R streams.
            leading: (R, n), overwritten.
            drawn: (R, n), C-contiguous.
        """
        for row, stream in zip(leading, streams, strict=True):
            stream.fill(row)
        heads, flat, width = leading.reshape(-1), drawn.reshape(-1), leading.shape[1]
        np.take(self._guide, heads, out=flat, mode="wrap")  # checks no index: 16 bits fit
        where = np.flatnonzero(flat < _SEARCH)
        if not where.size:
            return
        words = np.empty(where.size, dtype="<u8")
        ends = [where.size]
        if len(streams) > 1:
            ends = np.searchsorted(where, np.arange(1, len(streams) + 1) * width).tolist()
        start = 0
        for stream, end in zip(streams, ends, strict=True):
            stream.fill(words[start:end])
            start = end
        words >>= np.uint64(_LEADING)
        words |= heads.take(where).astype(np.uint64) << np.uint64(_WORD - _LEADING)
        found, doubtful = self._search(words, flat.take(where))
        for index in doubtful.tolist():
            stream = streams[int(where[index]) // width]
            found[index] = self._settle(int(words[index]), stream)
        found *= np.int32(self._step)
        flat[where] = found

    def invert(self, words: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
        """Draws (n,) for words (n,), and the indices of those that equal an entry, which 64 bits do
        not decide."""
        drawn = self._guide.take((words >> np.uint64(_WORD - _LEADING)).view(np.int64))
        where = np.flatnonzero(drawn < _SEARCH)
        found, doubtful = self._search(words[where], drawn[where])
        drawn[where] = found * np.int32(self._step)
        return drawn, where[doubtful]

    def _search(
        self, words: NDArray[np.uint64], guide: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
        """R (n,) for words (n,) that share leading bits with entries, and the
        indices of those that equal one; from what the guide has for them."""
        crowded = np.flatnonzero(guide >= _CROWDED)
        index = guide - np.int32(_ALONE)
        if crowded.size:
            index[crowded] = self._first_not_below(words[crowded], guide[crowded])
        bound = self.entries.take(index)
        doubtful = np.flatnonzero(words == bound)
        index += words > bound
        index += np.int32(self._least)
        return index, doubtful

    def _first_not_below(
        self, words: NDArray[np.uint64], guide: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        """Indices (n,) of the first entries that are not below words (n,) of crowded buckets: a few
        steps from the bucket's first entry, and a search of the table for those further away."""
        if words.size < _FEW:
            return np.searchsorted(self.entries, words, side="left").astype(np.int32)
        index = guide - np.int32(_CROWDED)
        below = np.flatnonzero(words > self.entries.take(index))
        for _ in range(_STEPS):
            if not below.size:
                return index
            index[below] += 1
            below = below[words[below] > self.entries.take(index[below])]
        index[below] = np.searchsorted(self.entries, words[below], side="left")
        return index
