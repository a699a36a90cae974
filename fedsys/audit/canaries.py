"""How much of a claimed epsilon canaries refute: two statistics over planted updates.

**One-run** (Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS
2023): each of m canaries is in the job or not by a fair coin; after it, r guesses are made, and
(epsilon, delta)-differential privacy bounds how many can be right (Theorem 5.2):

    p = beta + 2 m delta max_i (P[B >= c - i] - beta) / i,   beta = P[B >= c],
    B ~ Bin(r, e^eps / (1 + e^eps)),

for c right ones. The largest epsilon with p <= 5% is a lower bound at 95% confidence. r must be
fixed beforehand.

**One-shot** (Andrew, Kairouz, Oh, Oprea, McMahan and Suriyakumar, "One-shot Empirical Privacy
Estimation for Federated Learning", ICLR 2024): the cosines of canaries that were in with the final
model, against N(0, 1/d) of canaries that were not. An estimate, not a bound.

>>> round(one_run_bound(canaries=10_000, guesses=300, correct=270, delta=1e-5), 3)
1.854
>>> one_run_bound(canaries=10_000, guesses=300, correct=150, delta=1e-5)
0.0
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import binom

from fedsys.errors import AuditInputError

__all__ = [
    "CONFIDENCE",
    "OneRun",
    "correct_guesses",
    "default_guesses",
    "detection_power",
    "one_run",
    "one_run_bound",
    "one_run_p_value",
    "one_shot_estimate",
]

CONFIDENCE = 0.95

_MOST_GUESSES = 300
_SHARE_OF_GUESSES = 0.3
_LARGEST_EPSILON = 60.0

Vector = NDArray[np.float64]


def default_guesses(canaries: int) -> int:
    """r for m canaries: 300, or three tenths of fewer than a thousand; even.

    More guesses spend themselves on canaries that cannot be told, fewer leave chance too much.

    >>> default_guesses(10_000), default_guesses(200)
    (300, 60)
    """
    return max(2, 2 * (min(_MOST_GUESSES, int(_SHARE_OF_GUESSES * canaries)) // 2))


def one_run_p_value(
    epsilon: float, *, canaries: int, guesses: int, correct: int, delta: float
) -> float:
    """The largest probability of so many right guesses under (epsilon, delta)-DP."""
    accuracy = 1.0 / (1.0 + math.exp(-epsilon))
    beta = float(binom.sf(correct - 1, guesses, accuracy))
    steps = np.arange(1, correct + 1)
    more = np.cumsum(binom.pmf(correct - steps, guesses, accuracy))
    alpha = float((more / steps).max()) if correct else 0.0
    return min(1.0, beta + 2 * canaries * delta * alpha)


def one_run_bound(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """The largest epsilon that so many right guesses refute; 0 if they refute none.

    Args:
        canaries: m.
        guesses: r, fixed beforehand.
        correct: c.
        delta: of the claim.
        confidence: of the bound.

    Raises:
        AuditInputError: the numbers cannot be.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise AuditInputError(
            f"{correct} right of {guesses} guesses about {canaries} canaries cannot be"
        )

    def excess(epsilon: float) -> float:
        return one_run_p_value(
            epsilon, canaries=canaries, guesses=guesses, correct=correct, delta=delta
        ) - (1 - confidence)

    if excess(0.0) > 0:
        return 0.0
    if excess(_LARGEST_EPSILON) <= 0:
        return _LARGEST_EPSILON
    return float(brentq(excess, 0.0, _LARGEST_EPSILON, xtol=1e-9))


def correct_guesses(scores: Vector, included: NDArray[np.bool_], guesses: int) -> int:
    """How many are right: the r/2 highest scores are guessed in, the r/2 lowest out."""
    half = guesses // 2
    order = np.argsort(scores, kind="stable")
    return int(included[order[len(order) - half :]].sum() + (~included[order[:half]]).sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class OneRun:
    """Outcome of a one-run audit.

    Attributes:
        canaries: m.
        guesses: r.
        correct: c.
        bound: epsilon is at least this, at ``CONFIDENCE``.
    """

    canaries: int
    guesses: int
    correct: int
    bound: float


def one_run(scores: Vector, included: NDArray[np.bool_], *, guesses: int, delta: float) -> OneRun:
    """Audits by one run.

    Args:
        scores: (m,) higher for canaries that look as if they were in.
        included: (m,) which were, by fair coins.
        guesses: r, even, fixed before the scores were seen.
        delta: of the claim.

    Raises:
        AuditInputError: shapes or numbers cannot be.
    """
    if scores.ndim != 1 or scores.shape != included.shape or guesses % 2 or guesses < 2:
        raise AuditInputError(
            f"one-run audit: {scores.shape} scores, {included.shape} coins, {guesses} guesses"
        )
    if not np.isfinite(scores).all():
        raise AuditInputError("one-run audit: a canary's score is not finite")
    correct = correct_guesses(scores, included, guesses)
    bound = one_run_bound(canaries=len(scores), guesses=guesses, correct=correct, delta=delta)
    return OneRun(canaries=len(scores), guesses=guesses, correct=correct, bound=bound)


def detection_power(
    *,
    epsilon: float,
    delta: float,
    canaries: int,
    guesses: int,
    noise_multiplier: float,
    rounds: int,
    rate: float,
    runs: int = 200,
    seed: int = 0,
) -> float:
    """How often the one-run audit would refute a claim if the noise were this.

    Simulates scores alone: a canary that is in shifts its score by one for each round that sampled
    it; the noise on each score is Gaussian.

    Args:
        epsilon: claimed.
        delta: claimed.
        canaries: m.
        guesses: r.
        noise_multiplier: of the noise really added.
        rounds: T.
        rate: probability of being in a round's cohort.
        runs: simulated; the answer's standard error is at most half of 1/sqrt(runs).
        seed: of the simulation, which keeps no secret.
    """
    generator = np.random.default_rng(seed)
    least = next(
        (
            correct
            for correct in range(guesses // 2, guesses + 1)
            if one_run_p_value(
                epsilon, canaries=canaries, guesses=guesses, correct=correct, delta=delta
            )
            <= 1 - CONFIDENCE
        ),
        None,
    )
    if least is None:
        return 0.0
    caught = 0
    for _ in range(runs):
        included = generator.random(canaries) < 0.5
        times = generator.binomial(rounds, rate, canaries).astype(np.float64)
        noise = generator.normal(scale=noise_multiplier * math.sqrt(rounds), size=canaries)
        scores: Vector = np.where(included, times, 0.0) + noise
        caught += correct_guesses(scores, included, guesses) >= least
    return caught / runs


def one_shot_estimate(cosines: Vector, *, dimension: int, delta: float) -> float:
    """Estimates epsilon from the cosines of canaries that were in.

    Fits a normal distribution to them and asks at which epsilon it and N(0, 1/d) differ by delta,
    in whichever direction is worse.

    Args:
        cosines: with the final model's change.
        dimension: d.
        delta: of the claim.

    Raises:
        AuditInputError: fewer than two cosines, or one that is none.
    """
    if len(cosines) < 2 or not np.isfinite(cosines).all():
        raise AuditInputError("one-shot audit: it needs at least two finite cosines")
    scale = math.sqrt(dimension)
    mean, deviation = float(cosines.mean()) * scale, float(cosines.std(ddof=1)) * scale
    if deviation == 0:
        return math.inf

    def worst(epsilon: float) -> float:
        there = _normal_delta(epsilon, mean, deviation)
        back = _normal_delta(epsilon, -mean / deviation, 1 / deviation)
        return max(there, back) - delta

    if worst(0.0) <= 0:
        return 0.0
    high = 1.0
    while worst(high) > 0:
        high *= 2
        if high > 1e6:
            return math.inf
    return float(brentq(worst, 0.0, high, xtol=1e-9))


def _normal_delta(epsilon: float, mean: float, deviation: float) -> float:
    """sup_S P(S) - e^eps Q(S) for P = N(mean, deviation^2), Q = N(0, 1), without overflow.

    The log of the density ratio is a quadratic a x^2 + b x + c: it exceeds epsilon on a half-line
    (deviation 1), inside an interval (deviation below 1) or outside of one (above 1).
    """
    a = (1 - deviation**-2) / 2
    b = mean / deviation**2
    c = -(mean**2) / (2 * deviation**2) - math.log(deviation) - epsilon
    if abs(a) < 1e-12:
        if b == 0:
            return 0.0
        bound = -c / b
        inside = (bound, math.inf) if b > 0 else (-math.inf, bound)
        return _gain([inside], epsilon, mean, deviation)
    root = b * b - 4 * a * c
    if root <= 0:
        # No sign change: with a > 0 the ratio exceeds everywhere, which cannot be for epsilon > 0.
        return 0.0 if a < 0 else -math.expm1(epsilon)
    low, high = sorted(((-b - math.sqrt(root)) / (2 * a), (-b + math.sqrt(root)) / (2 * a)))
    if a < 0:
        return _gain([(low, high)], epsilon, mean, deviation)
    return _gain([(-math.inf, low), (high, math.inf)], epsilon, mean, deviation)


def _gain(
    intervals: list[tuple[float, float]], epsilon: float, mean: float, deviation: float
) -> float:
    """P - e^eps Q of a union of intervals."""
    total = 0.0
    for low, high in intervals:
        under_p = _log_mass((low - mean) / deviation, (high - mean) / deviation)
        under_q = _log_mass(low, high)
        total += math.exp(under_p) - math.exp(min(epsilon + under_q, 700.0))
    return total


def _log_mass(low: float, high: float) -> float:
    """log of the standard normal mass between two points."""
    if low > 0:  # the far tail keeps its digits on the left
        low, high = -high, -low
    above, below = float(log_ndtr(high)), float(log_ndtr(low))
    if above == below:
        return -math.inf
    return above + math.log1p(-math.exp(below - above))
