"""The trade-off curve that a claim promises: what a guess about one canary can achieve.

A mechanism is f-DP if, for neighbouring data sets and every event, P[event | one] is at most
1 - f(P[event | other]) (Dong, Roth and Su, "Gaussian Differential Privacy", JRSS B 2022, Definition
2.3). An audit asks the curve one question only, `least`: if an event has probability y with a
canary's coin on one side, what is the least probability that it has with the coin on the other?

A privacy profile delta(epsilon) gives such a curve: it is f-DP for the supremum of the curves

    f(x) = max(0, 1 - delta - e^eps x, e^-eps (1 - delta - x))

over any set of epsilons (ibid., Propositions 2.5 and 2.12), so that fewer epsilons, or deltas that
are too large, only make the promise weaker and the audit slower to refute. Solved for x, each gives
straight lines below the answer; the answer is the upper envelope of finitely many lines.

>>> gaussian = GaussianTradeoff(1.0)
>>> round(gaussian.least(0.5), 6)  # Phi(Phi^-1(0.5) - 1)
0.158655
>>> from fedsys.privacy.events import GaussianStep
>>> curve = tradeoff_of({GaussianStep(multiplier=1.0): 1})
>>> curve.least(0.5) <= gaussian.least(0.5) < curve.least(0.5) + 1e-3
True
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import ndtr, ndtri

from fedsys.privacy.accounting.costs import Steps, squares_of
from fedsys.privacy.accounting.exact_gaussian import log_gaussian_delta
from fedsys.privacy.accounting.pld import gaussian_pld_deltas

__all__ = ["GaussianTradeoff", "ProfileTradeoff", "Tradeoff", "tradeoff_of"]

_LARGEST = 40.0
"""Epsilon beyond which a profile's lines are left out: e^-40 is too small to matter to a guess."""
_EPSILONS = np.concatenate([np.linspace(0.0, 2.0, 161), np.linspace(2.0, _LARGEST, 305)[1:]])
_STEEPEST = 14.0
"""Epsilon beyond which steep lines are left out for lack of precision."""
_ROUNDING = 2.0**-48
_PLD_SQUARES = 400.0
"""Unamplified mu^2 above which no loss distribution is computed: its grid would be huge."""

Line = tuple[float, float]
"""Slope and intercept of x >= slope y + intercept."""


class Tradeoff(Protocol):
    """What a claim promises about one canary."""

    def least(self, likely: float) -> float:
        """A lower bound on an event's probability on one side, given it on the other."""
        ...


@dataclass(frozen=True, slots=True)
class GaussianTradeoff:
    """mu-GDP: the curve of N(0, 1) against N(mu, 1), exactly (Dong, Roth and Su 2022, (6)).

    Attributes:
        mu: distance between the means in standard deviations, not negative.
    """

    mu: float

    def least(self, likely: float) -> float:
        """Phi(Phi^-1(likely) - mu)."""
        if likely <= 0:
            return 0.0
        if likely >= 1:
            return 1.0
        return float(ndtr(ndtri(likely) - self.mu))


class ProfileTradeoff:
    """The curve of a privacy profile, at finitely many epsilons.

    Args:
        epsilons: (n,) not negative.
        deltas: (n,) the profile's delta at each epsilon, or an upper bound on it.
    """

    __slots__ = ("_breaks", "_lines")

    def __init__(self, epsilons: Sequence[float], deltas: Sequence[float]) -> None:
        lines: list[Line] = [(0.0, 0.0)]
        for epsilon, delta in zip(epsilons, deltas, strict=True):
            if delta >= 1:
                continue
            # y <= delta + e^eps x, and 1 - y >= e^-eps (1 - delta - x)
            lines.append((math.exp(-epsilon), -delta * math.exp(-epsilon)))
            if epsilon <= _STEEPEST:
                # terms of size e^eps cancel: lower the line by more than rounding can raise it
                height = 1 - delta - math.exp(epsilon)
                lines.append((math.exp(epsilon), height - _ROUNDING * math.exp(epsilon)))
        self._lines = _envelope(lines)
        self._breaks = [
            (low[1] - high[1]) / (high[0] - low[0])
            for low, high in zip(self._lines, self._lines[1:], strict=False)
        ]

    def least(self, likely: float) -> float:
        """The highest of the lines at ``likely``."""
        slope, height = self._lines[bisect.bisect_right(self._breaks, likely)]
        return min(1.0, slope * likely + height)


def _envelope(lines: list[Line]) -> list[Line]:
    """The lines that are highest somewhere, in order of slope: the upper convex envelope."""
    kept: list[Line] = []
    for line in sorted(lines):
        # of two parallel lines the later one is higher
        while kept and (
            kept[-1][0] == line[0] or (len(kept) > 1 and _hidden(kept[-2], kept[-1], line))
        ):
            kept.pop()
        kept.append(line)
    return kept


def _hidden(low: Line, middle: Line, high: Line) -> bool:
    """Whether the middle line is nowhere above both others."""
    meets_low = (low[1] - middle[1]) * (high[0] - middle[0])
    return meets_low >= (middle[1] - high[1]) * (middle[0] - low[0])


def tradeoff_of(steps: Steps, *, overhead: float = 0.0) -> ProfileTradeoff | None:
    """The curve of Gaussian steps; None where they promise nothing.

    For Poisson-sampled steps each delta is the smaller of the loss distribution and of
    the same steps unamplified. Sampled steps under replacement have no loss distribution here; they
    get the unamplified delta, which is weaker and therefore sound.

    Args:
        steps: as `OutsiderLoss.steps` counts them.
        overhead: the part of the job's delta that pays for anything but the steps (visible aborts,
            noise that is not exactly Gaussian); it is added to every delta.
    """
    squares = squares_of(steps)
    if squares == 0 or not math.isfinite(squares):
        return None
    epsilons = _EPSILONS.tolist()
    multiplier = 1 / math.sqrt(squares)
    deltas = [math.exp(log_gaussian_delta(epsilon, multiplier)) for epsilon in epsilons]
    amplified = any(step.rate < 1 for step in steps)
    replaced = any(step.replaces and step.rate < 1 for step in steps)
    # with this little noise a loss distribution needs a huge grid and gains next to nothing
    if amplified and not replaced and squares <= _PLD_SQUARES:
        keys: dict[tuple[float, float], int] = {}
        for step, count in steps.items():
            key = step.multiplier, step.rate
            keys[key] = keys.get(key, 0) + count * step.count
        sampled = gaussian_pld_deltas(keys, epsilons)
        deltas = [min(both) for both in zip(deltas, sampled, strict=True)]
    return ProfileTradeoff(epsilons, [min(1.0, delta + overhead) for delta in deltas])
