"""What delta pays before any step is accounted: LEDGER.md, "What delta pays", and NOISE.md."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import bdtr, bdtrc

from tests.verifier.chain import require
from tests.verifier.epsilon import epsilon, exact, renyi, squares
from tests.verifier.plan import Plan, Step, close
from tests.verifier.quorum import quorum

VIEWS = ("outsider", "participant", "server")


@dataclass(frozen=True)
class Parts:
    """Of delta.

    Attributes:
        stated: as the header should have them.
        covered: epsilon above which a view has none.
        distance: K_v by view.
    """

    stated: dict[str, float]
    covered: dict[str, float]

    def of(self, view: str) -> float:
        return self.stated[view]


def parts(plan: Plan) -> Parts:
    """Delta's parts, derived from the plan alone."""
    missed = quorum(plan)
    aborts = min(1.0, _bounds(plan) + missed)
    if plan.mechanism == "none" or plan.sampling == "arrivals":
        aborts = 0.0
    elif plan.mechanism != "none":
        require(max(missed, aborts) <= plan.delta / 10, "aborts take too much of delta")
    stated: dict[str, float] = {"aborts": aborts}
    if plan.corrupt is not None:
        stated["quorum"] = missed
    covered: dict[str, float] = {}
    for view in VIEWS:
        charge, covered[view], is_covered = _charge(plan, view)
        refused = view == plan.body["guarantee"] and not is_covered
        require(plan.mechanism == "none" or not refused, "the noise is too coarse")
        stated[f"noise_{view}"] = charge
        stated[view] = plan.delta - charge - (0.0 if view == "server" else aborts)
    return Parts(stated=stated, covered=covered)


def check_parts(header: dict[str, Any], found: Parts) -> None:
    stated = header.get("delta_parts")
    require(isinstance(stated, dict) and set(stated) == set(found.stated), "other parts of delta")
    for name, value in found.stated.items():
        said = (stated or {})[name]
        require(close(said, value, 1e-6), f"delta_parts.{name} is {said}, not {value}")


def _bounds(plan: Plan) -> float:
    stays = 1 - plan.dropout
    if plan.sampling != "poisson":
        return plan.rounds * float(bdtr(plan.least - 1, round(plan.cohort) - 1, stays))
    groups = (plan.apart or 1) if plan.cyclic else 1
    rate = min(1.0, groups * plan.cohort / plan.population)
    largest, smallest = -(-plan.population // groups), plan.population // groups
    over = 0.0
    if plan.cap <= largest - 1:
        over = float(bdtrc(plan.cap - 1, largest - 1, rate))
    return plan.rounds * (over + float(bdtr(plan.least - 1, smallest - 1, rate * stays)))


# -- the noise's distance from a Gaussian ----------------------------------------------------------


def _terms(plan: Plan, view: str) -> tuple[float, int, int, int] | None:
    """(sigma, fewest, most, draws)"""
    norm = plan.geometry(plan.clip)[2]
    share, total, cap = plan.share * norm, plan.total * norm, plan.cap
    mechanism = plan.mechanism
    if mechanism == "example-gaussian":
        return plan.z * 2**20, 1, 1, plan.body["steps"]
    if mechanism in ("central-gaussian", "banded-mf") and view != "server":
        return (total if mechanism == "central-gaussian" else plan.white(norm)), 1, 1, 1
    if mechanism not in ("distributed-gaussian", "local-gaussian"):
        return None
    if view == "outsider":
        if plan.body["noise"] == "once":
            return total, 1, 1, 1
        return share, cap, cap, cap
    if view == "participant":
        return share, max(cap - plan.curious, 1), cap, cap
    return (share, 1, 1, 1) if mechanism == "local-gaussian" else (share, plan.honest, cap, cap)


def _charge(plan: Plan, view: str) -> tuple[float, float, bool]:
    """(charge, epsilon that it covers, whether that is the view's)"""
    terms = _terms(plan, view)
    if terms is None:
        return 0.0, math.inf, True
    sigma, fewest, most, draws = terms
    grids = 1e-300 if 2**11 < sigma <= 2**19 else 0.0
    one = tau(sigma, fewest, most) + draws * (math.ldexp(2 * (38 * sigma + 2), -1024) + grids)
    distance = one * plan.geometry(plan.clip)[0] * plan.rounds
    if distance == 0:
        return 0.0, math.inf, True
    steps: Counter[Step] = Counter(
        {
            "outsider": {plan.outsider: plan.turns(plan.rounds)},
            "participant": {plan.shared: plan.turns(plan.rounds)},
            "server": {plan.server(): plan.own(plan.rounds)},
        }[view]
    )
    half = plan.delta / 2
    x = exact(squares(steps), half)

    def charge() -> float:
        return math.inf if x > 700 else (1 + math.exp(x)) * distance

    for tighter in (renyi, epsilon) if view == "outsider" else ():
        if charge() > 1e-6 * plan.delta and x < 1e4:
            x = min(x, tighter(steps, half))
    if charge() <= plan.delta / 100:
        return charge(), max(x, 0.0), True
    paid = 1e-6 * plan.delta
    if paid < math.exp(100) * distance:
        paid = plan.delta / 100
    return paid, math.log(max(paid / distance - 1, 1.0)), False


def tau(sigma: float, fewest: int, most: int) -> float:
    """NOISE.md: distance of sums of rounded Gaussians from a post-processed Gaussian."""
    fewest = max(fewest, 2)
    if most < fewest:
        return 0.0
    if sigma >= 2:
        k, least = 0.94 * (fewest - 1), 2 * (math.pi * sigma) ** 2
        log = math.log(1.1 * most * (_width(sigma, most) + 1))
        log += 1.73 * most * math.exp(-min(least, 700.0)) - least * k / (k + 1)
        bound = math.exp(max(log, -690.0))
        if bound < 1e-60:
            return max(bound, 1e-300)
    found = max(_cells(sigma, *run) for run in _runs(fewest, most))
    return min(max(found, 1e-300), 1.0)


def _runs(fewest: int, most: int) -> Iterator[tuple[int, int]]:
    first = fewest
    while first <= most:
        last = first if first < fewest + 4096 else min(most, first + first // 64)
        yield first, last
        first = last + 1


def _width(sigma: float, n: int) -> float:
    return n / 2 + 46 * sigma * math.sqrt(n) + 1


def _cells(sigma: float, first: int, last: int) -> float:
    edges = np.linspace(0.0, math.pi, 1025)
    left, t = edges[:-1], edges[1:]
    log_a = -((sigma * left) ** 2) / 2 + np.log(np.sinc(left / (2 * math.pi)))
    sine = np.sin(t / 2)
    b = sine * math.exp(-((9 * math.pi * sigma) ** 2) / 2) / (4.5 * math.pi)
    b = b / -math.expm1(-19 * (math.pi * sigma) ** 2 / 2)
    for m in range(1, 5):
        for w in (2 * math.pi * m - t, 2 * math.pi * m + 0 * t):
            b = b + np.exp(-((sigma * w) ** 2) / 2) * sine / (w / 2)
    with np.errstate(under="ignore"):
        growth = last * np.log1p(b / np.exp(log_a))
        logs = first * log_a + growth + np.log(-np.expm1(-growth))
        cells = np.minimum(np.exp(np.minimum(logs, 1.0)), 2.0)
        mean, square = float(cells.mean()), float((cells**2).mean())
    width = _width(sigma, last)
    return (1 + max(1e-9, last * 2.0**-50)) * min(
        (width + 0.5) * mean, 0.5 * math.sqrt((2 * width + 1) * square)
    )
