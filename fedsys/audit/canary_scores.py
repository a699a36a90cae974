"""Canaries' scores against the noise that the ledger claims: their law if it was added.

A canary's score is the inner product of the released sums, minus real clients' contributions, with
the canary's unit direction, in clipping norms (so the canary adds one for each round that summed
it). The strategy is FedAvg with learning rate 1, so the model's change *is* the sum of the
releases; any other linear server step would weight rounds, and `fedsys.audit.empirical` refuses it.

**Null distribution.** Directions e_k are orthonormal. Write the released sum over the committed
rounds as G + S + E:

- G, the Gaussian noise: its coordinates are independent N(0, sigma^2), sigma^2 = sum_u a_u^2
  sigma_u^2 with sigma_u the deviation of what is drawn in round u (from V* and the scale in
  the ledger's events) and a_u = 1; for banded-mf sigma_u is that of Z and a_u the sum of the
  coefficients with which Z_u enters the committed rounds. Orthonormal projections of G are
  independent N(0, sigma^2) again. By ``NOISE.md`` a sum of rounded terms is round(G + U), U
  independent, up to a total variation that the ledger states (``noise_outsider``).
- S, everything that does not depend on G: canaries that are in, the errors of rounding their
  (constant) updates, U. Real clients' updates do depend on the noise of earlier rounds, through
  the model; they are subtracted to the last integer (``wide`` encoding), so nothing of them is
  left.
- E, which may depend on G, and whose length is at most `ScoreLaw.slack`: rounding the noise
  (half an integer a coordinate and round), and the weights to float32.

**One-sided.** Scores of canaries that were left out are G + S + E along their directions, where
S = 0 except for rounding. A shift or further noise must never fail a run, and cannot:

- *Chi-square.* Anderson's theorem ("The integral of a symmetric unimodal function over a symmetric
  convex set and some probability inequalities", Proc. AMS 1955, Theorem 1 and Corollary 2): for
  a centred Gaussian G, P[|G + S| <= r] <= P[|G| <= r] for every S independent of G, and adding
  independent noise only lowers the left side. So P[|scores| + slack <= r] <= P[chi2_n <=
  r^2/sigma^2]. Too *small* a sum of squares refutes. (Allowing for E by the triangle inequality is
  our step: projections on orthonormal directions are no longer than the vector.)
- *Kolmogorov-Smirnov.* By Anderson in one dimension each |G_k + S_k| is stochastically larger than
  |G_k|, independently over k given S, so all can be coupled to be larger at once (our step). Hence
  D+ = sup_x (F_n(x) - F(x)), F the distribution of |N(0, sigma^2)|, is stochastically at most that
  of n independent |N(0, sigma^2)|, whose law is exact (Birnbaum and Tingey, "One-sided confidence
  contours for probability distribution functions", Ann. Math. Stat. 1951). Magnitudes are enlarged
  by the slack for E.
- *Separation.* The mean score of canaries that were in, over a deviation estimated from scores or
  directions without any canary in them, is a noncentral t (Johnson and Welch, "Applications of the
  non-central t-distribution", Biometrika 1940) whose noncentrality is the mean number of rounds
  that summed them over sigma. It falls as sigma grows, realisation by realisation (our step). What
  rounding updates leaves of S, and E, is shorter than the slack, by which numerator and denominator
  are corrected; U, whose variance is n_cap / 12 squared integers (about 1e-5 of the noise's in the
  wide encoding), counts as further noise, as if it were normal (the one approximation here). The
  mean number of rounds is at most its binomial quantile at half the level.

>>> law = ScoreLaw(sigma=0.6, rounds=1, rate=1.0, most=1)
>>> generator = np.random.default_rng(1)
>>> honest = generator.normal(scale=0.6, size=250)
>>> chi_square(honest, law) > 1e-3, chi_square(honest / 1.5, law) < 1e-9
(True, True)
>>> kolmogorov_smirnov(honest, law) > 1e-3, chi_square(3 * honest, law) > 0.999
(True, True)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr
from scipy.stats import binom, chi2, ksone, nct

from fedsys.errors import AuditInputError

__all__ = [
    "ScoreLaw",
    "Separation",
    "chi_square",
    "expected_accuracy",
    "kolmogorov_smirnov",
    "noise_at_most",
    "one_shot_estimate",
    "one_shot_separation",
    "scores_separation",
]

FEWEST_FREE = 30
"""The fewest dimensions without a canary from which a deviation may be estimated."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreLaw:
    """The distribution of scores if the ledger's noise was added.

    Attributes:
        sigma: deviation of the noise on a score, all committed rounds together; above 0.
        rounds: number of reserved rounds, in each of which a canary may have been summed.
        rate: probability of that, independently in each; None where rounds are not independent.
        most: the most rounds that can have summed a canary.
        slack: bound on the L2 norm of what may depend on the noise.
    """

    sigma: float
    rounds: int
    rate: float | None
    most: int
    slack: float = 0.0

    def mean_turns(self, canaries: int, level: float) -> float:
        """Mean number of rounds that summed each of ``canaries``; exceeded with probability at most
        ``level``."""
        if self.rate is None or canaries == 0:
            return float(self.most)
        trials = canaries * self.rounds
        turns = trials if self.rate >= 1 else int(binom.isf(level, trials, self.rate))
        return min(float(self.most), turns / canaries)


# -- the noise itself -----------------------------------------------------------------------------


def chi_square(scores: Vector, law: ScoreLaw) -> float:
    """p-value of the sum of squares being this small, of (n,) scores of canaries left out."""
    _check(scores, 1)
    length = float(np.linalg.norm(scores)) + law.slack
    return float(chi2.cdf((length / law.sigma) ** 2, len(scores)))


def noise_at_most(scores: Vector, law: ScoreLaw, level: float) -> float:
    """The noise is no more than so many times the claimed one, at confidence 1 - ``level``."""
    _check(scores, 1)
    length = float(np.linalg.norm(scores)) + law.slack
    return length / (law.sigma * math.sqrt(float(chi2.ppf(level, len(scores)))))


def kolmogorov_smirnov(scores: Vector, law: ScoreLaw) -> float:
    """p-value of the magnitudes being this small, of (n,) scores of canaries left out."""
    _check(scores, 1)
    sizes = np.sort(np.abs(scores)) + law.slack
    expected = 2 * ndtr(sizes / law.sigma) - 1
    count = len(sizes)
    largest = float((np.arange(1, count + 1) / count - expected).max())
    return 1.0 if largest <= 0 else float(ksone.sf(min(largest, 1.0), count))


# -- canaries that were in ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Separation:
    """How far the mean score of canaries that were in is from 0, as a noncentral t.

    Attributes:
        statistic: t.
        freedom: its degrees of freedom.
        included: number of canaries that were in.
        unit: noncentrality times sigma, if canaries are summed in one round on average.
    """

    statistic: float
    freedom: int
    included: int
    unit: float

    def p_value(self, law: ScoreLaw, level: float, weaker: float = 1.0) -> float:
        """Probability of a statistic this large under the law, plus that of exceeding the turns.

        Args:
            law: the claimed law.
            level: the turns are bounded at half this level; below that a p-value says no more.
            weaker: divides the noise.
        """
        certain = law.rate is None or law.rate >= 1
        besides = 0.0 if certain else level / 2
        turns = law.mean_turns(self.included, level / 2)
        shift = turns * self.unit * weaker / law.sigma
        return min(1.0, float(nct.sf(self.statistic, self.freedom, shift)) + besides)

    def noise_at_most(self, law: ScoreLaw, level: float) -> float:
        """The noise is no more than so many times the claimed one, at confidence 1 - ``level``."""

        def refuted(log_ratio: float) -> bool:
            return self.p_value(law, level, math.exp(-log_ratio)) <= level

        low, high = math.log(1e-4), math.log(1e4)
        if refuted(low):
            return math.exp(low)
        while high - low > 1e-4:
            middle = (low + high) / 2
            low, high = (low, middle) if refuted(middle) else (middle, high)
        return math.exp(high)


def scores_separation(scores: Vector, included: NDArray[np.bool_], law: ScoreLaw) -> Separation:
    """Difference of the two kinds' mean scores, over the deviation of canaries left out.

    Raises:
        AuditInputError: too few of either kind.
    """
    inside, outside = scores[included], scores[~included]
    _check(inside, 1)
    _check(outside, 3)
    spread = float(outside.std(ddof=1)) + law.slack / math.sqrt(len(outside) - 1)
    error = math.sqrt(1 / len(inside) + 1 / len(outside))
    allowed = law.slack * (1 / math.sqrt(len(inside)) + 1 / math.sqrt(len(outside)))
    apart = float(inside.mean() - outside.mean()) - allowed
    return Separation(
        statistic=_ratio(apart, spread * error),
        freedom=len(outside) - 1,
        included=len(inside),
        unit=1 / error,
    )


def one_shot_separation(
    inside: Vector, *, length: float, dimension: int, canaries: int, law: ScoreLaw
) -> Separation:
    """The mean of canaries that were in, over the deviation in directions without a canary.

    The statistic of Andrew, Kairouz, Oh, Oprea, McMahan and Suriyakumar, "One-shot Empirical
    Privacy Estimation for Federated Learning" (ICLR 2024): the mean cosine of canaries with the
    final model, times sqrt(d). They fit a normal distribution to it and estimate; that the estimate
    of the length is independent of the mean, so that their ratio is an exact t, is our step, and
    needs directions that hold no canary.

    Args:
        inside: (n,) scores of canaries that were in.
        length: L2 norm of the change without canaries: sqrt(d) times the deviation in the free
            directions.
        dimension: d.
        canaries: m.
        law: the claimed law.

    Raises:
        AuditInputError: too few canaries or free directions.
    """
    _check(inside, 1)
    free = dimension - canaries
    if free < FEWEST_FREE:
        raise AuditInputError(
            f"one-shot audit: {free} dimensions hold no canary, {FEWEST_FREE} are needed"
        )
    spread = length / math.sqrt(dimension) + law.slack / math.sqrt(free)
    count = len(inside)
    apart = float(inside.mean()) - law.slack / math.sqrt(count)
    return Separation(
        statistic=_ratio(apart * math.sqrt(count), spread),
        freedom=free,
        included=count,
        unit=math.sqrt(count),
    )


def _ratio(over: float, under: float) -> float:
    """A t statistic, clipped to 1e12 where there is hardly any noise."""
    return min(over / under, 1e12) if under > 0 else math.copysign(1e12, over)


def _check(scores: Vector, fewest: int) -> None:
    if scores.ndim != 1 or len(scores) < fewest or not np.isfinite(scores).all():
        raise AuditInputError(
            f"canaries: {len(scores)} scores where at least {fewest}, all finite, are needed"
        )


# -- expectations ---------------------------------------------------------------------------------


def expected_accuracy(law: ScoreLaw, share: float, weaker: float) -> float:
    """The expected fraction of right guesses if the noise were ``weaker`` times weaker.

    Args:
        law: the claimed law.
        share: fraction of canaries about which a guess is made, half at either end.
        weaker: divides the noise; infinity for none.
    """
    if share >= 1:
        share = 1.0
    deviation = max(law.sigma / weaker, 1e-6)
    rate = law.rate if law.rate is not None else min(1.0, law.most / max(law.rounds, 1))
    turns = np.arange(law.rounds + 1)
    chances = binom.pmf(turns, law.rounds, rate)
    seen = chances > 1e-12
    turns, chances = turns[seen], chances[seen] / chances[seen].sum()

    def above(threshold: float) -> tuple[float, float]:
        inside = float(chances @ ndtr((turns - threshold) / deviation))
        return inside, float(ndtr(-threshold / deviation))

    low, high = -10 * deviation, float(turns[-1]) + 10 * deviation
    top = float(brentq(lambda x: sum(above(x)) / 2 - share / 2, low, high, xtol=1e-9))
    bottom = float(brentq(lambda x: sum(above(x)) / 2 - (1 - share / 2), low, high, xtol=1e-9))
    right = above(top)[0] / 2 + (1 - above(bottom)[1]) / 2
    return min(1.0, right / share)


# -- the published estimate -----------------------------------------------------------------------


def one_shot_estimate(cosines: Vector, *, dimension: int, delta: float) -> float:
    """Estimates epsilon from the cosines of canaries that were in: Andrew et al. 2024.

    Fits a normal distribution to them and finds the epsilon at which it and N(0, 1/d) differ by
    delta, in the worse direction. An estimate, not a bound.

    Args:
        cosines: (n,) cosines of the canaries with the final model's change.
        dimension: d.
        delta: the claim's delta.

    Raises:
        AuditInputError: fewer than two cosines, or one that is not finite.
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
        # No sign change: a < 0 means the ratio exceeds nowhere, a > 0 everywhere, where P - e^eps Q
        # is 1 - e^eps, at most 0 for epsilon >= 0.
        return 0.0 if a < 0 else -math.expm1(epsilon)
    low, high = sorted(((-b - math.sqrt(root)) / (2 * a), (-b + math.sqrt(root)) / (2 * a)))
    if a < 0:
        return _gain([(low, high)], epsilon, mean, deviation)
    return _gain([(-math.inf, low), (high, math.inf)], epsilon, mean, deviation)


def _gain(
    intervals: list[tuple[float, float]], epsilon: float, mean: float, deviation: float
) -> float:
    """P - e^eps Q on a union of disjoint intervals."""
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
