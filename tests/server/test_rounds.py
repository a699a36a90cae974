"""A round's parameters, and how often its quorum is missed."""

from __future__ import annotations

import numpy as np
import pytest

from server.rounds import RoundAborted, quorum_missed, round_params


def test_the_quorum_is_missed_as_often_as_in_a_simulation() -> None:
    """Against 200,000 draws at parameters where it happens often; five deviations: 1e-6."""
    draw = np.random.default_rng(3)
    n = draw.binomial(50, 0.2, size=200_000)
    alive = draw.binomial(n, 0.7)
    missed = (n >= 2) & (alive < (n + np.ceil(0.1 * n - 1e-9)) // 2 + 1)
    expected = quorum_missed(population=50, expected=10, rounds=1, corrupt=0.1, dropout=0.3)
    deviation = np.sqrt(expected * (1 - expected) / len(n))
    assert abs(float(missed.mean()) - expected) < 5 * deviation


def test_the_main_job_never_misses_it() -> None:
    assert quorum_missed(population=1437, expected=100, rounds=40, corrupt=0.1, dropout=0.1) < 1e-12


def test_a_sum_holds_more_than_those_who_may_collude() -> None:
    params = round_params(n=50, corrupt=0.1, dropout=0.1, modulus_bits=32, min_survivors=1)
    assert params.min_alive == params.colluders + 1 == 6
    assert params.secrecy_bits > 39


def test_a_cohort_that_cannot_be_served_aborts() -> None:
    with pytest.raises(RoundAborted, match="secure aggregation") as caught:
        round_params(n=2, corrupt=0.1, dropout=0.1, modulus_bits=32, min_survivors=1)
    assert caught.value.nothing_summed
