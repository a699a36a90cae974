"""Many terms at once: noise for the sum of M rounded Gaussians in about 2 log M draws, not M.

Where a coordinator draws the noise shares of many lost clients, nobody sees a single share. What is
needed is noise with the variance of their sum and with as many roundings, because their number must
not show who took part (``NOISE.md``). So 2^j terms of deviation sigma are replaced by one term of
deviation sigma_j and 2^j - 1 small terms of deviation s = 12.5, with

    sigma_j^2 + (2^j - 1) s^2 >= 2^j sigma^2.

A sum of 2^i small terms is one draw, from the table of its law. That law is a convolution, computed
in integers: Python's multiply whole laws at once (Kronecker substitution).

>>> powers(109)
[64, 32, 8, 4, 1]
"""

from __future__ import annotations

import bisect
import itertools
import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy.noise.inversion import FURTHER_BYTES, SETTLED_BITS, precisely
from fedsys.privacy.randomness import AesCtrStream

__all__ = ["LEAST_SIGMA", "SMALL", "deviation_of", "powers", "settle_small_sum", "small_sum_words"]

SMALL = 12.5
"""s, the deviation of the small terms."""

LEAST_SIGMA = 2 * SMALL
"""The least sigma whose terms are replaced."""

_LARGEST = 64
_WORD = 64
_BITS = 128
_FINER = 16  # bits by which the law is finer than the cells of a uniform
_GUARD = 64
"""Bits of a law beyond those asked for. Rounding costs less than 2^-40 of a unit of the latter: an
error of 2 units a probability at most doubles, but for one unit, with each of 6 doublings, and at
most 2^14 probabilities are added up."""


def powers(count: int) -> list[int]:
    """Powers of two up to 64 that add up to `count`, largest first."""
    rest = count % _LARGEST
    bits = [1 << bit for bit in reversed(range(_LARGEST.bit_length() - 1)) if rest >> bit & 1]
    return [_LARGEST] * (count // _LARGEST) + bits


def deviation_of(terms: int, sigma: float) -> float:
    """sigma_j for 2^j `terms` of deviation sigma, rounded up."""
    wanted = terms * Fraction(sigma) ** 2 - (terms - 1) * Fraction(SMALL) ** 2
    found = math.sqrt(float(wanted))
    while Fraction(found) ** 2 < wanted:
        found = math.nextafter(found, math.inf)
    return found


def small_sum_words(terms: int) -> NDArray[np.uint64]:
    """floor(2^64 P[L > k]) (K,) for k = 0..K-1, of which the last is 0, exact to the last bit.

    Args:
        terms: how many small terms add up to L; a power of two.
    """
    bits = _BITS
    while True:
        tails = _tails(terms, bits)
        low = (1 << (bits - _WORD)) - 1
        # A tail so close to a multiple of 2^-64 that its last unit matters needs more bits.
        if all(1 < (tail & low) < low - 1 for tail in tails if tail >> 8):
            break
        bits *= 2
    words = [tail >> (bits - _WORD) for tail in tails]
    return np.array(words[: words.index(0) + 1], dtype=np.uint64)


def settle_small_sum(terms: int, word: int, stream: AesCtrStream) -> int:
    """The draw that began with `word`, decided by 960 further bits of the uniform."""
    further = int.from_bytes(stream(FURTHER_BYTES), "little")
    cell = (word << (8 * FURTHER_BYTES)) + further
    upper = cell >> (SETTLED_BITS - 1)
    near = (1 << SETTLED_BITS) - 1 - cell if upper else cell  # by symmetry, as an upper tail
    middle = (2 * near + 1) << (_FINER - 1)  # of the cell
    tails = _tails(terms, SETTLED_BITS + _FINER)
    k = bisect.bisect_left(tails, -middle, key=lambda tail: -tail)  # the least with P[L > k] below
    return k if upper else -k


@lru_cache(maxsize=16)
def _tails(terms: int, bits: int) -> list[int]:
    """P[L > k] for k = 0, 1, ... in units of 2^-bits, down to 0."""
    precision = bits + _GUARD
    law = _law(terms, precision)
    tails, above = [], 0
    for probability in reversed(law[len(law) // 2 + 1 :]):
        tails.append(above >> _GUARD)
        above += probability
    tails.append(above >> _GUARD)
    return tails[::-1]


def _law(terms: int, precision: int) -> list[int]:
    """P[L = k] for k = -K..K in units of 2^-precision."""
    if terms == 1:
        return _rounded_gaussian(precision)
    half = _law(terms // 2, precision)
    # No sum of products needs more bits than this, so whole laws multiply as two integers.
    width = (2 * precision + len(half).bit_length() + 7) // 8
    packed = int.from_bytes(b"".join(each.to_bytes(width, "little") for each in half), "little")
    raw = (packed * packed).to_bytes(2 * len(half) * width, "little")
    law = [
        int.from_bytes(raw[at : at + width], "little") >> precision
        for at in range(0, (2 * len(half) - 1) * width, width)
    ]
    least = next(at for at, probability in enumerate(law) if probability)
    return law[least : len(law) - least]


def _rounded_gaussian(precision: int) -> list[int]:
    reach = math.ceil(SMALL * math.sqrt(2 * precision * math.log(2))) + 2
    with precisely(precision + 30) as mp:
        scale = SMALL * mp.sqrt(2)
        tails = [mp.erfc((k + mp.mpf(0.5)) / scale) / 2 for k in range(reach + 1)]
        upper = [int(mp.floor(mp.ldexp(a - b, precision))) for a, b in itertools.pairwise(tails)]
        centre = int(mp.floor(mp.ldexp(1 - 2 * tails[0], precision)))
    return [*upper[::-1], centre, *upper]
