"""Lower bounds on what Gaussian rounds cost, from an attack that exists.

A reported epsilon is an upper bound, and so is every other accountant's: that one upper bound is
larger than another says nothing about either. What refutes a claim is being *below* what an attack
achieves. Here the attack is the best one on one coordinate, in which everybody else sends zero:
outputs of one round are

- add or remove:  (1-q) N(0, 1) + q N(1/m, 1)  against  N(0, 1), in both directions;
- replacement:    (1-q) N(0, 1) + q N(1/2m, 1)  against the same with -1/2m,

for noise multiplier m (of the doubled sensitivity under replacement) and sampling rate q.

Unsampled rounds together are one Gaussian mechanism, whose epsilon is exact (Balle and Wang 2018,
Theorem 8). For the others each round's output is reduced to the interval that it fell into, which
is post-processing and loses a little; privacy losses of intervals are rounded down to a grid and
convolved. Rounding down, dropping tails, and subtracting what the convolution wraps around and what
floating point may add all lower the result, so that it remains a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

__all__ = ["Step", "epsilon_at_least"]

_INTERVALS = 1 << 16
_REACH = 10.0
"""Standard deviations beyond the means up to which intervals reach."""
_GRID = 1 << 18
"""Number of points of the grid on which losses are convolved."""
_LARGEST = 1e4
"""Epsilon above which no bound is searched for."""

Vector = NDArray[np.float64]


class Step(Protocol):
    """A sequence of equal Gaussian mechanisms, as one view sees them."""

    @property
    def multiplier(self) -> float:
        """Noise deviation over the sensitivity between neighbours."""

    @property
    def rate(self) -> float:
        """Probability that the contribution is in the sum."""

    @property
    def replaces(self) -> bool:
        """Whether neighbours replace the contribution."""

    @property
    def count(self) -> int:
        """Number of mechanisms."""


def epsilon_at_least(steps: Iterable[tuple[Step, int]], delta: float) -> float:
    """An epsilon below which no claim about these rounds can be true, at ``delta``.

    Args:
        steps: (step, number of rounds with it), in any order.
        delta: in (0, 1).

    Returns:
        The bound; 0 where nothing can be shown, infinity without noise.
    """
    known = [(step, count * step.count) for step, count in steps if count]
    if any(step.multiplier <= 0 for step, _ in known):
        return math.inf
    whole = sum(count / step.multiplier**2 for step, count in known if step.rate >= 1)
    exact = _gaussian(math.sqrt(whole), delta)
    if all(step.rate >= 1 for step, _ in known):
        return exact
    return max(exact, *(_convolved(known, delta, added) for added in (False, True)))


def _gaussian(mu: float, delta: float) -> float:
    """Epsilon of a Gaussian mechanism of sensitivity ``mu`` deviations (Balle and Wang 2018)."""

    def excess(epsilon: float) -> float:
        first = ndtr(mu / 2 - epsilon / mu)
        second = math.exp(min(700.0, epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))))
        return float(first) - second - delta

    if mu == 0 or excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > _LARGEST:
            return _LARGEST
    return float(brentq(excess, 0.0, high, xtol=1e-12)) * (1 - 1e-9)


Losses = tuple[Vector, Vector, int]
"""Privacy losses of a round's intervals, their probabilities, and the number of such rounds."""


def _intervals(step: Step, count: int, added: bool) -> Losses:
    """One round's losses; ``added`` swaps the two neighbours."""
    shift = 1 / (2 * step.multiplier) if step.replaces else 1 / step.multiplier
    low, high = (-shift, shift) if step.replaces else (0.0, shift)
    edges = np.linspace(low - _REACH, high + _REACH, _INTERVALS + 1)
    unsampled = np.diff(ndtr(edges))
    one = (1 - step.rate) * unsampled + step.rate * np.diff(ndtr(edges - high))
    other = unsampled
    if step.replaces:
        other = (1 - step.rate) * unsampled + step.rate * np.diff(ndtr(edges - low))
    if added:
        one, other = other, one
    seen = (one > 1e-280) & (other > 1e-280)
    return np.log(one[seen] / other[seen]), one[seen], count


def _convolved(steps: list[tuple[Step, int]], delta: float, added: bool) -> float:
    """The bound in one direction.

    The distribution of a sum of losses is the inverse transform of the product of the rounds'
    transforms, each to the power of its count.
    """
    rounds = [_intervals(step, count, added) for step, count in steps]
    reach = _window(rounds, delta)
    width = 2 * reach / _GRID
    spectrum = np.ones(_GRID // 2 + 1, dtype=np.complex128)
    times = 0
    for losses, chances, count in rounds:
        places = np.floor(losses / width).astype(np.int64)
        inside = np.abs(places) < _GRID // 2
        masses = np.bincount(
            places[inside] % _GRID, weights=chances[inside], minlength=_GRID
        ).astype(np.float64)
        spectrum *= np.fft.rfft(masses) ** count
        times += count
    total = np.asarray(np.fft.fftshift(np.fft.irfft(spectrum, _GRID)), dtype=np.float64)
    grid: Vector = ((np.arange(_GRID) - _GRID // 2) * width).astype(np.float64)
    wrong = _outside(rounds, reach, times * width) + _rounding(total, times)
    together: Vector = np.maximum(total, 0.0).astype(np.float64)
    return _epsilon_of(grid, together, delta + wrong)


def _rounding(masses: Vector, times: int) -> float:
    """Bound on what floating point adds to all masses together.

    The error of a transform of n values is about u log2(n) times its Euclidean norm (Higham 2002,
    theorem 24.2); that of its k-th power k times as much; and the sum of n errors is at most
    sqrt(n) times their norm.
    """
    unit = 2.0**-52 * math.log2(_GRID) * (times + 1)
    return 2 * unit * math.sqrt(_GRID) * float(np.linalg.norm(masses))


def _tilted(rounds: list[Losses], tilt: float) -> float:
    """log E exp(tilt * sum of losses)."""
    total = 0.0
    for losses, chances, count in rounds:
        logs = tilt * losses
        highest = float(logs.max())
        total += count * (highest + math.log(float((chances * np.exp(logs - highest)).sum())))
    return total


_TILTS: tuple[float, ...] = tuple(np.logspace(-2, 2.5, 40).tolist())


def _window(rounds: list[Losses], delta: float) -> float:
    """A reach of the grid outside which a sum of losses hardly ever falls (Chernoff's bound)."""
    wanted = math.log(max(delta, 1e-280) / 1e4)
    ends = []
    for sign in (1, -1):
        reach = min((_tilted(rounds, sign * tilt) - wanted) / tilt for tilt in _TILTS)
        ends.append(min(max(reach, 1e-3), _LARGEST))
    return max(ends) * 1.02 + 1e-6


def _outside(rounds: list[Losses], reach: float, rounded: float) -> float:
    """Chernoff's bound on the probability that a rounded sum of losses falls outside the grid."""
    above = min(_tilted(rounds, tilt) - tilt * reach for tilt in _TILTS)
    below = min(_tilted(rounds, -tilt) - tilt * (reach - rounded) for tilt in _TILTS)
    return math.exp(min(0.0, above)) + math.exp(min(0.0, below))


def _epsilon_of(grid: Vector, masses: Vector, delta: float) -> float:
    """The epsilon at which E (1 - exp(epsilon - loss))_+ falls to ``delta``."""

    def excess(epsilon: float) -> float:
        beyond = grid > epsilon
        return float((masses[beyond] * -np.expm1(epsilon - grid[beyond])).sum()) - delta

    if delta >= 1 or excess(0.0) <= 0:
        return 0.0
    high = float(grid[-1])
    return float(brentq(excess, 0.0, high, xtol=1e-9)) if excess(high) < 0 else high
