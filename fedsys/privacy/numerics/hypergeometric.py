"""The one hypergeometric function that Rényi divergences at fractional orders need.

>>> round(concave_tail(0.5, 1, 3.0), 12) == round(14 / 9, 12)  # (2/3) (4^(3/2) - 1) / 3
True
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["concave_tail"]

_NEAR = 2.0
_TERMS = 120
"""(2/3)^120 is below 10^-21."""
_PLACES = np.arange(_TERMS - 1, dtype=np.float64)


def concave_tail(t: float, m: int, u: float) -> float:
    """2F1(-t, 1; m + 1; -u) = m int_0^1 (1 - x)^(m - 1) (1 + x u)^t dx, to about 1e-13.

    Near 0 it is Pfaff's transformation, (1 + u)^t 2F1(-t, m; m + 1; u / (1 + u)), whose series
    converges like (2/3)^k. Far from it the connection to infinity (DLMF 15.8.2) ends after m terms,

        B u^t (1 + 1/u)^(m + t) - m / ((1 + t) u) sum_{k<m} (m-1)!/(m-1-k)! / (2+t)_k u^-k,

    with B = m! Gamma(1 + t) / Gamma(m + 1 + t), because 1 - m is a negative integer or 0.

    Args:
        t: in (0, 1).
        m: at least 1; small, because the second form loses digits as it grows.
        u: not negative.
    """
    if u <= _NEAR:
        ratios = (_PLACES - t) * (_PLACES + m) / ((_PLACES + m + 1) * (_PLACES + 1))
        series = 1.0 + float(np.cumprod(ratios * (u / (1 + u))).sum())
        return math.exp(t * math.log1p(u)) * series
    scale = math.exp(math.lgamma(m + 1) + math.lgamma(1 + t) - math.lgamma(m + 1 + t))
    total = term = 1.0
    for k in range(m - 1):
        term *= (m - 1 - k) / ((2 + t + k) * u)
        total += term
    grown = math.pow(u, t) * math.exp((m + t) * math.log1p(1 / u))
    return scale * grown - m * total / ((1 + t) * u)
