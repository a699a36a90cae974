"""How many guesses about canaries can be right under a claim: two theorems about one run.

A fair coin decides whether each of m canaries is in the job. Afterwards r guesses are made: that
the r/2 canaries with the highest scores were in, and the r/2 with the lowest were not; c of the
guesses are right.

**One-run** (Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS
2023, Theorem 5.2): under (epsilon, delta)-differential privacy P[C >= c] is at most

    p = beta + 2 m delta max_i (P[B >= c - i] - beta) / i,   beta = P[B >= c],
    B ~ Bin(r, e^eps / (1 + e^eps)).

**f-DP one-run** (Mahloujifar, Melis and Chaudhuri, "Auditing f-Differential Privacy in One Run",
arXiv 2410.22235, ICML 2025): with p_i = P[C = i], their recursion bounds P[C >= c] by the whole
trade-off curve f rather than by one point on it. Its step, for a two-sided coin, is

    sum_{i in I} (i / m) p_i  <=  1 - f( sum_{i in I} ((r - i + 1) / m) p_(i-1) )    for every I.

The argument, which we give because the audit relies on it: fix all coins but that of canary j, and
let E be the event that the guess about j says "in" and i - 1 of the other guesses are right, i in
I. If j is in, E makes i guesses right, j's among them; if not, i - 1, j's not among them. So f-DP
compares the two sums at j; averaging over j, the other coins and the two sides preserves the
inequality, because 1 - f is concave. With I = {i, i + 1, ...}, R_i = sum_{k >= i} (k/m) p_k and
H_i = sum_{k >= i} ((r - k)/m) p_k it reads H_(i-1) >= least(R_i) for `Tradeoff.least`, and moving
from i to i - 1 adds ((r - i + 1)/m) p_(i-1) to H and ((i - 1)/m) p_(i-1) to R. If P[C >= c] were
tau, then R_c >= tau c / m; going down from the smallest (R_c, H_c) gives the smallest (R_0, H_0),
and R_0 + H_0 > r/m, which is impossible, refutes tau ("audit_rh_with_cap" in the paper). That
starting from all of tau at exactly c is the worst case is the paper's; the tests check it against a
convex program that knows nothing of the recursion.

Both hold whatever the dependence between scores, and whatever else is in the job. r must be fixed
beforehand. More noise than claimed is post-processing of the claimed mechanism, so the bounds on
the probability of a refutation hold for it as well.

>>> round(one_run_bound(canaries=10_000, guesses=300, correct=270, delta=1e-5, level=0.05), 3)
1.854
>>> one_run_bound(canaries=10_000, guesses=300, correct=150, delta=1e-5, level=0.05)
0.0
>>> from fedsys.audit.tradeoff import GaussianTradeoff
>>> fdp_refutes(GaussianTradeoff(0.5), canaries=500, guesses=500, correct=490, level=1e-5)
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom

from fedsys.audit.tradeoff import GaussianTradeoff, Tradeoff
from fedsys.errors import AuditInputError
from fedsys.privacy.accounting.exact_gaussian import composed_epsilon

__all__ = [
    "Choice",
    "candidate_guesses",
    "choose_guesses",
    "correct_guesses",
    "critical_count",
    "fdp_bound",
    "fdp_p_value",
    "fdp_refutes",
    "one_run_bound",
    "one_run_p_value",
]

_LARGEST_EPSILON = 60.0
_LARGEST_MU = 12.0
_CANDIDATES = 14
_LEAST_LOG_P = -700.0

Vector = NDArray[np.float64]


def correct_guesses(scores: Vector, included: NDArray[np.bool_], guesses: int) -> int:
    """How many guesses are right: the r/2 highest scores are guessed in, the r/2 lowest out.

    Args:
        scores: (m,) higher for canaries that look as if they were in.
        included: (m,) which canaries were in, by fair coins.
        guesses: r, even, fixed before the scores were seen.

    Raises:
        AuditInputError: shapes or numbers are impossible.
    """
    fits = scores.ndim == 1 and scores.shape == included.shape
    if not fits or guesses % 2 or not 2 <= guesses <= len(scores):
        raise AuditInputError(
            f"one-run audit: {scores.shape} scores, {included.shape} coins, {guesses} guesses"
        )
    if not np.isfinite(scores).all():
        raise AuditInputError("one-run audit: a canary's score is not finite")
    half = guesses // 2
    order = np.argsort(scores, kind="stable")
    return int(included[order[len(order) - half :]].sum() + (~included[order[:half]]).sum())


# -- Steinke, Nasr and Jagielski ------------------------------------------------------------------


def one_run_p_value(
    epsilon: float, *, canaries: int, guesses: int, correct: int, delta: float
) -> float:
    """The largest probability of ``correct`` or more right guesses under (epsilon, delta)-DP.

    Steinke, Nasr and Jagielski 2023, Theorem 5.2: the formula at the top of this module.
    """
    accuracy = 1.0 / (1.0 + math.exp(-epsilon))
    beta = float(binom.sf(correct - 1, guesses, accuracy))
    steps = np.arange(1, correct + 1)
    more = np.cumsum(binom.pmf(correct - steps, guesses, accuracy))
    alpha = float((more / steps).max()) if correct else 0.0
    return min(1.0, beta + 2 * canaries * delta * alpha)


def one_run_bound(
    *, canaries: int, guesses: int, correct: int, delta: float, level: float
) -> float:
    """The largest epsilon that ``correct`` right guesses refute; 0 if they refute none.

    Args:
        canaries: m.
        guesses: r, fixed beforehand.
        correct: c.
        delta: the claim's delta.
        level: upper bound on the probability that a true epsilon is refuted.

    Raises:
        AuditInputError: the numbers are impossible.
    """
    _check_counts(canaries, guesses, correct)

    def excess(epsilon: float) -> float:
        found = one_run_p_value(
            epsilon, canaries=canaries, guesses=guesses, correct=correct, delta=delta
        )
        return found - level

    if excess(0.0) > 0:
        return 0.0
    if excess(_LARGEST_EPSILON) <= 0:
        return _LARGEST_EPSILON
    return float(brentq(excess, 0.0, _LARGEST_EPSILON, xtol=1e-9))


# -- Mahloujifar, Melis and Chaudhuri -------------------------------------------------------------


def fdp_refutes(
    tradeoff: Tradeoff, *, canaries: int, guesses: int, correct: int, level: float
) -> bool:
    """Whether ``correct`` or more right guesses have probability below ``level`` under the curve.

    Args:
        tradeoff: what the claim promises about one canary.
        canaries: m.
        guesses: r, fixed beforehand.
        correct: c.
        level: tau.

    Raises:
        AuditInputError: the numbers are impossible.
    """
    _check_counts(canaries, guesses, correct)
    # (R_c, H_c) is (right, wrong); each turn of the loop goes from i to i - 1.
    right = level * correct / canaries
    wrong = level * (guesses - correct) / canaries
    whole = guesses / canaries * (1 + 1e-12)
    for count in range(correct - 1, -1, -1):
        needed = tradeoff.least(right)
        if needed <= wrong:  # H, and so R, no longer grows
            return False
        right += count / (guesses - count) * (needed - wrong)
        wrong = needed
        if right + wrong > whole:
            return True
    return False


def fdp_p_value(tradeoff: Tradeoff, *, canaries: int, guesses: int, correct: int) -> float:
    """The smallest level at which ``correct`` right guesses refute the curve, to 0.1 percent."""
    low, high = _LEAST_LOG_P, 0.0

    def refuted(log_level: float) -> bool:
        return fdp_refutes(
            tradeoff,
            canaries=canaries,
            guesses=guesses,
            correct=correct,
            level=math.exp(log_level),
        )

    if not refuted(high):
        return 1.0
    if refuted(low):
        return math.exp(low)
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return math.exp(high)


def fdp_bound(*, canaries: int, guesses: int, correct: int, delta: float, level: float) -> float:
    """The epsilon, at ``delta``, of the least private Gaussian mechanism that is refuted.

    It bounds the epsilon of a Gaussian mechanism only: whether another claim is refuted,
    `fdp_refutes` decides with that claim's own curve.

    Raises:
        AuditInputError: the numbers are impossible.
    """
    low, high = 0.0, _LARGEST_MU

    def refuted(mu: float) -> bool:
        return fdp_refutes(
            GaussianTradeoff(mu), canaries=canaries, guesses=guesses, correct=correct, level=level
        )

    if not refuted(low):
        return 0.0
    if refuted(high):
        low = high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return composed_epsilon(delta, low * low)


# -- how many guesses -----------------------------------------------------------------------------


def candidate_guesses(canaries: int) -> list[int]:
    """Even numbers of guesses, approximately in geometric progression.

    One guess for each canary would be too many: the coins rarely split evenly, and the surplus
    canaries of the more frequent side are guessed wrong even without noise. A margin of three
    standard deviations of the coins is left out.

    >>> candidate_guesses(500)[:4], candidate_guesses(500)[-2:]
    ([4, 6, 8, 12], [302, 432])
    """
    most = 2 * int(max(canaries / 2 - 1.5 * math.sqrt(canaries), canaries / 4))
    if most <= 4:
        return [most] if most else []
    found = np.geomspace(4, most, _CANDIDATES) / 2
    return sorted({2 * round(half) for half in found.tolist()})


def critical_count(guesses: int, refutes: Callable[[int], bool]) -> int | None:
    """The fewest right guesses that refute; None where not even all of them do.

    Args:
        guesses: r.
        refutes: whether c right guesses refute; monotone in c.
    """
    if not refutes(guesses):
        return None
    low, high = guesses // 2, guesses
    if refutes(low):
        return low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if refutes(middle) else (middle, high)
    return high


@dataclass(frozen=True, slots=True)
class Choice:
    """A number of guesses and its merit.

    Attributes:
        merit: (rank of the alternative that it can refute, highest for the weakest departure from
            the claim; margin in standard deviations). Larger is better.
        guesses: r; 0 where no number has any power.
    """

    merit: tuple[int, float]
    guesses: int


def choose_guesses(
    canaries: int,
    critical: Callable[[int], int | None],
    accuracies: Sequence[Callable[[int], float]],
) -> Choice:
    """Chooses r from m and the claim alone, before anything is trained.

    Picks the number for which the expected count of right guesses exceeds the critical count by
    the most standard deviations, under the first alternative for which any does.

    Args:
        canaries: m.
        critical: the fewest right guesses of r that refute the claim, or None.
        accuracies: for each alternative, weakest departure from the claim first, the expected
            fraction of r guesses that are right.
    """
    options = [(r, c) for r in candidate_guesses(canaries) if (c := critical(r)) is not None]
    for place, accuracy in enumerate(accuracies):
        best, chosen = 0.0, 0
        for guesses, least in options:
            share = accuracy(guesses)
            spread = math.sqrt(guesses * share * (1 - share)) + 0.5
            margin = (guesses * share - least + 0.5) / spread
            if margin > best:
                best, chosen = margin, guesses
        if chosen:
            return Choice((len(accuracies) - place, best), chosen)
    return Choice((0, 0.0), 0)


def _check_counts(canaries: int, guesses: int, correct: int) -> None:
    if not 0 <= correct <= guesses <= canaries or not canaries:
        raise AuditInputError(
            f"{correct} right of {guesses} guesses about {canaries} canaries is impossible"
        )
