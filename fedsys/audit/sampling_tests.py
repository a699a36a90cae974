"""Tests that honest sampling fails with probability at most `FALSE_ALARM`, all of them together.

Each test states an upper bound on the probability that honest sampling gives what was observed or
something more extreme; the bounds are proved, not asymptotic, so the false-alarm rate is too:

- *Sizes and totals* under Poisson sampling are binomial: exact tails.
- *Counts per client* are Binomial(rounds, q) under Poisson and under fixed-size sampling: exact
  tails, and a union bound over the clients.
- *Spread of the counts.* Sums over clients of (count - mean)_+^2 and (mean - count)_+^2, too large
  (some clients are preferred) or too small (everybody takes turns). Chernoff's bound with the exact
  moment generating function of one client. Under fixed-size sampling counts are not independent,
  but negatively associated (Joag-Dev and Proschan 1983, permutation distributions), and the
  exponential of a monotone function then has at most the independent case's mean.
- *Overlaps at a lag* under Poisson sampling: how often a client attends both turn j and turn
  j + lag is a function of independent coins, whose moment generating function transfer matrices
  give. Under
  fixed-size sampling overlaps are independent hypergeometric variables, whose moment generating
  function is at most the binomial one's (Hoeffding 1963, Theorem 4).
- *Overlap of two cohorts*: binomial or hypergeometric given the earlier one, and a union bound over
  pairs of rounds.
- *A cohort that occurs twice*: a union bound over pairs of rounds.

The smallest bound, times the number of tests, is compared with `FALSE_ALARM` (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import binom, hypergeom

from fedsys.audit.cohort_counts import LAGS, CohortCounts, Pair, Scheme

__all__ = ["FALSE_ALARM", "Outcome", "outcomes", "unlikely"]

FALSE_ALARM = 1e-6
"""Upper bound on the probability that honest sampling is called unlikely, all tests together."""

_SCALES = np.logspace(-7, 2, 73)
"""Chernoff exponents for sums of scaled squared deviations; any fixed set is sound."""
_TILTS = np.concatenate([-np.logspace(-6, 1, 57), np.logspace(-6, 1, 57)])
"""Chernoff exponents for counts of overlaps."""
_CLIPPED_AT = 100.0
"""One cohort's squared deviation in size, in variances, is clipped to this."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One test.

    Attributes:
        chance: bound on the probability that honest sampling is this extreme, in (0, 1].
        seen: what was observed, as text.
    """

    chance: float
    seen: str


def unlikely(counts: CohortCounts) -> str | None:
    """Why the scheme is unlikely to have drawn these cohorts; None if it may have."""
    found = list(outcomes(counts))
    if not found:
        return None
    worst = min(found, key=lambda outcome: outcome.chance)
    if worst.chance * len(found) >= FALSE_ALARM:
        return None
    bound = worst.chance * len(found)
    likelihood = f"{bound:.1g}" if bound > 0 else "1e-300"
    return f"{worst.seen}: by chance with a probability of at most {likelihood}"


def outcomes(counts: CohortCounts) -> Iterator[Outcome]:
    """Every test on the counts: a fixed number of them, whatever was observed."""
    if not counts.rounds:
        return
    poisson = counts.scheme.size is None
    if poisson:
        yield _total(counts)
        yield _size(counts)
        yield from _spread_of_sizes(counts)
    yield from _client(counts)
    yield from _spread_of_counts(counts)
    yield from _overlaps(counts)
    yield _pair(counts, counts.highest, above=True)
    yield _pair(counts, counts.lowest, above=False)
    yield _repeated(counts)


def _total(counts: CohortCounts) -> Outcome:
    eligible = sum(members for members, _ in counts.sizes)
    asked = sum(size for _, size in counts.sizes)
    rate = counts.scheme.rate
    tail = min(binom.cdf(asked, eligible, rate), binom.sf(asked - 1, eligible, rate))
    return Outcome(
        chance=min(1.0, 2 * float(tail)),
        seen=f"{asked} invitations in {counts.rounds} rounds, {eligible * rate:.0f} expected",
    )


def _size(counts: CohortCounts) -> Outcome:
    members, sizes = np.array(counts.sizes, dtype=np.int64).T
    rate = counts.scheme.rate
    tails = np.minimum(binom.cdf(sizes, members, rate), binom.sf(sizes - 1, members, rate))
    at = int(tails.argmin())
    return Outcome(
        chance=min(1.0, 2 * counts.rounds * float(tails[at])),
        seen=f"a cohort of {sizes[at]}, {members[at] * rate:.0f} expected",
    )


def _spread_of_sizes(counts: CohortCounts) -> Iterator[Outcome]:
    """Sizes that vary too much, or too little, over the rounds."""
    rate = counts.scheme.rate
    kinds, often = np.unique([members for members, _ in counts.sizes], return_counts=True)
    laws = [
        (_size_law(int(members), rate), int(times))
        for members, times in zip(kinds, often, strict=True)
    ]
    seen = sum(
        min((size - members * rate) ** 2 / _variance(members, rate), _CLIPPED_AT)
        for members, size in counts.sizes
    )
    for above in (True, False):
        yield Outcome(
            chance=_chernoff(laws, seen, _SCALES if above else -_SCALES),
            seen=f"cohort sizes vary too {'much' if above else 'little'} over "
            f"{counts.rounds} rounds ({seen / counts.rounds:.3g} times the variance expected)",
        )


def _variance(trials: float, rate: float) -> float:
    return max(trials * rate * (1 - rate), 1e-9)


Law = tuple[Vector, Vector]
"""Values of a statistic, and the logarithms of (at least) their probabilities."""


def _size_law(members: int, rate: float) -> Law:
    """The law of a binomial size's clipped squared deviation; what is further out is clipped."""
    variance = _variance(members, rate)
    reach = math.sqrt(_CLIPPED_AT * variance)
    low = max(0, math.floor(members * rate - reach))
    high = min(members, math.ceil(members * rate + reach))
    sizes = np.arange(low, high + 1)
    values = np.minimum((sizes - members * rate) ** 2 / variance, _CLIPPED_AT)
    outside = float(binom.cdf(low - 1, members, rate) + binom.sf(high, members, rate))
    with np.errstate(divide="ignore"):
        logs = np.append(binom.logpmf(sizes, members, rate), np.log(outside))
    return np.append(values, _CLIPPED_AT), logs


def _chernoff(laws: list[tuple[Law, int]], seen: float, exponents: Vector) -> float:
    """Bound on P[S >= seen] (exponents above 0) or P[S <= seen] (below) of an independent sum."""
    logs = np.zeros_like(exponents)
    for (values, chances), times in laws:
        logs += times * np.array([_log_mean(chances + tilt * values) for tilt in exponents])
    return math.exp(min(0.0, float((logs - exponents * seen).min())))


def _log_mean(logs: Vector) -> float:
    """log of the sum of exp(logs), without overflow."""
    highest = float(logs.max())
    return highest + math.log(float(np.exp(logs - highest).sum()))


def _client(counts: CohortCounts) -> Iterator[Outcome]:
    """The client that was invited most often, and least often."""
    scheme = counts.scheme
    for above in (True, False):
        least, worst = 1.0, "no client stands out"
        for turns, groups in _groups_by_turns(counts).items():
            often = [counts.asked[group :: scheme.groups] for group in groups]
            ends = [int(some.max() if above else some.min()) for some in often if some.size]
            if not ends:
                continue
            end = max(ends) if above else min(ends)
            tail = float(
                binom.sf(end - 1, turns, scheme.rate)
                if above
                else binom.cdf(end, turns, scheme.rate)
            )
            if tail < least:
                group = next(
                    g for g, some in zip(groups, often, strict=True) if some.size and end in some
                )
                client = group + scheme.groups * int(
                    np.argmax(counts.asked[group :: scheme.groups] == end)
                )
                least = tail
                worst = (
                    f"client {client} was invited in {end} of {turns} rounds, "
                    f"{turns * scheme.rate:.3g} expected"
                )
        yield Outcome(chance=min(1.0, scheme.population * least), seen=worst)


def _groups_by_turns(counts: CohortCounts) -> dict[int, list[int]]:
    """Cyclic groups by the number of rounds that they had."""
    found: dict[int, list[int]] = {}
    for group, turns in counts.turns.items():
        found.setdefault(turns, []).append(group)
    return found


def _spread_of_counts(counts: CohortCounts) -> Iterator[Outcome]:
    """Whether clients were invited too unevenly, or too evenly."""
    scheme = counts.scheme
    sums = {True: 0.0, False: 0.0}
    laws: dict[bool, list[tuple[Law, int]]] = {True: [], False: []}
    clients = 0
    for turns, groups in _groups_by_turns(counts).items():
        histogram = np.zeros(turns + 1, dtype=np.int64)
        for group in groups:
            histogram += np.bincount(counts.asked[group :: scheme.groups], minlength=turns + 1)
        deviations = np.arange(turns + 1) - turns * scheme.rate
        chances = binom.logpmf(np.arange(turns + 1), turns, scheme.rate)
        variance = _variance(turns, scheme.rate)
        members = int(histogram.sum())
        clients += members
        for above in (True, False):
            values = np.maximum(deviations if above else -deviations, 0.0) ** 2 / variance
            sums[above] += float((histogram * values).sum())
            laws[above].append(((values, chances), members))
    for above, law in laws.items():
        for uneven in (True, False):
            yield Outcome(
                chance=_chernoff(law, sums[above], _SCALES if uneven else -_SCALES) if law else 1.0,
                seen=f"clients were invited too {'unevenly' if uneven else 'evenly'} over "
                f"{counts.rounds} rounds: counts {'above' if above else 'below'} the mean deviate "
                f"by {2 * sums[above] / max(clients, 1):.3g} times the variance expected",
            )


def _overlaps(counts: CohortCounts) -> Iterator[Outcome]:
    """Clients in a cohort and in the one `lag` turns earlier, summed over all rounds."""
    generating = (
        _generating_fixed(counts.scheme)
        if counts.scheme.size is not None
        else _generating_poisson(counts)
    )
    for above in (True, False):
        side = _TILTS > 0 if above else _TILTS < 0
        least, worst = 1.0, "no overlap stands out"
        for lag in range(1, LAGS + 1):
            if not counts.following[lag]:
                continue
            seen = int(counts.overlaps[lag])
            bounds = generating(lag, counts) - _TILTS * seen
            chance = math.exp(min(0.0, float(bounds[side].min())))
            if chance < least:
                least = chance
                worst = (
                    f"cohorts {lag * counts.scheme.groups} rounds apart have {seen} clients in "
                    f"common, {counts.following[lag] * counts.scheme.rate:.0f} expected"
                )
        yield Outcome(chance=min(1.0, LAGS * least), seen=worst)


Generating = Callable[[int, CohortCounts], Vector]
"""Bound on the logarithm of E exp(tilt * overlaps at a lag), for each of `_TILTS`."""


def _generating_fixed(scheme: Scheme) -> Generating:
    each = np.log1p(scheme.rate * np.expm1(_TILTS))
    return lambda lag, counts: float(counts.following[lag]) * each


def _generating_poisson(counts: CohortCounts) -> Generating:
    """Exact: a client's turns split into `lag` independent chains j, j + lag, j + 2 lag, ..."""
    scheme = counts.scheme
    kinds = {
        turns: sum(scheme.members(group) for group in groups)
        for turns, groups in _groups_by_turns(counts).items()
    }
    lengths = {
        turns // lag + more for turns in kinds for lag in range(1, LAGS + 1) for more in (0, 1)
    }
    chains = _chains(lengths, scheme.rate)

    def exact(lag: int, _: CohortCounts) -> Vector:
        total = np.zeros_like(_TILTS)
        for turns, clients in kinds.items():
            whole, longer = divmod(turns, lag)
            total += clients * ((lag - longer) * chains[whole] + longer * chains[whole + 1])
        return total

    return exact


def _chains(lengths: Collection[int], rate: float) -> dict[int, Vector]:
    """By m: log E exp(tilt * sum of x_i x_(i+1)) for m independent coins, at each of `_TILTS`.

    The transfer matrix on (last coin 0, last coin 1) is [[1-q, 1-q], [q, q e^tilt]]; the vector is
    renormalized at every step, and the logarithms of the factors add up.
    """
    scale = np.zeros_like(_TILTS)
    logs = {length: scale for length in lengths if length < 2}
    weight = np.exp(_TILTS)
    out, inside = np.full_like(_TILTS, 1 - rate), np.full_like(_TILTS, rate)
    for length in range(2, max(lengths) + 1):
        out, inside = (1 - rate) * (out + inside), rate * (out + weight * inside)
        total = out + inside
        scale = scale + np.log(total)
        out, inside = out / total, inside / total
        if length in lengths:
            logs[length] = scale
    return logs


def _pair(counts: CohortCounts, pair: Pair | None, *, above: bool) -> Outcome:
    if pair is None:
        return Outcome(chance=1.0, seen="no two cohorts stand out")
    scheme = counts.scheme
    law = (
        binom(pair.size, scheme.rate)
        if scheme.size is None
        else hypergeom(scheme.population, pair.size, scheme.size)
    )
    tail = float(law.sf(pair.overlap - 1) if above else law.cdf(pair.overlap))
    first, second = pair.rounds
    return Outcome(
        chance=min(1.0, counts.pairs * tail),
        seen=f"rounds {first} and {second} have {pair.overlap} clients in common, "
        f"{pair.size * scheme.rate:.3g} expected",
    )


def _repeated(counts: CohortCounts) -> Outcome:
    if counts.repeated is None:
        return Outcome(chance=1.0, seen="no cohort occurs twice")
    scheme, first_second = counts.scheme, counts.repeated
    if scheme.size is None:
        members = scheme.population // scheme.groups
        each = members * math.log(scheme.rate**2 + (1 - scheme.rate) ** 2)
    else:
        each = float(
            gammaln(scheme.size + 1)
            + gammaln(scheme.population - scheme.size + 1)
            - gammaln(scheme.population + 1)
        )
    chance = counts.same_group_pairs * math.exp(each)
    if scheme.groups > 1:
        # the empty cohort belongs to every group
        empty = (1 - scheme.rate) ** (2 * (scheme.population // scheme.groups))
        chance += counts.rounds * (counts.rounds - 1) / 2 * empty
    return Outcome(
        chance=min(1.0, chance),
        seen=f"rounds {first_second[0]} and {first_second[1]} have the same cohort",
    )
