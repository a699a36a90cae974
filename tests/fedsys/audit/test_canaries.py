"""The statistics behind the empirical audit, against the papers, enumeration and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import binom, norm

from fedsys.audit.canaries import (
    _normal_delta,
    correct_guesses,
    default_guesses,
    detection_power,
    one_run,
    one_run_bound,
    one_run_p_value,
    one_shot_estimate,
)
from fedsys.errors import AuditInputError
from fedsys.privacy.accounting.exact_gaussian import gaussian_epsilon

DELTA = 1e-5
NOISE = {1: 3.7306, 2: 1.9937, 4: 1.0813, 8: 0.60023}
"""Multipliers at which one Gaussian release costs exactly epsilon at delta 1e-5."""


def published_p_value(m: int, r: int, v: int, eps: float, delta: float) -> float:
    """The pseudocode of Steinke, Nasr and Jagielski 2023, appendix D, letter by letter."""
    q = 1 / (1 + math.exp(-eps))
    beta = float(binom.sf(v - 1, r, q))
    alpha = 0.0
    total = 0.0
    for i in range(1, v + 1):
        total = total + float(binom.pmf(v - i, r, q))
        if total > i * alpha:
            alpha = total / i
    return min(1.0, beta + alpha * delta * 2 * m)


@given(
    m=st.integers(1, 10**5),
    r=st.integers(1, 400),
    share=st.floats(0, 1),
    epsilon=st.floats(0, 12),
    delta=st.sampled_from([0.0, 1e-9, 1e-5, 1e-3]),
)
def test_the_p_value_is_the_published_one(
    m: int, r: int, share: float, epsilon: float, delta: float
) -> None:
    v = int(share * r)
    ours = one_run_p_value(epsilon, canaries=m, guesses=r, correct=v, delta=delta)
    assert ours == pytest.approx(published_p_value(m, r, v, epsilon, delta), rel=1e-9, abs=1e-12)


@given(r=st.integers(2, 300), correct=st.integers(0, 300), delta=st.sampled_from([0.0, 1e-5]))
def test_the_bound_is_the_largest_epsilon_refuted(r: int, correct: int, delta: float) -> None:
    correct = min(correct, r)
    bound = one_run_bound(canaries=1000, guesses=r, correct=correct, delta=delta)

    def p(epsilon: float) -> float:
        return one_run_p_value(epsilon, canaries=1000, guesses=r, correct=correct, delta=delta)

    assert p(bound + 1e-6) > 0.05
    assert bound == 0.0 or p(bound - 1e-6) < 0.05


def test_without_delta_all_right_is_a_power_of_the_accuracy() -> None:
    """c = r: beta = (e^eps / (1 + e^eps))^r = 5%."""
    accuracy = 0.05 ** (1 / 20)
    expected = math.log(accuracy / (1 - accuracy))
    assert one_run_bound(canaries=20, guesses=20, correct=20, delta=0.0) == pytest.approx(expected)


def scores(m: int, noise: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    included = generator.random(m) < 0.5
    return included + generator.normal(scale=noise, size=m), included


@pytest.mark.parametrize(
    ("m", "epsilon", "expected"),
    [
        (1000, 2, 0.66),
        (1000, 4, 1.26),
        (1000, 8, 2.59),
        (10_000, 1, 0.40),
        (10_000, 2, 0.87),
        (10_000, 4, 2.1),
        (10_000, 8, 3.7),
    ],
)
def test_bounds_are_of_the_size_that_the_design_expects(
    m: int, epsilon: int, expected: float
) -> None:
    generator = np.random.default_rng(7)
    assert gaussian_epsilon(DELTA, NOISE[epsilon]) == pytest.approx(epsilon, abs=2e-3)
    bounds = [
        one_run(*scores(m, NOISE[epsilon], generator), guesses=300, delta=DELTA).bound
        for _ in range(40)
    ]
    assert np.mean(bounds) == pytest.approx(expected, abs=0.25)
    assert max(bounds) < epsilon


def test_an_honest_release_is_rarely_refuted() -> None:
    """At most 5% of runs; the threshold below fails a 5% test with probability below 1e-6."""
    generator = np.random.default_rng(3)
    runs = 400
    failures = sum(
        one_run(*scores(1000, NOISE[2], generator), guesses=300, delta=DELTA).bound > 2
        for _ in range(runs)
    )
    assert failures <= binom.ppf(1 - 1e-6, runs, 0.05)
    assert failures == 0  # the bound is far from tight


@pytest.mark.parametrize(
    ("factor", "guesses", "low", "high"),
    [(1.0, 300, 0, 0), (2.0, 100, 0.6, 0.9), (2.0, 300, 0.9, 1), (2.0, 1000, 0.5, 0.85)],
)
def test_power_against_weaker_noise_is_what_the_design_states(
    factor: float, guesses: int, low: float, high: float
) -> None:
    power = detection_power(
        epsilon=2,
        delta=DELTA,
        canaries=10_000,
        guesses=guesses,
        noise_multiplier=NOISE[2] / factor,
        rounds=1,
        rate=1.0,
        runs=200,
    )
    assert low <= power <= high


def test_power_is_the_share_of_simulated_runs_that_are_caught() -> None:
    generator = np.random.default_rng(11)
    noise = NOISE[2] / 2
    caught = sum(
        one_run(*scores(10_000, noise, generator), guesses=300, delta=DELTA).bound > 2
        for _ in range(100)
    )
    assert 85 <= caught <= 100


def test_guesses_take_both_ends() -> None:
    given_scores = np.array([5.0, 4.0, 0.1, 0.0, -4.0, -5.0])
    included = np.array([True, False, True, False, True, False])
    assert correct_guesses(given_scores, included, 2) == 2
    assert correct_guesses(given_scores, included, 4) == 2
    assert correct_guesses(given_scores, included, 6) == 4
    assert [default_guesses(m) for m in (2, 10, 999, 1000, 10**6)] == [2, 2, 298, 300, 300]


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0, 4.0])
def test_one_shot_estimates_a_gaussian_release(noise: float) -> None:
    """Cosines of canaries that moved the model by 1/z of the noise's length a dimension."""
    generator, dimension = np.random.default_rng(5), 50_000
    cosines = generator.normal(1 / (noise * math.sqrt(dimension)), 1 / math.sqrt(dimension), 20_000)
    estimate = one_shot_estimate(cosines, dimension=dimension, delta=DELTA)
    assert estimate == pytest.approx(gaussian_epsilon(DELTA, noise), rel=0.2)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
@pytest.mark.parametrize(
    ("mean", "deviation"), [(1.0, 1.0), (-2.0, 1.0), (0.5, 0.8), (0.5, 1.3), (0.0, 2.0), (0.0, 0.5)]
)
def test_the_divergence_of_two_normals_is_the_integral(
    mean: float, deviation: float, epsilon: float
) -> None:
    def gain(x: float) -> float:
        p, q = norm.pdf(x, mean, deviation), norm.pdf(x)
        return float(max(p - math.exp(epsilon) * q, 0.0))

    expected = sum(quad(gain, a, a + 1, epsabs=1e-12)[0] for a in range(-14, 14))
    assert _normal_delta(epsilon, mean, deviation) == pytest.approx(expected, abs=1e-7)


def test_one_shot_of_what_is_far_or_constant() -> None:
    assert one_shot_estimate(np.full(3, 0.1), dimension=100, delta=DELTA) == math.inf
    far = np.array([0.9, 0.91, 0.92, 0.93])
    assert one_shot_estimate(far, dimension=10**6, delta=DELTA) > 1e4
    nothing = np.random.default_rng(0).normal(scale=0.01, size=10**5)
    assert one_shot_estimate(nothing, dimension=10**4, delta=DELTA) < 0.1


@pytest.mark.parametrize(
    ("values", "coins", "guesses"),
    [
        (np.zeros(4), np.ones(3, dtype=np.bool_), 2),
        (np.zeros(4), np.ones(4, dtype=np.bool_), 3),
        (np.zeros(4), np.ones(4, dtype=np.bool_), 0),
        (np.zeros(4), np.ones(4, dtype=np.bool_), 6),
        (np.array([0.0, math.nan]), np.ones(2, dtype=np.bool_), 2),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    values: np.ndarray, coins: np.ndarray, guesses: int
) -> None:
    with pytest.raises(AuditInputError):
        one_run(values, coins, guesses=guesses, delta=DELTA)
    with pytest.raises(AuditInputError):
        one_shot_estimate(np.array([0.1]), dimension=4, delta=DELTA)
