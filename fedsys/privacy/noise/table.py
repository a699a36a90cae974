"""The distribution function of round(N(0, sigma^2)) in 64-bit words, exact to the last bit.

Entry k is floor(2^64 P[R <= k]). With x = (k + 1/2) / sigma and Q the normal tail, P[R <= k] is
1 - Q(x). Q is computed by its Taylor series around the nearest point x0 of a grid of step 1/8,

    Q(x0 + e) = Q(x0) + phi(x0) sum_(n>=1) (-1)^n He_(n-1)(x0) e^n / n!,

in units of 2^-160: mpmath computes the coefficients, Python integers in numpy arrays the sums.
Because |He_n(x)| phi(x) <= .44 sqrt(n!) (Cramér's inequality), 22 terms leave an error below
2^-130. An entry so close to a multiple of 2^-64 that this error could matter is computed again by
mpmath.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy.noise.inversion import precisely

__all__ = ["upper_words"]

_BITS = 160
_TERMS = 22
_PER_DEVIATION = 8
_WORD = 64
_UNSURE = 1 << (_BITS - _WORD - 60)
"""In units of 2^-160: how close to a multiple of 2^-64 an entry is computed again. It is far above
the error of the series."""

_REACH = 9.2
"""Q(9.2) is below 2^-64."""


def upper_words(sigma: float) -> NDArray[np.uint64]:
    """floor(2^64 Q((k + 1/2) / sigma)) (K,) for k = 0..K-1, of which the last is 0.

    Args:
        sigma: the standard deviation before rounding, in integers; above 0.
    """
    count = math.ceil(_REACH * sigma) + 1
    numerator, denominator = sigma.as_integer_ratio()
    # (k + 1/2) / sigma in units of 2^-160
    points = np.arange(count).astype(object)
    points = (2 * points + 1) * (denominator << (_BITS - 1)) // numerator
    words = np.empty(count, dtype=np.uint64)
    nearest = ((np.arange(count) + 0.5) / sigma * _PER_DEVIATION + 0.5).astype(np.int64)
    starts = np.flatnonzero(np.diff(nearest, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], count], strict=True):
        anchor = int(nearest[start])
        coefficients = _coefficients(anchor)
        offset = points[start:stop] - (anchor << _BITS) // _PER_DEVIATION
        tails: NDArray[Any] = np.full(stop - start, coefficients[-1], dtype=object)
        for coefficient in coefficients[-2::-1]:
            tails = (tails * offset >> _BITS) + coefficient
        rest = tails & ((1 << (_BITS - _WORD)) - 1)
        unsure = (rest < _UNSURE) | (rest > (1 << (_BITS - _WORD)) - _UNSURE)
        part = np.maximum(tails, 0) >> (_BITS - _WORD)
        words[start:stop] = part.astype(np.uint64)
        for index in np.flatnonzero(unsure):
            words[start + index] = _exact_word(int(start + index), sigma)
    return words


@lru_cache(maxsize=128)
def _coefficients(anchor: int) -> tuple[int, ...]:
    """The Taylor coefficients of Q around anchor / 8, constant first, in units of 2^-160.

    They are kept, because all tables have the same: anchors 0 to 84, if sigma is 1 or more.
    """
    with precisely(_BITS + 60) as mp:
        x = mp.mpf(anchor) / _PER_DEVIATION
        density = mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi)
        found = [mp.erfc(x / mp.sqrt(2)) / 2]
        before, here = mp.mpf(0), mp.mpf(1)  # He_(n-2), He_(n-1)
        scale = density
        for n in range(1, _TERMS + 1):
            scale = -scale / n
            found.append(scale * here)
            before, here = here, x * here - (n - 1) * before
        return tuple(int(mp.nint(mp.ldexp(value, _BITS))) for value in found)


def _exact_word(k: int, sigma: float) -> int:
    """floor(2^64 Q((k + 1/2) / sigma)), computed with 1,200 bits."""
    with precisely(1200) as mp:
        x = (mp.mpf(k) + mp.mpf(0.5)) / mp.mpf(sigma)
        return int(mp.floor(mp.ldexp(mp.erfc(x / mp.sqrt(2)), _WORD - 1)))
