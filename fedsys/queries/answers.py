"""Estimates with confidence intervals, and the arithmetic of those intervals.

Every interval covers the noise, whose deviation is public. Where cohorts are Poisson-sampled it
also covers sampling: for a sum over devices of v_k, each taken with probability q and weighted by
1 / q (Horvitz and Thompson 1952), the variance is (1 - q) / q sum v_k^2. The coordinator cannot see
the squares, so they are bounded by what it does see: with v_k = sum_i w_i g_i over a device's rows
and sum_i w_i <= R, Cauchy and Schwarz give v_k^2 <= R sum_i w_i g_i^2. Such intervals are
conservative and say so.

Post-processing (no negative counts, monotone distribution functions, correlations that a matrix can
have) changes point estimates only. Intervals are those of the unprocessed estimates, cut at the
bounds that the truth cannot cross; that loses no coverage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsys.queries.questions import Question

__all__ = [
    "LEVEL",
    "Answer",
    "Estimate",
    "Measured",
    "fieller",
    "normal_quantile",
    "scale_of",
]

LEVEL = 0.95
"""Confidence of every interval."""

_OWN = ("mean", "variance", "standard deviation", "expected calibration error")

Floats = NDArray[np.float64]
Kind = Literal["exact", "conservative", "asymptotic"]


def normal_quantile(comparisons: int = 1) -> float:
    """z with P[|Z| <= z] = 1 - (1 - LEVEL) / `comparisons`."""
    return NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * comparisons))


def scale_of(label: str) -> str:
    """Which estimates of an answer may be drawn on one axis: those of equal scale.

    >>> scale_of("quantile 0.5"), scale_of("0 to 0.1: rows"), scale_of("0 to 0.1")
    ('quantile', 'rows', '')
    """
    if ": " in label:
        return label.rpartition(": ")[2]
    first = label.partition(" ")[0]
    return label if label in _OWN else first if first in ("quantile", "below") else ""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One number.

    Attributes:
        label: what it is about: a bin, a class, a quantile; empty where the answer has one number.
        value: the estimate, after post-processing.
        low: lower end of the interval.
        high: upper end.
    """

    label: str
    value: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"label": self.label, "value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one question.

    Attributes:
        name: the question's name.
        ask: what was asked.
        estimates: the numbers.
        interval: ``exact`` (95 % in repeated rounds), ``conservative`` (at least 95 %) or
            ``asymptotic`` (95 % where the noise is small against the sums).
        shape: rows and columns of a matrix, else empty.
        notes: what a reader should know.
    """

    name: str
    ask: str
    estimates: tuple[Estimate, ...]
    interval: Kind
    shape: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "ask": self.ask,
            "interval": self.interval,
            "level": LEVEL,
            "shape": list(self.shape),
            "estimates": [each.to_json() for each in self.estimates],
            "notes": list(self.notes),
        }

    def value(self, label: str = "") -> float:
        """The estimate with this label.

        Raises:
            KeyError: there is none.
        """
        for each in self.estimates:
            if each.label == label:
                return each.value
        raise KeyError(label)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One question's noisy sums, scaled to the population.

    Attributes:
        sums: (..., size); leading axes are for many rounds at once.
        deviation: standard deviation of the noise in each of them.
        rate: q, the sampling rate.
        population: N.
    """

    sums: Floats
    deviation: float
    rate: float
    population: int

    @property
    def unseen(self) -> float:
        """(1 - q) / q, the factor of the sampling variance."""
        return (1 - self.rate) / self.rate

    @property
    def sampled(self) -> bool:
        """Whether sampling adds to the variance."""
        return self.rate < 1

    def kind(self, otherwise: Kind = "exact") -> Kind:
        """`otherwise`, or ``conservative`` where sampling's variance was bounded."""
        return "conservative" if self.sampled else otherwise

    def mass(self, sums: Floats | float) -> Floats:
        """A count from its noisy value, for bounds on variances: a deviation above, not below 0."""
        found: Floats = np.maximum(np.asarray(sums, dtype=np.float64), 0.0) + self.deviation
        return found


def ends(value: Floats, deviation: Floats | float, z: float | None = None) -> tuple[Floats, Floats]:
    """value -+ z deviation."""
    width = (normal_quantile() if z is None else z) * deviation
    return value - width, value + width


def fieller(
    top: Floats, bottom: Floats, variance: Floats | float, sampling: Floats | float
) -> tuple[Floats, Floats, Floats]:
    """The ratio m of two sums, cut to [-1, 1], with its interval.

    The interval is {m : (top - m bottom)^2 <= z^2 (variance (1 + m^2) + sampling (1 - m^2))}
    (Fieller 1954). Its coverage is exact for Gaussian noise however noisy the sums are, since
    top - m bottom is Gaussian with mean 0 at the true m; where that set is no interval, it is all
    of [-1, 1].

    Args:
        top: noisy sum of a value in [-1, 1].
        bottom: noisy sum of ones.
        variance: of the noise in either.
        sampling: factor of 1 - m^2 in the variance of sampling.

    Returns:
        ratio, lower and upper end.
    """
    z2 = normal_quantile() ** 2
    a = bottom**2 - z2 * (variance - sampling)
    b = top * bottom
    c = top**2 - z2 * (variance + sampling)
    root = b**2 - a * c
    fine = (a > 0) & (root >= 0) & (bottom > 0)
    safe, root = np.where(fine, a, 1.0), np.sqrt(np.where(fine, np.maximum(root, 0.0), 0.0))
    low = np.where(fine, (b - root) / safe, -1.0)
    high = np.where(fine, (b + root) / safe, 1.0)
    ratio = top / np.where(bottom > 0, bottom, math.inf)
    return np.clip(ratio, -1, 1), np.clip(low, -1, 1), np.clip(high, -1, 1)


def listed(labels: tuple[str, ...], value: Floats, low: Floats, high: Floats) -> list[Estimate]:
    """Estimates from arrays (len(labels),)."""
    return [
        Estimate(label=name, value=float(v), low=float(a), high=float(b))
        for name, v, a, b in zip(labels, value, low, high, strict=True)
    ]


def answer_to(
    question: Question,
    estimates: list[Estimate],
    interval: Kind,
    *,
    shape: tuple[int, ...] = (),
    notes: tuple[str, ...] = (),
) -> Answer:
    """An answer under the question's name."""
    return Answer(
        name=question.name,
        ask=question.ask,
        estimates=tuple(estimates),
        interval=interval,
        shape=shape,
        notes=notes,
    )
