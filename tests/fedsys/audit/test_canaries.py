"""Bounds on right guesses, against the papers, a convex program and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, NonlinearConstraint, minimize
from scipy.stats import binom, norm

from fedsys.audit.canaries import (
    candidate_guesses,
    choose_guesses,
    correct_guesses,
    critical_count,
    fdp_bound,
    fdp_p_value,
    fdp_refutes,
    one_run_bound,
    one_run_p_value,
)
from fedsys.audit.tradeoff import GaussianTradeoff
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
    bound = one_run_bound(canaries=1000, guesses=r, correct=correct, delta=delta, level=0.05)

    def p(epsilon: float) -> float:
        return one_run_p_value(epsilon, canaries=1000, guesses=r, correct=correct, delta=delta)

    assert p(bound + 1e-6) > 0.05
    assert bound == 0.0 or p(bound - 1e-6) < 0.05


def test_without_delta_all_right_is_a_power_of_the_accuracy() -> None:
    """c = r: beta = (e^eps / (1 + e^eps))^r = 5%."""
    accuracy = 0.05 ** (1 / 20)
    expected = math.log(accuracy / (1 - accuracy))
    found = one_run_bound(canaries=20, guesses=20, correct=20, delta=0.0, level=0.05)
    assert found == pytest.approx(expected)


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
    bounds = []
    for _ in range(40):
        correct = correct_guesses(*scores(m, NOISE[epsilon], generator), 300)
        bounds.append(
            one_run_bound(canaries=m, guesses=300, correct=correct, delta=DELTA, level=0.05)
        )
    assert np.mean(bounds) == pytest.approx(expected, abs=0.25)
    assert max(bounds) < epsilon


@pytest.mark.parametrize(
    ("m", "r", "c", "fdp", "one_run"),
    [
        (1000, 300, 220, 1.3072604433025863, 0.7901071152135271),
        (500, 500, 420, 2.8153088853558303, 1.4531635809736718),
        (500, 100, 95, 3.6538107395749715, 2.168821538933098),
        (10_000, 300, 270, 2.405086479024931, 1.8542485904597845),
        (100, 100, 100, 8.216186103950786, 3.4902158675692982),
    ],
)
def test_bounds_are_those_of_jax_privacy(
    m: int, r: int, c: int, fdp: float, one_run: float
) -> None:
    """`_epsilon_one_run_fdp` and `_epsilon_one_run` of jax-privacy 2.0.0 (auditing.py) at
    significance 0.05 and delta 1e-5."""
    found = fdp_bound(canaries=m, guesses=r, correct=c, delta=DELTA, level=0.05)
    assert found == pytest.approx(fdp, abs=1e-3)
    found = one_run_bound(canaries=m, guesses=r, correct=c, delta=DELTA, level=0.05)
    assert found == pytest.approx(one_run, abs=1e-5)


def largest_tail(mu: float, m: int, r: int, c: int) -> float:
    """max P[C >= c] over all distributions of C that satisfy every tail's inequality.

    1 - f is concave, so the constraints are convex: any local maximum is the global one.
    """
    right = np.arange(r + 1) / m
    wrong = (r - np.arange(r + 1)) / m

    def gaps(p: np.ndarray) -> np.ndarray:
        least = [
            norm.cdf(norm.ppf(min(max(right[i:] @ p[i:], 1e-300), 1 - 1e-15)) - mu)
            for i in range(1, r + 1)
        ]
        held: np.ndarray = np.array([wrong[i - 1 :] @ p[i - 1 :] for i in range(1, r + 1)])
        held -= np.array(least)
        return held

    best = 0.0
    for accuracy in (0.5, norm.cdf(mu / 2)):
        start = binom.pmf(np.arange(r + 1), r, accuracy)
        found = minimize(
            lambda p: -p[c:].sum(),
            start,
            method="SLSQP",
            bounds=[(0, 1)] * (r + 1),
            constraints=[
                NonlinearConstraint(gaps, 0, np.inf),
                LinearConstraint(np.ones(r + 1), 1, 1),
            ],
            options={"maxiter": 500, "ftol": 1e-12},
        )
        if gaps(found.x).min() > -1e-7 and abs(found.x.sum() - 1) < 1e-7:
            best = max(best, float(found.x[c:].sum()))
    return best


@pytest.mark.parametrize(
    ("mu", "m", "r", "c"), [(0.5, 4, 4, 4), (1.0, 6, 6, 5), (1.0, 10, 6, 6), (2.0, 8, 8, 8)]
)
def test_the_recursion_is_the_solution_of_the_convex_program(
    mu: float, m: int, r: int, c: int
) -> None:
    ours = fdp_p_value(GaussianTradeoff(mu), canaries=m, guesses=r, correct=c)
    assert ours == pytest.approx(largest_tail(mu, m, r, c), rel=5e-3)


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.0])
def test_independent_canaries_lie_within_the_f_dp_bound(mu: float) -> None:
    """A Gaussian release: the best guesses are right with probability Phi(mu/2), independently."""
    for m in (20, 200):
        for correct in range(m // 2, m + 1, max(1, m // 20)):
            exact = float(binom.sf(correct - 1, m, norm.cdf(mu / 2)))
            bound = fdp_p_value(GaussianTradeoff(mu), canaries=m, guesses=m, correct=correct)
            assert exact <= bound * (1 + 1e-2)


@settings(max_examples=60, deadline=None)
@given(
    mu=st.floats(0.01, 4),
    r=st.integers(1, 60),
    share=st.floats(0, 1),
    level=st.floats(1e-8, 0.5),
)
def test_more_right_guesses_and_less_privacy_refute_more(
    mu: float, r: int, share: float, level: float
) -> None:
    c = int(share * r)
    kept = fdp_refutes(GaussianTradeoff(mu), canaries=100, guesses=r, correct=c, level=level)
    if kept:
        for other in (mu / 2, 0.0):
            assert fdp_refutes(
                GaussianTradeoff(other), canaries=100, guesses=r, correct=c, level=level
            )
        assert fdp_refutes(GaussianTradeoff(mu), canaries=100, guesses=r, correct=r, level=level)
        p = fdp_p_value(GaussianTradeoff(mu), canaries=100, guesses=r, correct=c)
        assert p <= level * 1.01


def test_guesses_take_both_ends() -> None:
    given_scores = np.array([5.0, 4.0, 0.1, 0.0, -4.0, -5.0])
    included = np.array([True, False, True, False, True, False])
    assert correct_guesses(given_scores, included, 2) == 2
    assert correct_guesses(given_scores, included, 4) == 2
    assert correct_guesses(given_scores, included, 6) == 4


def test_the_critical_count_is_the_least_that_refutes() -> None:
    assert critical_count(100, lambda correct: correct >= 73) == 73
    assert critical_count(100, lambda correct: True) == 50
    assert critical_count(100, lambda correct: False) is None
    assert critical_count(100, lambda correct: correct >= 100) == 100


@pytest.mark.parametrize("m", [2, 3, 10, 101, 500, 10_000])
def test_candidates_are_even_and_no_more_than_canaries(m: int) -> None:
    found = candidate_guesses(m)
    assert all(0 < guesses <= m and guesses % 2 == 0 for guesses in found)
    assert found == sorted(set(found))


def test_guesses_are_chosen_for_the_weakest_departure_that_can_be_caught() -> None:
    always, half = (lambda guesses: 1.0), (lambda guesses: 0.5)
    chosen = choose_guesses(500, lambda guesses: guesses, [half, always])
    assert chosen.guesses > 0
    assert chosen.merit[0] == 1
    assert choose_guesses(500, lambda guesses: guesses, [always]).merit[0] == 1
    assert choose_guesses(500, lambda guesses: guesses, [always, half]).merit[0] == 2
    assert choose_guesses(500, lambda guesses: None, [always]).guesses == 0
    assert choose_guesses(500, lambda guesses: guesses, [half]).guesses == 0


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
        correct_guesses(values, coins, guesses)


@pytest.mark.parametrize(("m", "r", "c"), [(10, 11, 5), (10, 5, 6), (10, 5, -1), (0, 0, 0)])
def test_counts_that_cannot_be_are_refused(m: int, r: int, c: int) -> None:
    with pytest.raises(AuditInputError):
        one_run_bound(canaries=m, guesses=r, correct=c, delta=DELTA, level=0.05)
    with pytest.raises(AuditInputError):
        fdp_refutes(GaussianTradeoff(1.0), canaries=m, guesses=r, correct=c, level=0.05)
