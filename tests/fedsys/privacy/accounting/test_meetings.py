"""Pairs of clients are counted alike whatever the cohort's size, and no count wraps."""

from __future__ import annotations

import numpy as np
import pytest

from fedsys.privacy.accounting.meetings import Meetings


@pytest.mark.parametrize("size", [40, 600])
def test_pairs_of_small_and_large_cohorts(size: int) -> None:
    """In one go up to 512 clients, row by row above; the order of a cohort does not matter."""
    rng = np.random.default_rng(size)
    counted = Meetings(population=800, colluders=1)
    together = np.zeros((800, 800), dtype=np.int64)
    for _ in range(12):
        cohort = rng.choice(800, size=size, replace=False)
        counted.add(cohort)
        together[np.ix_(cohort, cohort)] += 1
        np.fill_diagonal(together, 0)
        assert counted.most == together.max()


def test_many_rounds_widen_the_table() -> None:
    counted = Meetings(population=3, colluders=1)
    pair = np.array([2, 0])
    for _ in range((1 << 16) + 2):
        counted.add(pair)
    assert counted.most == (1 << 16) + 2
