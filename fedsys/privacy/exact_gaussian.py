"""The Gaussian mechanism's exact privacy curve, for a single release or equivalent ones.

Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy" (ICML 2018), Theorem 8:
delta(eps) = Phi(1/(2z) - eps z) - e^eps Phi(-1/(2z) - eps z) for noise of z sensitivities.

>>> round(gaussian_epsilon(1e-5, 1.0), 6)
4.377178
>>> round(gaussian_delta(gaussian_epsilon(1e-5, 1.0), 1.0), 12)
1e-05
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr

from fedsys.privacy import validation

__all__ = ["gaussian_delta", "gaussian_epsilon", "log_gaussian_delta"]


def log_gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    """log delta at ``epsilon`` >= 0, without overflow or cancellation to zero.

    Args:
        epsilon: not negative; unchecked.
        noise_multiplier: z > 0, in sensitivities; unchecked.
    """
    half, scaled = 0.5 / noise_multiplier, epsilon * noise_multiplier
    first = float(log_ndtr(half - scaled))
    second = epsilon + float(log_ndtr(-half - scaled))
    gap = second - first  # below 0
    return first + math.log(-math.expm1(gap)) if gap < 0 else -math.inf


def gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    """delta at ``epsilon`` >= 0 of noise of ``noise_multiplier`` sensitivities.

    Raises:
        MechanismError: a number is out of range.
    """
    validation.positive("epsilon", epsilon, zero=True)
    validation.positive("noise_multiplier", noise_multiplier)
    return math.exp(log_gaussian_delta(epsilon, noise_multiplier))


def gaussian_epsilon(delta: float, noise_multiplier: float) -> float:
    """The smallest epsilon at ``delta`` of noise of ``noise_multiplier`` sensitivities.

    Raises:
        MechanismError: ``delta`` is outside (0, 1), or the multiplier not above 0.
    """
    validation.fraction("delta", delta)
    validation.positive("noise_multiplier", noise_multiplier)
    target = math.log(delta)

    def excess(epsilon: float) -> float:
        return log_gaussian_delta(epsilon, noise_multiplier) - target

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-13, rtol=1e-13))
