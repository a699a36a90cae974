"""The normal distribution function and its logarithm, for numbers and arrays.

>>> round(log_ndtr(-40.0), 6)
-804.608442
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["log_ndtr", "log_ndtr_of", "ndtr_of"]

Vector = NDArray[np.float64]

_FAR = -8.0
_ROOT_TWO = math.sqrt(2.0)
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_FRACTIONS = 80


def log_ndtr(x: float) -> float:
    """log Phi(x), to a relative error of about 1e-14."""
    if x > 0:
        return math.log1p(-0.5 * math.erfc(x / _ROOT_TWO))
    if x > _FAR:
        return math.log(0.5 * math.erfc(-x / _ROOT_TWO))
    # Phi(x) = phi(x) / (y + 1/(y + 2/(y + 3/(y + ...)))), y = -x (Laplace's continued fraction)
    y = -x
    tail = y
    for k in range(_FRACTIONS, 0, -1):
        tail = y + k / tail
    return -0.5 * y * y - _HALF_LOG_TWO_PI - math.log(tail)


def ndtr_of(x: Vector) -> Vector:
    """Phi of each of (n,) numbers."""
    return 0.5 * np.array([math.erfc(each) for each in (x / -_ROOT_TWO).tolist()])


def log_ndtr_of(x: Vector) -> Vector:
    """log Phi of each of (n,) numbers, to a relative error of about 1e-14."""
    far = x <= _FAR
    found = np.empty_like(x)
    negative = ~far & (x <= 0)
    found[negative] = np.log(ndtr_of(x[negative]))
    found[x > 0] = np.log1p(-ndtr_of(-x[x > 0]))
    y = -x[far]
    tail = y.copy()
    for k in range(_FRACTIONS, 0, -1):
        tail = y + k / tail
    found[far] = -0.5 * y * y - _HALF_LOG_TWO_PI - np.log(tail)
    return found
