"""Privacy loss distributions of Poisson-sampled Gaussian rounds on a grid, rounded up.

A distribution of the loss log(P(o)/Q(o)), o ~ P, is held as probabilities of multiples of a width,
and a mass at infinity. It dominates the exact one, so that epsilon is an upper bound:

- One round is discretised by "connect the dots": delta as a function of e^epsilon is convex, and
  the chords between its exact values on the grid lie above it. Doroshenko, Ghazi, Kamath, Kumar and
  Manurangsi, "Connect the Dots: Tighter Discrete Approximations of Privacy Loss Distributions"
  (PETS 2022), Algorithm 1.
- Rounds are composed by convolution. What is cut off a lower tail is moved up, what is cut off an
  upper tail to infinity; where a sum of many losses may be cut is Chernoff's bound on its tails.

The grid, the cuts and the formulas are those of dp-accounting 0.6, and so are the figures; tests
compare them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy.numerics.normal import log_ndtr_of

__all__ = ["LossDistribution", "Losses", "gaussian_losses"]

Vector = NDArray[np.float64]

_CUT = 1e-15
"""The probability that one composition may cut off."""
_FARTHEST = 9.745474864965935
"""Standard deviations out of which the noise is e^-50 / 2 likely on one side."""
_ORDERS = 20


@dataclass(frozen=True, kw_only=True)
class Losses:
    """One direction's distribution: P[loss = (first + i) width] = probabilities[i].

    Attributes:
        width: distance of the grid's points.
        first: number of the first point.
        probabilities: (n,).
        infinite: P[loss = infinity].
    """

    width: float
    first: int
    probabilities: Vector
    infinite: float

    def compose(self, other: Losses) -> Losses:
        """The distribution of the sum of two independent losses on the same grid."""
        size = len(self.probabilities) + len(other.probabilities) - 1
        length = _fast_length(size)
        product = np.fft.rfft(self.probabilities, length) * np.fft.rfft(other.probabilities, length)
        found: Vector = np.fft.irfft(product, length)[:size]
        left = min(_prefix(found), size - 1)
        right = max(size - _prefix(found[::-1]), left + 1)
        kept = found[left:right].copy()
        kept[0] += found[:left].sum()
        infinite = self.infinite + other.infinite - self.infinite * other.infinite
        return Losses(
            width=self.width,
            first=self.first + other.first + left,
            probabilities=kept,
            infinite=infinite + float(found[right:].sum()),
        )

    def repeat(self, count: int) -> Losses:
        """The distribution of the sum of ``count`` independent losses."""
        if count == 1:
            return self
        low, high = _chernoff(self.probabilities, count)
        length = _fast_length(max(high - low + 1, len(self.probabilities)))
        power = np.fft.rfft(self.probabilities, length) ** count
        found: Vector = np.roll(np.fft.irfft(power, length), -low)[: high - low + 1]
        return Losses(
            width=self.width,
            first=self.first * count + low,
            probabilities=found,
            infinite=_CUT - math.expm1(count * math.log1p(-self.infinite)),
        )

    def _points(self) -> Vector:
        places = np.arange(len(self.probabilities), dtype=np.float64) + self.first
        return places * self.width

    def _positive(self) -> tuple[Vector, Vector]:
        """The losses above 0 and their probabilities, the largest loss first."""
        losses = self._points()
        above = losses > 0
        return losses[above][::-1], self.probabilities[above][::-1]

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon >= 0 whose hockey-stick divergence is at most ``delta``.

        The divergence is U - e^epsilon V, with U the probability of the losses above epsilon and V
        the expectation of e^-loss over them. Infinite if there is none.
        """
        if self.infinite > delta:
            return math.inf
        losses, probabilities = self._positive()
        upper = np.concatenate(([self.infinite], self.infinite + np.cumsum(probabilities)))
        lower = np.concatenate(([0.0], np.cumsum(np.exp(-losses) * probabilities)))
        with np.errstate(all="ignore"):
            found = np.log((upper - delta) / lower)
        known = (upper > delta) & (lower > 0)
        enough = known[:-1] & (found[:-1] >= losses)
        vanished = (upper[1:] >= delta) & (lower[1:] == 0)  # e^-loss is 0 in float64
        stop = int(enough.argmax()) if enough.any() else len(losses)
        if vanished.any() and int(vanished.argmax()) < stop:
            return float(losses[vanished.argmax()])
        if upper[stop] <= lower[stop] + delta:
            return 0.0
        return float(found[stop])

    def delta(self, epsilon: float) -> float:
        """The hockey-stick divergence at ``epsilon`` of either sign."""
        losses = self._points()
        above = losses > epsilon
        terms = -np.expm1(epsilon - losses[above])
        return self.infinite + float(terms @ self.probabilities[above])


@dataclass(frozen=True, kw_only=True)
class LossDistribution:
    """Both directions: a client is removed, or added. They are equal where nothing is sampled."""

    removed: Losses
    added: Losses

    def compose(self, other: LossDistribution) -> LossDistribution:
        """Rounds of both."""
        return LossDistribution(
            removed=self.removed.compose(other.removed), added=self.added.compose(other.added)
        )

    def repeat(self, count: int) -> LossDistribution:
        """``count`` such rounds."""
        return LossDistribution(removed=self.removed.repeat(count), added=self.added.repeat(count))

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon >= 0 at ``delta``; infinite if there is none."""
        return max(self.removed.epsilon(delta), self.added.epsilon(delta))

    def delta(self, epsilon: float) -> float:
        """The least delta at ``epsilon`` of either sign."""
        return max(self.removed.delta(epsilon), self.added.delta(epsilon))


def gaussian_losses(noise_multiplier: float, rate: float, width: float) -> LossDistribution:
    """One Poisson-sampled Gaussian round; neighbours add or remove a client.

    With noise at x, in sensitivities, P is (1-q) N(0, z^2) + q N(-1, z^2) against N(0, z^2) when a
    client is removed, and N(0, z^2) against (1-q) N(0, z^2) + q N(1, z^2) when one is added.

    Args:
        noise_multiplier: z > 0, in sensitivities.
        rate: q in (0, 1].
        width: the grid's.
    """
    z, q = noise_multiplier, rate
    far = _FARTHEST * z

    def loss(x: float) -> float:  # when removed, with noise at x; falls in x
        plain = (-0.5 - x) / z**2
        if q == 1:
            return plain
        return float(np.logaddexp(math.log(q) + plain, math.log1p(-q)))

    def bounds(low: float, high: float) -> Vector:
        return np.arange(math.floor(low / width), math.ceil(high / width) + 1, dtype=np.float64)

    grid = bounds(loss(far), loss(-far - 1))
    removed = _connected(grid, _removed_excess(grid * width, z, q), width)
    if q == 1:
        return LossDistribution(removed=removed, added=removed)
    grid = bounds(-loss(-far - 1), -loss(far))
    return LossDistribution(
        removed=removed, added=_connected(grid, _added_excess(grid * width, z, q), width)
    )


def _unsampled(epsilons: Vector, rate: float) -> Vector:
    """log(1 + (e^eps - 1) / q), which is the loss without sampling; -inf where there is none."""
    if rate == 1:
        return epsilons.copy()
    found = np.full_like(epsilons, -np.inf)
    high = epsilons > 0
    grown = epsilons[high]
    found[high] = grown - math.log(rate) + np.log(rate - (1 - rate) * np.expm1(-grown))
    inner = np.expm1(epsilons[~high]) / rate
    with np.errstate(divide="ignore"):
        found[~high] = np.log1p(np.maximum(inner, -1.0))
    return found


def _removed_excess(epsilons: Vector, z: float, q: float) -> Vector:
    """delta(eps) - max(0, 1 - e^eps) when a client is removed."""
    plain = _unsampled(epsilons, q)
    inside = np.isfinite(plain)
    x = -0.5 - plain[inside] * z**2
    found = np.zeros_like(epsilons)
    found[inside] = _difference(
        epsilons[inside],
        lambda sign: _mixed(sign, x, -1.0, z, q),
        lambda sign: log_ndtr_of(sign * x / z),
    )
    return found


def _added_excess(epsilons: Vector, z: float, q: float) -> Vector:
    """delta(eps) - max(0, 1 - e^eps) when a client is added."""
    plain = -_unsampled(-epsilons, q)
    inside = np.isfinite(plain)
    x = 0.5 - plain[inside] * z**2
    found = np.zeros_like(epsilons)
    found[inside] = _difference(
        epsilons[inside],
        lambda sign: log_ndtr_of(sign * x / z),
        lambda sign: _mixed(sign, x, 1.0, z, q),
    )
    return found


def _mixed(sign: Vector, x: Vector, mean: float, z: float, q: float) -> Vector:
    """log of (1-q) Phi(sign x / z) + q Phi(sign (x - mean) / z)."""
    shifted = log_ndtr_of(sign * (x - mean) / z)
    if q == 1:
        return shifted
    return np.logaddexp(math.log1p(-q) + log_ndtr_of(sign * x / z), math.log(q) + shifted)


def _difference(
    epsilons: Vector, upper: Callable[[Vector], Vector], lower: Callable[[Vector], Vector]
) -> Vector:
    """P - e^eps Q of the outcomes whose loss exceeds eps, or of the others with the other sign.

    The two differ by 1 - e^eps. Below 0 the latter is small and keeps its digits.
    """
    sign = np.where(epsilons > 0, 1.0, -1.0)
    found: Vector = sign * (np.exp(upper(sign)) - np.exp(epsilons + lower(sign)))
    return np.clip(found, 0.0, 1.0)


def _connected(grid: Vector, excess: Vector, width: float) -> Losses:
    """The distribution whose delta is linear in e^epsilon between the grid's points.

    The part max(0, 1 - e^eps) of delta is that of a loss which is always 0, a point of the grid.
    """
    rises, step = np.diff(excess), math.expm1(width)
    probabilities = np.zeros_like(excess)
    probabilities[0] = rises[0] / step - excess[0]
    probabilities[1:-1] = (rises[1:] - rises[:-1] * math.exp(width)) / step
    probabilities[-1] = rises[-1] / math.expm1(-width)
    first = int(grid[0])
    probabilities[-first] += 1.0
    return Losses(
        width=width,
        first=first,
        probabilities=np.maximum(probabilities, 0.0),
        infinite=float(excess[-1]),
    )


def _prefix(probabilities: Vector) -> int:
    """The longest prefix of at most half of what a composition may cut off."""
    over = np.cumsum(probabilities) > _CUT / 2
    return int(over.argmax()) if over.any() else len(probabilities)


def _chernoff(probabilities: Vector, count: int) -> tuple[int, int]:
    """Bounds on the sum of ``count`` numbers of points, outside of which is at most the cut."""
    size = len(probabilities)
    low, high = 0, (size - 1) * count
    places = np.arange(size)
    for number in (*range(-_ORDERS, 0), *range(1, _ORDERS + 1)):
        order = number / size
        exponents = places * order
        peak = float(exponents.max())
        generated = peak + math.log(float(np.exp(exponents - peak) @ probabilities))
        bound = (count * generated + math.log(2 / _CUT)) / order
        if order > 0:
            high = min(high, math.ceil(bound))
        else:
            low = max(low, math.floor(bound))
    return low, high


def _fast_length(least: int) -> int:
    """The smallest 2^a 3^b 5^c that is at least ``least``, for the Fourier transform."""
    best = 1 << (least - 1).bit_length()
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            whole = threes << max(0, (-(-least // threes) - 1).bit_length())
            best = min(best, whole) if whole >= least else best
            threes *= 3
        fives *= 5
    return best
