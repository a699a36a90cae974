"""Rényi differential privacy of one round, as vectors over a fixed set of orders.

A *loss* is an array over ``INTEGER_GRID`` (orders 0..MAX_ORDER): eps(l) = D_l(P || Q) for an
update that is certainly in the sum. A *curve* is an array over ``ORDERS``; the curves of several
rounds add up, and ``epsilon_of`` converts the sum.

**Tight amplification by Poisson sampling.** With probability q the sum contains the client's update
(distribution P), otherwise not (Q). Write L = P/Q and M_l = E_Q[L^l] = exp((l-1) eps(l)). For an
integer order, the binomial theorem gives *exactly*

    D_a((1-q) Q + q P || Q) = 1/(a-1) log sum_l C(a,l) (1-q)^(a-l) q^l M_l.

The other direction D_a(Q || (1-q) Q + q P) is never larger: reflecting x -> v - x swaps Q with P
(a Gaussian is symmetric), which is the condition of Mironov, Talwar and Zhang, "Rényi
Differential Privacy of the Sampled Gaussian Mechanism" (2019), Theorem 5. The sum is exact, whereas
the generic bound of Zhu and Wang (2019) has a factor of 3 in its higher terms.

**Fractional orders.** For a = m + t with 0 < t < 1, Taylor's formula around 1 - q gives

    (1 - q + w)^a = sum_{j<m} C(a,j) (1-q)^(a-j) w^j + w^m g(w),   w = q L,
    g(w) = C(a,m) m int_0^1 (1-x)^(m-1) (1-q+xw)^t dx = C(a,m) (1-q)^t 2F1(-t, 1; m+1; -w/(1-q)),

and g is concave and increasing with g(0) > 0. By Jensen's inequality under the weights L^m,
E[w^m g(w)] <= q^m M_m g(q M_(m+1) / M_m). This increases in both moments, so upper bounds on them
may be inserted. At integer orders it is the exact sum.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.numerics.binomial import log_choose
from fedsys.privacy.numerics.hypergeometric import concave_tail

__all__ = [
    "INTEGER_GRID",
    "MAX_ORDER",
    "ORDERS",
    "amplify",
    "curve_of",
    "epsilon_of",
    "gaussian_loss",
    "replacement_sampled",
]

Vector = NDArray[np.float64]

MAX_ORDER = 1024
INTEGER_GRID: Vector = np.arange(MAX_ORDER + 1, dtype=np.float64)

_FRACTIONS = (1.25, 1.5, 1.75, *(m + t / 10 for m in range(2, 8) for t in range(1, 10)))
_INTEGERS = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 768, 1024)
ORDERS: Vector = np.array(sorted((*_FRACTIONS, *map(float, _INTEGERS))))
"""The orders at which rounds are composed."""
ORDERS.setflags(write=False)


def gaussian_loss(noise_multiplier: float) -> Vector:
    """The loss (MAX_ORDER + 1,) of Gaussian noise of z sensitivities: eps(l) = l / (2 z^2).

    Mironov, "Rényi Differential Privacy" (2017), Proposition 7.
    """
    if noise_multiplier <= 0:
        return _without_low_orders(np.full_like(INTEGER_GRID, np.inf))
    return _without_low_orders(INTEGER_GRID / (2 * noise_multiplier**2))


def _without_low_orders(loss: Vector) -> Vector:
    loss[:2] = 0.0
    return loss


def curve_of(loss: Vector) -> Vector:
    """A loss at ``ORDERS``: exact at integers; between them interpolated from above, which is
    sound because (a - 1) eps(a) is convex in a.

    Args:
        loss: (MAX_ORDER + 1,).

    Returns:
        (orders,).
    """
    moments = (INTEGER_GRID - 1) * loss
    moments[:2] = 0.0
    with np.errstate(invalid="ignore"):
        curve: Vector = np.interp(ORDERS, INTEGER_GRID[1:], moments[1:]) / (ORDERS - 1)
    curve[np.isnan(curve)] = np.inf
    return curve


def amplify(loss: Vector, rate: float) -> Vector:
    """The curve (orders,) of a Poisson-sampled round, tight; never above the unamplified curve.

    Args:
        loss: (MAX_ORDER + 1,) the loss of an update that is certainly in the sum.
        rate: q in (0, 1].

    Raises:
        MechanismError: ``rate`` is outside (0, 1].
    """
    if not 0 < rate <= 1:
        raise MechanismError(f"the sampling rate must be in (0, 1], got {rate!r}")
    plain = curve_of(loss)
    if rate == 1 or not np.isfinite(loss).all():
        return plain
    moments = np.maximum(INTEGER_GRID - 1, 0.0) * loss  # log M_l
    curve = np.empty_like(ORDERS)
    for index, order in enumerate(ORDERS):
        whole = int(order)
        if order == whole:
            excess = _integer_excess(moments, rate, whole)
        else:
            excess = _fractional_excess(moments, rate, float(order))
        curve[index] = excess / (order - 1)
    return np.minimum(curve, plain)


@lru_cache(maxsize=256)
def _log_binomials(order: float, count: int) -> Vector:
    """log C(order, j) for j = 0..count-1 <= order."""
    return log_choose(order, np.arange(count))


def _log1p_of_exp_terms(logs: Vector, moments: Vector) -> float:
    """log(1 + sum exp(logs) (exp(moments) - 1)), without overflow, exact for small sums."""
    grown = logs + moments
    peak = float(grown.max(initial=-math.inf))
    if peak > 600:
        # 1 + sum exp(logs) (exp(moments) - 1) <= 1 + sum exp(logs + moments): an upper bound.
        return float(np.logaddexp(0.0, peak + math.log(float(np.exp(grown - peak).sum()))))
    small = moments < 30
    terms = np.exp(logs) * np.expm1(np.where(small, moments, 0.0))
    terms[~small] = np.exp(grown[~small])
    return math.log1p(float(terms.sum()))


def _integer_excess(moments: Vector, rate: float, order: int) -> float:
    """(a - 1) times the amplified loss at an integer order.

    The weights C(a,j) (1-q)^(a-j) q^j add up to 1 and M_0 = M_1 = 1, so the sum of weights times
    moments is 1 plus the sum over j >= 2 of weights times (M_j - 1).
    """
    j = INTEGER_GRID[2 : order + 1]
    logs = _log_binomials(float(order), order + 1)[2:]
    logs = logs + (order - j) * math.log1p(-rate) + j * math.log(rate)
    return _log1p_of_exp_terms(logs, moments[2 : order + 1])


def _fractional_excess(moments: Vector, rate: float, order: float) -> float:
    """(a - 1) times an upper bound on the amplified loss between two integer orders.

    The bound of the module's docstring. With M_j = 1 for all j (no loss) Taylor's formula gives
    exactly 1, which is subtracted term by term so that small losses keep their digits.
    """
    whole = int(order)
    part = order - whole
    low, high = float(moments[whole]), float(moments[whole + 1])
    if high > 600:
        return math.inf
    rest = 1.0 - rate
    below = 0.0
    if whole > 2:
        j = INTEGER_GRID[2:whole]
        logs = _log_binomials(order, whole)[2:] + (order - j) * math.log(rest) + j * math.log(rate)
        below = float((np.exp(logs) * np.expm1(moments[2:whole])).sum())
    coefficient = math.exp(float(log_choose(order, whole)) + part * math.log(rest))

    def concave(w: float) -> float:
        return coefficient * concave_tail(part, whole, w / rest)

    tail = math.exp(low) * concave(rate * math.exp(high - low)) - concave(rate)
    excess = below + rate**whole * tail * (1 + 1e-12)
    return math.log1p(excess) if math.isfinite(excess) else math.inf


def replacement_sampled(loss: Vector, rate: float, pure: float = math.inf) -> Vector:
    """The curve (orders,) of a round on a uniform subset of fixed size, neighbours by replacement.

    Wang, Balle and Kasiviswanathan, "Subsampled Rényi Differential Privacy and Analytical Moments
    Accountant" (2019), Theorem 9, for integer orders.

    Args:
        loss: (MAX_ORDER + 1,) the loss of the unsampled mechanism *for replacement* (twice the
            sensitivity of adding a client).
        rate: the subset's size over the population's.
        pure: eps(infinity) of the mechanism, if finite.
    """
    plain = curve_of(loss)
    if rate == 1 or not np.isfinite(loss).all():
        return plain
    log_pure = math.log(math.expm1(pure)) if pure < 500 else math.inf
    log_terms = np.full_like(INTEGER_GRID, -np.inf)
    # 4 (e^eps(2) - 1), at most e^eps(2) min{2, (e^eps(inf) - 1)^2}
    second = float(loss[2])
    log_terms[2] = min(
        math.log(4) + second + math.log(-math.expm1(-second)) if second > 0 else -math.inf,
        second + min(math.log(2), 2 * log_pure),
    )
    j = INTEGER_GRID[3:]
    log_terms[3:] = (j - 1) * loss[3:] + np.minimum(math.log(2), j * log_pure)
    integers = np.full_like(INTEGER_GRID, np.inf)
    integers[:2] = 0.0
    for order in _INTEGERS:
        terms = _log_binomials(float(order), order + 1)[2:] + INTEGER_GRID[
            2 : order + 1
        ] * math.log(rate)
        terms = terms + log_terms[2 : order + 1]
        peak = float(terms.max())
        total = float(np.logaddexp(0.0, peak + math.log(float(np.exp(terms - peak).sum()))))
        if peak < -30:  # log1p keeps the digits of a small sum
            total = math.log1p(float(np.exp(terms).sum()))
        integers[order] = total / (order - 1)
    known = np.array(_INTEGERS, dtype=np.intp)
    nodes = np.concatenate(([1.0], INTEGER_GRID[known]))
    logs = np.concatenate(([0.0], (INTEGER_GRID[known] - 1) * integers[known]))
    curve: Vector = np.interp(ORDERS, nodes, logs) / (ORDERS - 1)
    return np.minimum(curve, plain)


def epsilon_of(curve: Vector, delta: float, orders: Vector = ORDERS) -> float:
    """The smallest epsilon that a curve (orders,) gives at ``delta``.

    Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (2020),
    Proposition 12: eps = rdp + log(1 - 1/a) - log(delta a) / (a - 1). It is 0 where the
    Kullback-Leibler divergence alone keeps the total variation below delta, as in dp-accounting.

    Raises:
        MechanismError: ``delta`` is outside (0, 1).
    """
    if not 0 < delta < 1:
        raise MechanismError(f"delta must be in (0, 1), got {delta!r}")
    candidates = curve + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    candidates = np.where(delta**2 + np.expm1(-curve) > 0, 0.0, candidates)
    return max(float(candidates.min()), 0.0)
