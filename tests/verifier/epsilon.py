"""From steps to epsilon: LEDGER.md, "From steps to epsilon"."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaln, hyp2f1, log_ndtr, logsumexp

from tests.verifier.plan import Step

INTEGERS = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 768, 1024)
ORDERS = sorted(
    {1.25, 1.5, 1.75, *(tenth / 10 for tenth in range(20, 81)), *(float(each) for each in INTEGERS)}
)


def squares(steps: Counter[Step]) -> float:
    """mu^2"""
    if any(step.multiplier <= 0 for step, count in steps.items() if count):
        return math.inf
    return math.fsum(count * step.count / step.multiplier**2 for step, count in steps.items())


def exact(mu2: float, delta: float) -> float:
    """E: the exact cost of Gaussian mechanisms."""
    if mu2 in (0.0, math.inf):
        return mu2
    mu = math.sqrt(mu2)

    def excess(epsilon: float) -> float:
        first = float(log_ndtr(mu / 2 - epsilon / mu))
        second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
        if second >= first:
            return -math.inf
        return first + math.log(-math.expm1(second - first)) - math.log(delta)

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(lambda x: max(excess(x), -1e3), 0.0, high, xtol=1e-13, rtol=1e-14))


def accountant(steps: Counter[Step], delta: float) -> str:
    if all(step.rate == 1 for step in steps):
        return "gaussian"
    return "rdp" if delta < 1e-12 or any(step.replaces for step in steps) else "pld"


def epsilon(steps: Counter[Step], delta: float) -> float:
    steps = +steps
    plain = exact(squares(steps), delta)
    if plain in (0.0, math.inf) or accountant(steps, delta) == "gaussian":
        return plain
    if accountant(steps, delta) == "pld":
        found = pld(steps, delta)
        if math.isfinite(found):
            return min(plain, found)
    return min(plain, renyi(steps, delta))


# -- privacy loss distributions --------------------------------------------------------------------


def pld(steps: Counter[Step], delta: float) -> float:
    merged: Counter[tuple[float, float]] = Counter()
    for step, count in steps.items():
        merged[step.multiplier, step.rate] += count * step.count
    rows = tuple((z, r, k) for (z, r), k in sorted(merged.items()))
    rounding = 2.0**-49 * sum(k for _, r, k in rows if r < 1)
    if any(r < 1 and k > 2**20 for _, r, k in rows) or rounding > delta / 2:
        return math.inf
    delta -= rounding
    width = min(
        min(r * math.sqrt(math.expm1(min(z**-2, 50.0))) for z, r, _ in rows) / 8,
        max(0.05, math.fsum(k / z**2 for z, _, k in rows) / 2**17),
    )
    span = max(map(_span, rows))
    width = max(width, span / 2**17)
    best = _at(rows, delta, width)
    for _ in range(12):
        width /= 2
        if not math.isfinite(best) or max(best, span) / width > 2**17:
            break
        finer = _at(rows, delta, width)
        moved, best = best - finer, min(best, finer)
        if moved <= 5e-4 * finer + 1e-7:
            break
    return best


def _span(row: tuple[float, float, int]) -> float:
    z, r, k = row
    z = z / math.sqrt(k) if r == 1 else z
    x = (1 + 20 * z) / (2 * z * z)
    up = x if x > 600 else math.log1p(r * math.expm1(x))
    return up + min(x if r == 1 else -math.log1p(-r), x)


@lru_cache(maxsize=256)
def _at(rows: tuple[tuple[float, float, int], ...], delta: float, width: float) -> float:
    from dp_accounting.pld import privacy_loss_distribution

    total: Any = None
    with np.errstate(over="ignore"):
        for z, r, k in rows:
            part = privacy_loss_distribution.from_gaussian_mechanism(
                z / math.sqrt(k) if r == 1 else z,
                value_discretization_interval=width,
                sampling_prob=r,
                use_connect_dots=True,
            )
            if r < 1 and k > 1:
                part = part.self_compose(k)
            total = part if total is None else total.compose(part)
        return float(total.get_epsilon_for_delta(delta))


# -- Rényi divergences -----------------------------------------------------------------------------


def renyi(steps: Counter[Step], delta: float) -> float:
    total = np.zeros(len(ORDERS))
    for step, count in steps.items():
        if count:
            total += count * step.count * _curve(step.multiplier, step.rate, step.replaces)
    orders = np.array(ORDERS)
    found = total + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    found[delta**2 + np.expm1(-total) > 0] = 0.0
    return max(float(found.min()), 0.0)


@lru_cache(maxsize=256)
def _curve(z: float, r: float, replaces: bool) -> Any:
    nodes = range(2, INTEGERS[-1] + 1)
    plain = _extended({a: (a - 1) * a / (2 * z * z) for a in nodes})
    if r == 1:
        return plain
    if replaces:
        sampled = _extended({a: _replacing(z, r, a) for a in INTEGERS})
    else:
        sampled = np.array([_removing(z, r, alpha) / (alpha - 1) for alpha in ORDERS])
    return np.minimum(sampled, plain)


def _extended(moments: dict[int, float]) -> Any:
    """(alpha - 1) R at integers, to R at all orders."""
    nodes = np.array([1, *moments], dtype=float)
    values = np.array([0.0, *moments.values()])
    orders = np.array(ORDERS)
    return np.interp(orders, nodes, values) / (orders - 1)


def _binomial(alpha: float, j: Any) -> Any:
    return gammaln(alpha + 1) - gammaln(j + 1) - gammaln(alpha - j + 1)


def _removing(z: float, r: float, alpha: float) -> float:
    whole = int(alpha)
    if alpha == whole:
        j = np.arange(2, whole + 1, dtype=float)
        logs = _binomial(alpha, j) + (alpha - j) * math.log1p(-r) + j * math.log(r)
        return _log1p_exp(logs, j * (j - 1) / (2 * z * z))
    low, high = whole * (whole - 1) / (2 * z * z), (whole + 1) * whole / (2 * z * z)
    if high > 600:
        return math.inf
    part = alpha - whole
    factor = math.exp(float(_binomial(alpha, float(whole))) + part * math.log1p(-r))

    def g(w: float) -> float:
        return factor * float(hyp2f1(-part, 1.0, whole + 1.0, -w / (1 - r)))

    j = np.arange(2, whole, dtype=float)
    logs = _binomial(alpha, j) + (alpha - j) * math.log1p(-r) + j * math.log(r)
    below = float((np.exp(logs) * np.expm1(j * (j - 1) / (2 * z * z))).sum())
    tail = math.exp(low) * g(r * math.exp(high - low)) - g(r)
    return math.log1p(below + r**whole * tail)


def _log1p_exp(logs: Any, moments: Any) -> float:
    """log(1 + sum exp(logs) (exp(moments) - 1))"""
    if (logs + moments).max() > 600:
        return float(logsumexp(np.append(logs + moments, 0.0)))
    return math.log1p(float((np.exp(logs + moments) - np.exp(logs)).sum()))


def _replacing(z: float, r: float, order: int) -> float:
    second = 1 / z**2
    logs = [_binomial(order, 2.0) + 2 * math.log(r) + math.log(2) + second]
    if second < 300:
        four = 4 * math.expm1(second)
        logs[0] = min(logs[0], _binomial(order, 2.0) + 2 * math.log(r) + math.log(four))
    j = np.arange(3, order + 1, dtype=float)
    rest = _binomial(order, j) + j * math.log(r) + math.log(2) + (j - 1) * j / (2 * z * z)
    every = np.concatenate([logs, rest])
    if every.max() < -30:
        return math.log1p(float(np.exp(every).sum()))
    return float(logsumexp(np.append(every, 0.0)))
