"""Noise as it is drawn from a stream: NOISE.md, "The sampler" and what follows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial

import mpmath
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Integers = NDArray[np.int64]
Read = Callable[[int], bytes]
"""Reads the next octets of a stream."""

TABLES, FLOATS = 1 << 17, 1 << 15
SMALL = 12.5
REST = 120


class Rounded:
    """round(shift + sigma N) in exact arithmetic."""

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    def near(
        self, words: NDArray[np.uint64], shift: NDArray[np.float64]
    ) -> tuple[Integers, Integers]:
        """Integers for words of 64 bits, and the places where floating point does not decide."""
        upper = words >> np.uint64(63) == 1
        cells = np.where(upper, ~words, words).astype(np.float64) + 0.5
        quantile = -ndtri(cells * 2.0**-64)
        real = np.where(upper, quantile, -quantile) * self.sigma + shift
        found = np.rint(real)
        wrong = self.sigma * (1e-12 * (1 + quantile) + 2 / cells) + 1e-15 * np.abs(real)
        unsure = (np.abs(np.abs(real - found) - 0.5) <= wrong) | (cells < 1e6)
        return found.astype(np.int64), np.flatnonzero(unsure)

    def below(self, k: int, shift: float, bits: int) -> int:
        """floor(2^bits P[R <= k])."""
        with mpmath.workprec(bits + 120):
            x = (mpmath.mpf(k) + 0.5 - mpmath.mpf(shift)) / mpmath.mpf(self.sigma)
            tail = mpmath.erfc(abs(x) / mpmath.sqrt(2)) / 2
            scaled = mpmath.ldexp(1 - tail if x > 0 else tail, bits)
            return int(mpmath.floor(scaled))

    def exact(self, word: int, k: int, shift: float, read: Read) -> int:
        """The draw for a word, from an integer near it; more octets where 64 bits are too few."""
        while word > (entry := self.below(k, shift, 64)):
            k += 1
        while word < entry and word <= (before := self.below(k - 1, shift, 64)):
            k, entry = k - 1, before
        if word != entry:
            return k
        middle = 2 * ((word << 8 * REST) + int.from_bytes(read(REST), "little")) + 1
        bits = 64 + 8 * REST + 1
        while self.below(k, shift, bits) <= middle:
            k += 1
        while self.below(k - 1, shift, bits) > middle:
            k -= 1
        return k

    def settled(
        self, words: NDArray[np.uint64], read: Read, shift: NDArray[np.float64] | None = None
    ) -> Integers:
        moved = np.zeros(words.size) if shift is None else shift
        found, unsure = self.near(words, moved)
        for at in unsure.tolist():
            found[at] = self.exact(int(words[at]), int(found[at]), float(moved[at]), read)
        return found

    def heads(self) -> NDArray[np.int64]:
        """The 16 leading bits of every entry that is not 0 or all ones, and some that are."""
        reach = math.ceil(9.3 * self.sigma) + 2
        scaled = ndtr((np.arange(-reach, 0) + 0.5) / self.sigma) * 65536
        lower = np.floor(scaled).astype(np.int64)
        for at in np.flatnonzero(np.abs(scaled - np.rint(scaled)) < 1e-9 * (scaled > 0.5)).tolist():
            lower[at] = self.below(at - reach, 0.0, 16)
        return np.concatenate([lower, 65535 - lower[::-1]])


class SmallSum:
    """The sum of some terms of deviation 12.5, a power of two."""

    def __init__(self, terms: int) -> None:
        one = Rounded(SMALL)
        bits, reach = 200, 220
        ends = [one.below(k, 0.0, bits) for k in range(-reach - 1, reach + 1)]
        law = np.diff(np.array(ends, dtype=object))
        for _ in range(terms.bit_length() - 1):
            law = np.convolve(law, law) >> bits
            law = law[np.flatnonzero(law)[0] : np.flatnonzero(law)[-1] + 1]
        lower = np.cumsum(law[: len(law) // 2])  # P[L <= k] for k = ..., -1
        low = (1 << (bits - 64)) - 1
        assert all(1 << 40 < each & low < low - (1 << 40) for each in lower if each >> 60)
        entries = [each >> (bits - 64) for each in lower.tolist()]
        self.entries = np.array([*entries, *((1 << 64) - 1 - e for e in entries[::-1])], np.uint64)

    def heads(self) -> NDArray[np.int64]:
        return (self.entries >> np.uint64(48)).astype(np.int64)

    def settled(self, words: NDArray[np.uint64], read: Read) -> Integers:
        found = np.searchsorted(self.entries, words, side="left")
        assert not (self.entries[found] == words).any(), "once in 10^16 draws: not decided here"
        return found.astype(np.int64) - len(self.entries) // 2


@lru_cache(maxsize=64)
def _guide(law: tuple[str, float]) -> tuple[Rounded | SmallSum, NDArray[np.bool_], Integers]:
    """A law, which leading bits leave it open, and the integer that the others give."""
    kind, value = law
    source = Rounded(value) if kind == "sigma" else SmallSum(int(value))
    counts = np.bincount(source.heads(), minlength=1 << 16)
    before = np.cumsum(counts) - counts
    return source, counts > 0, before - counts.sum() // 2


def _batch(law: tuple[str, float], read: Read, count: int) -> Integers:
    source, opened, sure = _guide(law)
    heads = np.frombuffer(read(2 * count), "<u2").astype(np.int64)
    found = sure[heads]
    places = np.flatnonzero(opened[heads])
    rest = np.frombuffer(read(8 * places.size), "<u8").astype(np.uint64) >> np.uint64(16)
    words = heads[places].astype(np.uint64) << np.uint64(48) | rest
    found[places] = source.settled(words, read)
    return found


def _words(read: Read, count: int) -> NDArray[np.uint64]:
    return np.frombuffer(read(8 * count), "<u8").astype(np.uint64)


def shifted(read: Read, sigma: float, shift: NDArray[np.float64]) -> Integers:
    """round(shift + sigma N), a coordinate each."""
    found = [np.zeros(0, np.int64)]
    for start in range(0, shift.size, FLOATS):
        part = shift[start : start + FLOATS]
        found.append(Rounded(sigma).settled(_words(read, part.size), read, part))
    return np.concatenate(found)


def terms(read: Read, length: int, sigma: float, count: int = 1) -> Integers:
    """The sum of this many terms of one deviation."""
    if sigma <= 2**11:
        return _sums(length, count, TABLES, partial(_batch, ("sigma", sigma), read))
    if sigma > 2**19:
        law = Rounded(sigma)
        return _sums(length, count, FLOATS, lambda size: law.settled(_words(read, size), read))
    step = round(math.sqrt(sigma / 7))
    coarse = math.sqrt(sigma * sigma - (7.0 * step) ** 2) / step
    while (7 * step) ** 2 + step**2 * Fraction(coarse) ** 2 < Fraction(sigma) ** 2:
        coarse = math.nextafter(coarse, math.inf)

    def both(size: int) -> Integers:
        fine = _batch(("sigma", 7.0 * step), read, size)
        return fine + step * _batch(("sigma", coarse), read, size)

    return _sums(length, count, TABLES, both)


def _sums(length: int, count: int, block: int, draw: Callable[[int], Integers]) -> Integers:
    total = np.zeros(length, np.int64)
    for start in range(0, length, block):
        width = min(block, length - start)
        group = max(1, block // width)
        for first in range(0, count, group):
            rows = min(group, count - first)
            total[start : start + width] += draw(rows * width).reshape(rows, width).sum(axis=0)
    return total


def _parts(count: int) -> list[tuple[int, int]]:
    """Pairs of 2^j and how often, which add up to `count`."""
    found = [(64, count // 64)] + [(1 << j, count >> j & 1) for j in range(5, -1, -1)]
    return [pair for pair in found if pair[1]]


def many(read: Read, length: int, sigma: float, count: int) -> Integers:
    """Noise for the sum of `count` terms, in lumps where they are many."""
    if not 25 <= sigma <= 2**37 or count * length < 1 << 21:
        return terms(read, length, sigma, count)
    total, large = np.zeros(length, np.int64), _parts(count)
    for size, times in large:
        wanted = size * Fraction(sigma) ** 2 - (size - 1) * Fraction(SMALL) ** 2
        one = math.sqrt(wanted)
        while Fraction(one) ** 2 < wanted:
            one = math.nextafter(one, math.inf)
        total += terms(read, length, one, times)
    for size, times in _parts(count - sum(times for _, times in large)):
        total += _sums(length, times, TABLES, partial(_batch, ("small", float(size)), read))
    return total
