"""Tests of the sampling: honest cohorts pass as often as is promised, others are caught."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from fedsys.audit.cohort_counts import LAGS, CohortCounts, Scheme
from fedsys.audit.sampling_tests import FALSE_ALARM, outcomes, unlikely
from fedsys.privacy import make_plan
from fedsys.privacy.randomness import AesCtrStream
from fedsys.privacy.sampling.cohorts import MinSeparation

Ids = NDArray[np.int64]
Draw = Callable[[int], Ids]

SCHEMES = {
    "poisson": (Scheme(population=100, rate=0.1), 40),
    "poisson, half of all": (Scheme(population=50, rate=0.5), 40),
    "poisson, many rounds": (Scheme(population=300, rate=0.03), 150),
    "poisson, everybody": (Scheme(population=30, rate=1.0), 10),
    "cyclic groups": (Scheme(population=402, rate=0.4, groups=4), 50),
    "fixed": (Scheme(population=100, rate=0.1, size=10), 40),
    "fixed, half of all": (Scheme(population=20, rate=0.5, size=10), 40),
    "fixed, one client": (Scheme(population=7, rate=1 / 7, size=1), 60),
}


def honest(scheme: Scheme, rng: np.random.Generator) -> Draw:
    """A sampler as the scheme describes it, fast rather than secret."""
    size = scheme.size
    if size is not None:
        return lambda _: np.sort(rng.permutation(scheme.population)[:size])

    def draw(round: int) -> Ids:
        group = np.arange((round - 1) % scheme.groups, scheme.population, scheme.groups)
        return group[rng.random(group.size) < scheme.rate]

    return draw


def counted(scheme: Scheme, rounds: int, draw: Draw) -> CohortCounts:
    counts = CohortCounts(scheme)
    for round in range(1, rounds + 1):
        counts.note(round, np.asarray(draw(round), dtype=np.int64))
    return counts


def chance(counts: CohortCounts) -> float:
    """What is compared with the false-alarm rate."""
    found = list(outcomes(counts))
    return len(found) * min(outcome.chance for outcome in found)


@pytest.mark.parametrize("name", SCHEMES)
def test_honest_cohorts_are_called_unlikely_no_more_often_than_is_stated(name: str) -> None:
    """120 honest runs at levels that can be measured, for each test and for all together.

    The bounds on each chance are proved; a mistake in one would show here. Sound bounds fail with
    probability 1e-6 at most, over all schemes and tests.
    """
    scheme, rounds = SCHEMES[name]
    runs, level = 120, 0.1
    rng = np.random.default_rng(sum(map(ord, name)))
    found = [counted(scheme, rounds, honest(scheme, rng)) for _ in range(runs)]
    chances = np.array([[it.chance for it in outcomes(counts)] for counts in found])
    together = chances.shape[1] * chances.min(axis=1, keepdims=True)
    assert (together >= FALSE_ALARM).all()
    below = (np.hstack([chances, together]) <= level).sum(axis=0)
    assert (binom.sf(below - 1, runs, level) > 1e-6 / (len(SCHEMES) * len(below))).all()
    assert unlikely(found[0]) is None


def preferring(scheme: Scheme, few: int, rng: np.random.Generator) -> Draw:
    """As many as stated, `few` clients among them in every round."""
    size = round(scheme.population * scheme.rate)

    def draw(_: int) -> Ids:
        rest = few + rng.permutation(scheme.population - few)[: size - few]
        return np.concatenate([np.arange(few), np.sort(rest)])

    return draw


def in_epochs(scheme: Scheme, rng: np.random.Generator) -> Draw:
    """A shuffled deck, dealt to its end before it is shuffled again."""
    size = round(scheme.population * scheme.rate)
    deck: list[Ids] = []

    def draw(_: int) -> Ids:
        if not deck:
            order = rng.permutation(scheme.population)
            deck.extend(np.sort(order[at : at + size]) for at in range(0, order.size, size))
        return deck.pop()

    return draw


POISSON = Scheme(population=1000, rate=0.1)
FIXED = Scheme(population=1000, rate=0.1, size=100)


@pytest.mark.parametrize("scheme", [POISSON, FIXED], ids=["poisson", "fixed"])
@pytest.mark.parametrize("make", [in_epochs, lambda s, rng: preferring(s, 10, rng)])
def test_cohorts_that_were_not_drawn_as_stated_are_caught(
    scheme: Scheme, make: Callable[[Scheme, np.random.Generator], Draw]
) -> None:
    reason = unlikely(counted(scheme, 40, make(scheme, np.random.default_rng(5))))
    assert reason is not None


def test_ten_clients_in_all_forty_rounds_are_caught_among_honest_draws() -> None:
    """Sizes and total are as they should be: only counts of single clients tell."""
    rng = np.random.default_rng(6)
    draw = honest(Scheme(population=990, rate=0.09), rng)
    counts = counted(POISSON, 40, lambda t: np.concatenate([np.arange(10), 10 + draw(t)]))
    assert counts.asked[:10].tolist() == [40] * 10
    total = next(outcomes(counts))
    assert total.chance > 0.01
    assert unlikely(counts) is not None
    assert any("client 0 was invited in 40 of 40 rounds, 4 expected" in it.seen
               and it.chance < 1e-30 for it in outcomes(counts))  # fmt: skip


@pytest.mark.parametrize("size", [None, 50])
def test_alternating_halves_are_caught(size: int | None) -> None:
    scheme = Scheme(population=100, rate=0.5, size=size)
    counts = counted(scheme, 40, lambda t: np.arange(t % 2, 100, 2))
    reason = unlikely(counts)
    assert reason is not None
    assert "rounds apart have" in reason


def test_a_cohort_of_constant_size_is_not_poisson_sampling() -> None:
    rng = np.random.default_rng(7)
    counts = counted(POISSON, 40, honest(FIXED, rng))
    reason = unlikely(counts)
    assert reason is not None
    assert "cohort sizes vary too little" in reason
    assert unlikely(counted(FIXED, 40, honest(FIXED, rng))) is None


@pytest.mark.parametrize("lag", [1, 7, LAGS])
def test_half_a_cohort_that_comes_back_is_caught_at_every_lag(lag: int) -> None:
    rng = np.random.default_rng(8)
    draw, before = honest(POISSON, rng), dict[int, Ids]()

    def again(round: int) -> Ids:
        fresh = before[round] = draw(round)
        if round <= lag:
            return fresh
        return np.union1d(before[round - lag][:50], fresh[50:])

    reason = unlikely(counted(POISSON, lag + 30, again))
    assert reason is not None


def test_a_cohort_that_was_used_twice_is_caught_however_far_apart() -> None:
    rng = np.random.default_rng(9)
    scheme = Scheme(population=120, rate=0.2)
    draw, cohorts = honest(scheme, rng), list[Ids]()

    def again(round: int) -> Ids:
        cohorts.append(cohorts[4] if round == 80 else draw(round))
        return cohorts[-1]

    counts = counted(scheme, 90, again)
    assert counts.repeated == (5, 80)
    reason = unlikely(counts)
    assert reason is not None
    assert reason.startswith("rounds 5 and 80 have the same cohort")


def test_overlaps_are_those_of_a_plain_count() -> None:
    """Against sets, over more rounds than are remembered, cyclic groups and pauses included."""
    rng = np.random.default_rng(10)
    scheme = Scheme(population=30, rate=0.3, groups=2)
    draw = honest(scheme, rng)
    cohorts = {t: draw(t) for t in range(1, 170) if t not in (20, 31)}
    counts = CohortCounts(scheme)
    for round, cohort in cohorts.items():
        counts.note(round, cohort)
    expected = np.zeros(LAGS + 1, dtype=np.int64)
    for group in range(2):
        turns = [set(cohort.tolist()) for t, cohort in cohorts.items() if (t - 1) % 2 == group]
        for lag in range(1, LAGS + 1):
            expected[lag] += sum(len(turns[at] & turns[at - lag]) for at in range(lag, len(turns)))
    assert counts.overlaps.tolist() == expected.tolist()
    assert counts.asked.sum() == sum(cohort.size for cohort in cohorts.values())


def test_more_groups_than_clients_cost_no_memory() -> None:
    """A separation out of a hostile header: most groups are empty, and none is allocated."""
    scheme = Scheme(population=10, rate=1.0, groups=10**15)
    counts = counted(scheme, 12, lambda t: np.arange(t - 1, t) if t <= 10 else np.arange(0))
    assert unlikely(counts) is None
    assert scheme.members(11) == 0


def test_what_promises_no_randomness_is_not_tested_for_it() -> None:
    """Min-separation serves those who took part least: regular, and nothing rests on chance."""
    plan = make_plan(
        mechanism="banded-mf", population=400, expected_cohort=40, rounds=40, dimension=10,
        clip=1.0, delta=1e-5, noise_multiplier=2.0, sampling="min-separation", min_separation=4,
        max_participations=6,
    )  # fmt: skip
    assert Scheme.of(plan) is None
    sampler = MinSeparation(population=400, size=40, separation=4, max_participations=6)
    stream = AesCtrStream(bytes(32))
    as_if = counted(
        Scheme(population=400, rate=0.1, size=40), 40,
        lambda t: sampler.draw(t, lambda n: stream.words(n // 8).tobytes()),
    )  # fmt: skip
    assert unlikely(as_if) is not None


def test_the_stated_rate_is_what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FALSE_ALARM == 1e-6
    counts = counted(FIXED, 20, honest(FIXED, np.random.default_rng(11)))
    bound = chance(counts)
    monkeypatch.setattr("fedsys.audit.sampling_tests.FALSE_ALARM", bound * 1.01)
    assert unlikely(counts) is not None
    monkeypatch.setattr("fedsys.audit.sampling_tests.FALSE_ALARM", bound * 0.99)
    assert unlikely(counts) is None
