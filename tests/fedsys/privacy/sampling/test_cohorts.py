"""Cohorts: their distribution, their limits, and that nobody can guess them."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from scipy import stats

from fedsys.errors import MechanismError
from fedsys.privacy import (
    AesCtrStream,
    MinSeparation,
    cyclic_group,
    fixed_cohort,
    poisson_cohort,
    secret_coin,
)

FALSE_ALARM = 1e-7


def _stream(number: int) -> AesCtrStream:
    return AesCtrStream(number.to_bytes(32, "big"))


def test_poisson_cohorts_are_independent_coins() -> None:
    stream = _stream(1)
    counts, sizes = np.zeros(200), []
    for _ in range(4000):
        cohort = poisson_cohort(200, 0.13, stream)
        assert (np.diff(cohort) > 0).all()
        counts[cohort] += 1
        sizes.append(cohort.size)
    per_client = ((counts - 520) ** 2 / (4000 * 0.13 * 0.87)).sum()
    assert stats.chi2.sf(per_client, 200) > FALSE_ALARM
    spread = np.var(sizes, ddof=1) / (200 * 0.13 * 0.87)
    assert abs(spread - 1) < 6 * math.sqrt(2 / 4000)
    edges = np.arange(18, 36)
    observed = np.bincount(np.searchsorted(edges, sizes), minlength=edges.size + 1)
    cdf = np.concatenate(([0.0], stats.binom.cdf(edges, 200, 0.13), [1.0]))
    assert stats.chisquare(observed, 4000 * np.diff(cdf)).pvalue > FALSE_ALARM


def test_poisson_extremes() -> None:
    assert poisson_cohort(5, 1.0, os.urandom).tolist() == [0, 1, 2, 3, 4]
    assert poisson_cohort(100_000, 1e-12, _stream(2)).size == 0
    big = poisson_cohort(1_000_000, 0.01, _stream(3))
    assert abs(big.size - 10_000) < 6 * math.sqrt(9900)
    for rate in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(MechanismError, match="sampling rate"):
            poisson_cohort(10, rate, os.urandom)


def test_fixed_cohorts_are_uniform_subsets() -> None:
    stream = _stream(4)
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(20_000):
        key = tuple(fixed_cohort(6, 3, stream).tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 20
    assert stats.chisquare(list(seen.values())).pvalue > FALSE_ALARM
    assert fixed_cohort(4, 4, stream).tolist() == [0, 1, 2, 3]
    with pytest.raises(MechanismError, match=r"\[1, 4\], got 5"):
        fixed_cohort(4, 5, stream)


def test_secret_coins_fall_as_often_as_stated() -> None:
    stream = _stream(5)
    heads = sum(secret_coin(0.2, stream) for _ in range(20_000))
    assert abs(heads - 4000) < 6 * math.sqrt(20_000 * 0.16)
    assert secret_coin(1.0, stream)


def test_separation_is_kept_and_participations_are_limited() -> None:
    sampler = MinSeparation(population=40, size=5, separation=4, max_participations=3)
    last: dict[int, int] = {}
    count: dict[int, int] = {}
    for number in range(1, 25):
        cohort = sampler.draw(number, os.urandom)
        assert np.unique(cohort).size == 5
        for client in cohort.tolist():
            assert number - last.get(client, -100) >= 4
            last[client] = number
            count[client] = count.get(client, 0) + 1
            assert count[client] <= 3
    with pytest.raises(MechanismError, match="0 clients may take part, 5 are needed"):
        sampler.draw(25, os.urandom)


def test_a_resumed_schedule_is_the_same_schedule() -> None:
    first = MinSeparation(population=12, size=3, separation=3, max_participations=2)
    second = MinSeparation(population=12, size=3, separation=3, max_participations=2)
    for number in range(1, 5):
        second.record(number, first.draw(number, _stream(number)).tolist())
    np.testing.assert_array_equal(first.draw(5, _stream(5)), second.draw(5, _stream(5)))
    with pytest.raises(MechanismError, match="fewer than 3 rounds"):
        second.record(6, first.draw(6, _stream(6)).tolist() + second.draw(6, _stream(7)).tolist())


def test_cyclic_groups_partition_the_population_and_take_turns() -> None:
    groups = [cyclic_group(number, 7, 100) for number in range(1, 8)]
    assert sorted(np.concatenate(groups).tolist()) == list(range(100))
    np.testing.assert_array_equal(groups[0], cyclic_group(8, 7, 100))
