"""How far a sum of rounded Gaussians is from a post-processed Gaussian: tau, rigorously.

Let R_i = round(N(0, sigma^2)), i = 1..n, and let D be the total variation distance between
R_1 + ... + R_n and round(G + U), G ~ N(0, n sigma^2), U a sum of n - 1 uniforms on [-1/2, 1/2]
(``NOISE.md`` states the lemma and what it is for). Both are laws on the integers; their Fourier
series on [-pi, pi] are

    P(t) = prod_i sum_m h(t + 2 pi m),   F(t) = sum_m prod_i h(t + 2 pi m),
    h(w) = exp(-sigma^2 w^2 / 2) sin(w/2) / (w/2).

F consists of those n-fold products of P that take the same m in every factor, so with
a = |h(t)| and b = sum_(m != 0) |h(t + 2 pi m)|

    |P(t) - F(t)| <= (a + b)^n - a^n,

which increases in a and in b. Both series are even. On [0, pi] a decreases in t and the bound used
for b increases, so the value with a at a cell's left end and b at its right end bounds the whole
cell. Each coefficient of P - F is at most the mean of that bound, their squares add up to at most
the mean of its square (Parseval), and outside |k| <= W both laws have little mass:

    D <= min{(W + 1/2) mean, sqrt((2 W + 1) mean of squares) / 2} + P[|G| > W - n/2].

Numbers of terms n' <= n <= n'' have one bound together, because a <= 1 and W increases in n:

    (a + b)^n - a^n = a^n [(1 + b/a)^n - 1] <= a^n' [(1 + b/a)^n'' - 1],   W(n) <= W(n'').

>>> f"{rounding_distance(1.0, 10, 10):.0e}", f"{rounding_distance(2.0, 2, 2):.0e}"
('7e-08', '2e-17')
>>> rounding_distance(0.3, 1, 1)
0.0
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["rounding_distance"]

_CELLS = 1024
_NEAREST = 4
"""Terms of b on either side added one by one; a geometric series bounds the rest."""

_ONE_BY_ONE = 4096
"""How many numbers of terms have a bound of their own. Those beyond share theirs with up to 1/64 as
many again, so that the work grows with the logarithm of the largest number."""

_RUN = 64
_AT_ONCE = 2048
_TAIL = 46.0
"""Standard deviations beyond which mass is neglected: P[|N| > 46] < 1e-400."""

_LEAST = 1e-300
_CLOSED_FORM = 2.0
"""The least sigma for which the bound in closed form holds."""

_SLACK = 1e-9
_SLACK_PER_TERM = 2.0**-50
"""Generous bounds on the relative error of float64 in the sums below; the larger one counts."""

Vector = NDArray[np.float64]


@lru_cache(maxsize=512)
def rounding_distance(sigma: float, fewest: int, most: int) -> float:
    """An upper bound on tau for every number of terms from `fewest` to `most`.

    Args:
        sigma: the standard deviation of each term before rounding, in integers; above 0.
        fewest: the smallest n, at least 1; a single term is exactly round(G).
        most: the largest n; below 2 the distance is 0.

    Returns:
        The bound for one coordinate: at most 1, and at least 1e-300 if ``most`` is 2 or more.
    """
    fewest = max(fewest, 2)
    if most < fewest:
        return 0.0
    if sigma >= _CLOSED_FORM:
        bound = _closed_form(sigma, fewest, most)
        if bound < 1e-60:
            return max(bound, _LEAST)
    runs, worst = np.array(_runs(fewest, most), dtype=np.float64), 0.0
    for start in range(0, len(runs), _AT_ONCE):
        first, last = runs[start : start + _AT_ONCE].T
        worst = max(worst, float(_cell_by_cell(sigma, first, last).max()))
    return min(max(worst, _LEAST), 1.0)


def _runs(fewest: int, most: int) -> list[tuple[int, int]]:
    """The numbers of terms as runs (first, last): single numbers, and then ever longer runs."""
    singly = min(most, fewest + _ONE_BY_ONE - 1)
    runs = [(terms, terms) for terms in range(fewest, singly + 1)]
    while runs[-1][1] < most:
        first = runs[-1][1] + 1
        runs.append((first, min(most, first + first // _RUN)))
    return runs


def _half_width(sigma: float, terms: float) -> float:
    return terms / 2 + _TAIL * sigma * math.sqrt(terms) + 1


def _closed_form(sigma: float, fewest: int, most: int) -> float:
    """The bound for all numbers of terms at once, for sigma >= 2.

    On [0, pi], (a + b)^n - a^n <= n b (a + b)^(n-1), where a <= exp(-s t^2) with s = sigma^2 / 2,
    b <= 1.1 exp(-s (2 pi - t)^2), and b/a <= r(t) = 1.73 exp(-2 pi sigma^2 (pi - t)). Because
    log(1 + r(t)) <= r(0) + .06 s t^2, the product is at most
    1.1 n exp(n r(0) - s [(2 pi - t)^2 + k t^2]) with k = .94 (n - 1). The bracket is at least
    4 pi^2 k / (k + 1), its minimum over t, which grows with n.
    """
    k = 0.94 * (fewest - 1)
    least = 2 * math.pi**2 * sigma**2
    beyond = 1.73 * math.exp(-min(least, 700.0)) * most
    return math.exp(
        max(
            math.log(1.1 * most * (_half_width(sigma, most) + 1)) + beyond - least * k / (k + 1),
            -690,
        )
    )


def _cell_by_cell(sigma: float, first: Vector, last: Vector) -> Vector:
    """The bound of this module's docstring, (k,), for k runs of numbers of terms: from first (k,)
    to last (k,)."""
    edges = np.linspace(0.0, math.pi, _CELLS + 1)
    left, right = edges[:-1], edges[1:]
    log_a = -0.5 * (sigma * left) ** 2 + np.log(np.sinc(left / (2 * math.pi)))
    growth = last[:, None] * np.log1p(_others(sigma, right) / np.exp(log_a))
    # log((a + b)^n - a^n) = n log a + log(exp(growth) - 1)
    with np.errstate(under="ignore"):
        logs = first[:, None] * log_a + growth + np.log(-np.expm1(-growth))
        bound = np.exp(np.minimum(logs, math.log(2.0)))  # neither series exceeds 1
        width = last / 2 + _TAIL * sigma * np.sqrt(last) + 1
        by_mean = (width + 0.5) * bound.mean(axis=1)
        by_square = 0.5 * np.sqrt((2 * width + 1) * np.square(bound).mean(axis=1))
    slack = np.maximum(_SLACK, _SLACK_PER_TERM * last)
    smaller: Vector = np.minimum(by_mean, by_square) * (1 + slack)
    return smaller


def _others(sigma: float, t: Vector) -> Vector:
    """A bound (k,) on sum_(m != 0) |h(t + 2 pi m)| at k points t, increasing on [0, pi]."""
    sine = np.abs(np.sin(t / 2))
    total = np.zeros_like(t)
    for m in range(1, _NEAREST + 1):
        for w in (2 * math.pi * m - t, np.full_like(t, 2 * math.pi * m)):
            total += np.exp(-0.5 * (sigma * w) ** 2) * sine / (w / 2)
    # The terms beyond, with M = _NEAREST: |t + 2 pi m| >= pi k for k = 2 M + 1, 2 M + 2, ...
    k = 2 * _NEAREST + 1
    first = math.exp(-0.5 * (sigma * math.pi * k) ** 2) / (math.pi * k / 2)
    ratio = math.exp(-0.5 * (sigma * math.pi) ** 2 * (2 * k + 1))
    return total + sine * (first / (1 - ratio))
