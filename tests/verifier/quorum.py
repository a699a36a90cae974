"""What rounds cost whose committee is missed: LEDGER.md, "What delta pays", "Quorum"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from scipy.special import bdtr, bdtrc, gammaln

from tests.verifier.plan import Plan

SLACK = 1e-9


def _up(value: float) -> int:
    return math.ceil(value - SLACK)


@cache
def marked_at_most(n: int, marked: int, draws: int, bits: int) -> int:
    """The least x with P[H > x] <= 2^-bits, exactly."""
    total, tail = math.comb(n, draws), 0
    for x in range(min(marked, draws), max(0, draws - (n - marked)), -1):
        tail += math.comb(marked, x) * math.comb(n - marked, draws - x)
        if tail << bits > total:
            return x
    return max(0, draws - (n - marked))


@dataclass(frozen=True)
class Committee:
    size: int
    needed: int
    cost: int


@dataclass(frozen=True)
class Quorum:
    """Of one plan; `corrupt` is a number."""

    corrupt: float
    dropout: float
    colluders: int

    def may_collude(self, n: int) -> int:
        return max(_up(self.corrupt * n), min(self.colluders, n - 2))

    def sized(self, n: int, lost: int, size: int, wrong: int) -> Committee | None:
        bad, stay = self.may_collude(n), n - lost
        live = stay
        if size < n:
            bad = marked_at_most(n, bad, size, 104)
            live = size - marked_at_most(n, n - stay, size, 30)
        votes, tau = (size + bad) // 2 + 1, max(bad, 1)
        packing = live - 2 * wrong - tau
        if live < votes or packing < 1:
            return None
        columns = -(-2048 // min(packing, 2048))
        answers = tau - (-2048 // columns)
        share, proof = 2 * (columns + 8) + 16, 16 * answers
        cost = 10 * (size * share + proof) + size * (268 + share + proof)
        return Committee(size=size, needed=max(votes, answers), cost=cost)

    def chosen(self, n: int, lost: int, size: int | None = None) -> Committee | None:
        if not 2 <= n <= 10_000 or self.may_collude(n) > n - 2:
            return None
        if size is not None:
            sizes = [size]
        elif n <= 100:
            sizes = [n]
        else:
            sizes = sorted({*range(10, min(n, 1000) + 1, 10), *([n] if n <= 1000 else [])})
        halved = 0
        while True:
            wrong = [_up(self.corrupt * each) >> halved for each in sizes]
            usable = [self.sized(n, lost, b, w) for b, w in zip(sizes, wrong, strict=True)]
            found = [each for each in usable if each is not None]
            if found:
                return min(found, key=lambda each: (each.cost, each.size))
            if not any(wrong):
                return None
            halved += 1

    def losses(self, n: int, bits: int) -> int:
        if self.dropout == 0:
            return 0
        lost = 0
        while bdtrc(lost, n, self.dropout) > 2.0**-bits:
            lost += 1
        return min(lost + 1, n - 1)

    @cache  # noqa: B019 - the instances are few and small
    def drawn(self, largest: int) -> tuple[int, int] | None:
        found = None
        for bits in (1, 5, 10, 15, 20, 25, 30, 35, 40):
            committee = self.chosen(largest, self.losses(largest, bits))
            if committee is None:
                break
            found = bits, committee.size
            missed = bdtr(committee.needed - 1, committee.size - 1, 1 - self.dropout)
            if missed <= 2.0**-40:
                break
        return found

    @cache  # noqa: B019 - likewise
    def withstands(self, n: int) -> Committee | None:
        if not 2 <= n <= 10_000 or self.may_collude(n) > n - 2:
            return None
        if n > 100:
            octaves = math.ceil(4 * math.log2(n) - SLACK)
            found = self.drawn(min(max(n, math.floor(2 ** (octaves / 4))), 10_000))
            if found is not None and found[1] <= n:
                committee = self.chosen(n, self.losses(n, found[0]), found[1])
                if committee is not None:
                    return committee
            if n > 1000:
                return self.chosen(n, self.losses(n, 40))
        bad = self.may_collude(n)
        room = n - max((n + bad) // 2 + 1, max(bad, 1) + 1)
        if room < _up(self.dropout * n):
            return None
        return self.chosen(n, min(room, self.losses(n, 40)))

    def fewer(self, needed: int, count: int) -> float:
        if needed > count:
            return 1.0
        return float(bdtr(needed - 1, count, 1 - self.dropout)) if needed > 0 else 0.0

    def given_up(self, others: int, least: int, sizes: list[int]) -> float:
        few, needed, apart = self.fewer(least, others), 0, 0.0
        for n in sizes:
            committee = self.withstands(n)
            if committee is None:
                return 1.0 - few
            if self.dropout == 0:
                continue
            if committee.size == n:
                needed = max(needed, committee.needed)
                continue
            apart += self.fewer(committee.needed, committee.size - (n - others))
            apart += self.fewer(self.may_collude(n) + 2, others)
        together = max(0.0, self.fewer(needed, others) - few)
        return min(1.0 - few, together + apart)


def quorum(plan: Plan) -> float:
    """Part of delta."""
    if plan.corrupt is None or plan.mechanism == "none" or plan.sampling == "arrivals":
        return 0.0
    law = Quorum(corrupt=plan.corrupt, dropout=plan.dropout, colluders=plan.colluders)
    if plan.sampling != "poisson":
        n = round(plan.cohort)
        return min(1.0, plan.rounds * law.given_up(n - 1, plan.least, [n]))
    groups = (plan.apart or 1) if plan.cyclic else 1
    rate = min(1.0, groups * plan.cohort / plan.population)
    sizes = {plan.population // groups, -(-plan.population // groups)}
    return min(1.0, plan.rounds * max(_missed(plan, law, size, rate) for size in sizes))


def _missed(plan: Plan, law: Quorum, size: int, rate: float) -> float:
    mean = rate * size
    width = 9 * math.sqrt(mean) + 40
    most = min(size - 1, plan.cap - 1)
    low, high = min(max(0, math.floor(mean - width)), most), min(most, math.ceil(mean + width))
    terms = [
        _chance(k, size - 1, rate) * law.given_up(k, plan.least, [k, k + 1])
        for k in range(low, high + 1)
    ]
    below = float(bdtr(low - 1, size - 1, rate)) if low > 0 else 0.0
    above = float(bdtrc(high, size - 1, rate)) if high < most else 0.0
    return math.fsum([*terms, below, above])


def _chance(k: int, n: int, rate: float) -> float:
    """P[Bin(n, rate) = k]"""
    if rate == 1:
        return float(k == n)
    ways = float(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
    return math.exp(ways + k * math.log(rate) + (n - k) * math.log1p(-rate))
