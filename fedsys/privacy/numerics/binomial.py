"""Binomial probabilities, to a relative error of about 1e-13 far into both tails.

The probability mass is Loader's saddle-point form, "Fast and Accurate Computation of Binomial
Probabilities" (2000), in which nothing large cancels. A tail is its largest term times the sum of
the ratios of the further ones.

>>> round(above(60, 100, 0.5), 6), below(0, 10, 0.5) == 2.0**-10
(0.0176, True)
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["above", "below", "log_choose", "mass"]

Vector = NDArray[np.float64]

_BLOCK = 256
_LARGEST_BLOCK = 1 << 16
_NEGLIGIBLE = 1e-18
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_EXACT_BELOW = 16
_NEAR = 0.1


def _lgamma(values: ArrayLike) -> Vector:
    array = np.asarray(values, dtype=np.float64)
    flat = [math.lgamma(each) for each in array.ravel().tolist()]
    return np.array(flat, dtype=np.float64).reshape(array.shape)


def log_choose(order: float, j: ArrayLike) -> Vector:
    """log C(order, j) for a real ``order`` and every j <= order."""
    places = np.asarray(j, dtype=np.float64)
    found: Vector = math.lgamma(order + 1) - _lgamma(places + 1) - _lgamma(order - places + 1)
    return found


def _stirling_error(n: float) -> float:
    """log n! - log(sqrt(2 pi n) (n/e)^n)."""
    if n < _EXACT_BELOW:
        return math.lgamma(n + 1) - (n + 0.5) * math.log(n) + n - _HALF_LOG_TWO_PI if n else 0.0
    square = n * n
    series = 1 / 1188 - (691 / 360360 - (1 / 156) / square) / square
    series = 1 / 1260 - (1 / 1680 - series / square) / square
    return (1 / 12 - (1 / 360 - series / square) / square) / n


def _deviance(x: float, mean: float) -> float:
    """x log(x / mean) + mean - x, without cancellation where the two are close."""
    if abs(x - mean) >= _NEAR * (x + mean):
        return x * math.log(x / mean) + mean - x
    ratio = (x - mean) / (x + mean)
    total, power, j = (x - mean) * ratio, 2 * x * ratio, 1
    while True:
        power *= ratio * ratio
        further = total + power / (2 * j + 1)
        if further == total:
            return total
        total, j = further, j + 1


def mass(k: int, n: int, rate: float) -> float:
    """P[Bin(n, rate) = k], 0 outside 0..n."""
    if not 0 <= k <= n:
        return 0.0
    if rate in (0.0, 1.0):
        return float(k == (n if rate else 0))
    if k == 0:
        return math.exp(n * math.log1p(-rate))
    if k == n:
        return math.exp(n * math.log(rate))
    exponent = (
        _stirling_error(n)
        - _stirling_error(k)
        - _stirling_error(n - k)
        - _deviance(k, n * rate)
        - _deviance(n - k, n * (1 - rate))
    )
    return math.exp(exponent) * math.sqrt(n / (2 * math.pi * k * (n - k)))


def _upward(k: int, n: int, odds: float) -> float:
    """The sum over j >= k of P[j] / P[k], for odds = rate / (1 - rate) and k near or above n rate.

    The ratio of consecutive terms decreases, so what is left after a term is at most that term's
    geometric series.
    """
    total, term, at, block = 1.0, 1.0, k, _BLOCK
    while at < n:
        j = np.arange(at, min(at + block, n), dtype=np.float64)
        terms = term * np.cumprod((n - j) / (j + 1) * odds)
        total += float(terms.sum())
        last = float((n - j[-1]) / (j[-1] + 1) * odds)
        term, at, block = float(terms[-1]), at + len(j), min(2 * block, _LARGEST_BLOCK)
        if last < 1 and term <= _NEGLIGIBLE * total * (1 - last):
            break
    return total


def above(k: int, n: int, rate: float) -> float:
    """P[Bin(n, rate) > k].

    Args:
        k: of any sign.
        n: number of trials, at least 0.
        rate: in [0, 1].
    """
    if k < 0:
        return 1.0
    if k >= n or rate == 0:
        return 0.0
    if rate == 1:
        return 1.0
    if k + 1 > n * rate:
        return min(mass(k + 1, n, rate) * _upward(k + 1, n, rate / (1 - rate)), 1.0)
    return 1.0 - below(k, n, rate)


def below(k: int, n: int, rate: float) -> float:
    """P[Bin(n, rate) <= k]; the arguments are those of `above`."""
    if k < 0:
        return 0.0
    if k >= n or rate == 0:
        return 1.0
    if rate == 1:
        return 0.0
    if k < n * rate:  # the failures' upper tail; 1 - rate would lose the digits of a small rate
        return min(mass(k, n, rate) * _upward(n - k, n, (1 - rate) / rate), 1.0)
    return 1.0 - above(k, n, rate)
