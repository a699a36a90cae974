"""The Gaussian mechanism's exact privacy curve, for one release or a composition.

Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy" (ICML 2018), Theorem 8:
delta(eps) = Phi(1/(2z) - eps z) - e^eps Phi(-1/(2z) - eps z) for noise of z sensitivities. A
sequence of adaptively chosen Gaussian mechanisms with multipliers z_t costs exactly as much as one
with multiplier 1 / mu, mu^2 = sum 1 / z_t^2 (Dong, Roth and Su, "Gaussian Differential Privacy",
2022, Corollary 2; also if the multipliers are chosen adaptively: Smith and Thakurta, "Fully
Adaptive Composition for Gaussian Differential Privacy", 2022).

>>> round(gaussian_epsilon(1e-5, 1.0), 6)
4.377178
>>> round(gaussian_delta(gaussian_epsilon(1e-5, 1.0), 1.0), 12)
1e-05
>>> round(composed_epsilon(1e-5, 21.0), 2)
29.34
"""

from __future__ import annotations

import math

from fedsys.privacy import validation
from fedsys.privacy.numerics.normal import log_ndtr

__all__ = ["composed_epsilon", "gaussian_delta", "gaussian_epsilon", "log_gaussian_delta"]


def log_gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    """log delta at ``epsilon`` >= 0, without overflow or cancellation to zero.

    With delta = A - B (the two terms of the formula): log delta = log A + log(1 - B / A).

    Args:
        epsilon: not negative; unchecked.
        noise_multiplier: z > 0, in sensitivities; unchecked.
    """
    half, scaled = 0.5 / noise_multiplier, epsilon * noise_multiplier
    first = log_ndtr(half - scaled)
    second = epsilon + log_ndtr(-half - scaled)
    gap = second - first  # below 0
    return first + math.log(-math.expm1(gap)) if gap < 0 else -math.inf


def gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    """delta at ``epsilon`` >= 0 for noise of ``noise_multiplier`` sensitivities.

    Raises:
        MechanismError: a number is out of range.
    """
    validation.positive("epsilon", epsilon, zero=True)
    validation.positive("noise_multiplier", noise_multiplier)
    return math.exp(log_gaussian_delta(epsilon, noise_multiplier))


def gaussian_epsilon(delta: float, noise_multiplier: float) -> float:
    """The smallest epsilon at ``delta`` for noise of ``noise_multiplier`` sensitivities.

    Raises:
        MechanismError: ``delta`` is outside (0, 1), or the multiplier is not above 0.
    """
    validation.fraction("delta", delta)
    validation.positive("noise_multiplier", noise_multiplier)
    target = math.log(delta)
    if log_gaussian_delta(0.0, noise_multiplier) <= target:
        return 0.0
    low, high = 0.0, 1.0
    while log_gaussian_delta(high, noise_multiplier) > target:
        low, high = high, 2 * high
    while True:  # bisection to the last bit; the upper end always suffices
        middle = (low + high) / 2
        if middle in (low, high):
            return high
        if log_gaussian_delta(middle, noise_multiplier) > target:
            low = middle
        else:
            high = middle


def composed_epsilon(delta: float, squares: float) -> float:
    """The smallest epsilon at ``delta`` for Gaussian mechanisms with sum 1 / z_t^2 = ``squares``.

    Args:
        delta: in (0, 1).
        squares: mu^2, not negative; infinite where a mechanism adds no noise.

    Raises:
        MechanismError: ``delta`` is outside (0, 1).
    """
    if squares == 0:
        return 0.0
    return math.inf if math.isinf(squares) else gaussian_epsilon(delta, 1 / math.sqrt(squares))
