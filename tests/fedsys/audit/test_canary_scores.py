"""Scores against the claimed noise: exact laws, one-sidedness, and the published estimate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import binom, chi, chi2, kstest, norm

from fedsys.audit.canary_scores import (
    ScoreLaw,
    _normal_delta,
    chi_square,
    expected_accuracy,
    kolmogorov_smirnov,
    noise_at_most,
    one_shot_estimate,
    one_shot_separation,
    scores_separation,
)
from fedsys.errors import AuditInputError
from fedsys.privacy.accounting.exact_gaussian import gaussian_epsilon

DELTA = 1e-5
LAW = ScoreLaw(sigma=0.6, rounds=1, rate=1.0, most=1)
SAMPLED = ScoreLaw(sigma=4.0, rounds=40, rate=0.07, most=40)


def test_the_noise_tests_are_the_textbook_ones() -> None:
    scores = np.random.default_rng(1).normal(scale=0.55, size=250)
    expected = chi2.cdf(np.square(scores).sum() / 0.36, 250)
    assert chi_square(scores, LAW) == pytest.approx(expected)
    textbook = kstest(np.abs(scores / 0.6), lambda x: 2 * norm.cdf(x) - 1, alternative="greater")
    assert kolmogorov_smirnov(scores, LAW) == pytest.approx(textbook.pvalue, rel=1e-9)


@pytest.mark.parametrize("test", [chi_square, kolmogorov_smirnov])
def test_p_values_of_honest_noise_are_uniform_and_of_more_noise_larger(test: object) -> None:
    """At most a tenth below a tenth; the threshold fails an honest 10% with probability 1e-6."""
    assert callable(test)
    generator = np.random.default_rng(2)
    honest = generator.normal(scale=0.6, size=(400, 120))
    for factor in (1.0, 1.1, 3.0):
        low = sum(test(factor * each, LAW) <= 0.1 for each in honest)
        assert low <= binom.ppf(1 - 1e-6, 400, 0.1)
    for shift in (0.05, 0.5):
        low = sum(test(each + shift, LAW) <= 0.1 for each in honest)
        assert low <= binom.ppf(1 - 1e-6, 400, 0.1)
    assert sum(test(each, LAW) <= 0.1 for each in honest) >= binom.ppf(1e-6, 400, 0.1)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.integers(4, 60),
    factor=st.floats(1.0, 50.0),
    slack=st.floats(0.0, 2.0),
)
def test_larger_scores_and_more_slack_never_make_a_p_value_smaller(
    seed: int, size: int, factor: float, slack: float
) -> None:
    scores = np.random.default_rng(seed).normal(scale=0.4, size=size)
    slacker = ScoreLaw(sigma=0.6, rounds=1, rate=1.0, most=1, slack=slack)
    for test in (chi_square, kolmogorov_smirnov):
        assert test(factor * scores, LAW) >= test(scores, LAW) - 1e-12
        assert test(scores, slacker) >= test(scores, LAW) - 1e-12


def test_slack_covers_whatever_error_is_no_longer() -> None:
    """An error that follows the noise, to hide it or to shrink it, up to its length."""
    generator = np.random.default_rng(3)
    law = ScoreLaw(sigma=0.6, rounds=1, rate=1.0, most=1, slack=1.5)
    for _ in range(50):
        noise = generator.normal(scale=0.6, size=100)
        shrunk = noise * (1 - 1.5 / np.linalg.norm(noise))
        exact = ScoreLaw(sigma=0.6, rounds=1, rate=1.0, most=1)
        assert chi_square(shrunk, law) == pytest.approx(chi_square(noise, exact))
        assert kolmogorov_smirnov(shrunk, law) >= kolmogorov_smirnov(noise, exact)


def test_weak_noise_is_caught_as_the_first_reviews_found() -> None:
    """Full noise passes; divided by 1.5 p is about 1e-15, without noise 0."""
    noise = np.random.default_rng(4).normal(scale=0.6, size=250)
    assert chi_square(noise, LAW) > 1e-3
    assert chi_square(noise / 1.5, LAW) < 1e-10
    assert kolmogorov_smirnov(noise / 1.5, LAW) < 1.6e-5
    assert chi_square(np.zeros(250), LAW) == 0
    assert kolmogorov_smirnov(np.zeros(250), LAW) == 0


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_the_noise_is_bounded_from_above(ratio: float) -> None:
    generator = np.random.default_rng(5)
    bounds = [
        noise_at_most(generator.normal(scale=0.6 * ratio, size=250), LAW, 1e-2) for _ in range(300)
    ]
    assert np.mean(bounds) == pytest.approx(ratio * 1.11, rel=0.05)
    assert sum(bound < ratio for bound in bounds) <= binom.ppf(1 - 1e-6, 300, 1e-2)


# -- separation -----------------------------------------------------------------------------------


def draw(
    law: ScoreLaw, generator: np.random.Generator, *, factor: float = 1.0, size: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    included = generator.random(size) < 0.5
    turns = generator.binomial(law.rounds, law.rate or 0.0, size)
    noise = generator.normal(scale=law.sigma * factor, size=size)
    return included * turns + noise, included


def test_the_separation_is_the_noncentral_t_integrated() -> None:
    scores, included = draw(LAW, np.random.default_rng(6))
    found = scores_separation(scores, included, LAW)
    inside, outside = scores[included], scores[~included]
    error = math.sqrt(1 / len(inside) + 1 / len(outside))
    assert found.statistic == pytest.approx(
        (inside.mean() - outside.mean()) / (outside.std(ddof=1) * error)
    )
    shift, freedom = 1 / (0.6 * error), len(outside) - 1

    def beyond(x: float) -> float:
        return float(
            norm.sf(found.statistic * x / math.sqrt(freedom) - shift) * chi.pdf(x, freedom)
        )

    middle = math.sqrt(freedom)
    expected = quad(beyond, middle - 9, middle + 9, limit=200, epsabs=0)[0]
    assert found.p_value(LAW, 1e-5) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("law", [LAW, SAMPLED])
@pytest.mark.parametrize("factor", [1.0, 1.3, 3.0])
def test_honest_separations_are_refuted_no_more_often_than_their_level(
    law: ScoreLaw, factor: float
) -> None:
    generator = np.random.default_rng(7)
    low = {"scores": 0, "one-shot": 0}
    for _ in range(300):
        scores, included = draw(law, generator, factor=factor)
        low["scores"] += scores_separation(scores, included, law).p_value(law, 0.05) <= 0.05
        free = law.sigma * factor * math.sqrt(generator.chisquare(450) / 450)
        found = one_shot_separation(
            scores[included],
            length=free * math.sqrt(650),
            dimension=650,
            canaries=200,
            law=law,
        )
        low["one-shot"] += found.p_value(law, 0.05) <= 0.05
    assert max(low.values()) <= binom.ppf(1 - 1e-6, 300, 0.05)


def test_weak_noise_and_canaries_that_are_clipped_too_late_separate_too_far() -> None:
    """The second is no matter of noise: twice the sensitivity under the claimed noise."""
    generator = np.random.default_rng(8)
    scores, included = draw(LAW, generator, factor=0.5)
    assert scores_separation(scores, included, LAW).p_value(LAW, 1e-5) < 1e-5
    scores, included = draw(LAW, generator)
    scores[included] += 1
    assert scores_separation(scores, included, LAW).p_value(LAW, 1e-5) < 1e-5
    assert chi_square(scores[~included], LAW) > 1e-3


def test_separations_bound_the_noise() -> None:
    generator = np.random.default_rng(9)
    for factor in (0.5, 1.0):
        scores, included = draw(LAW, generator, factor=factor, size=4000)
        found = scores_separation(scores, included, LAW).noise_at_most(LAW, 1e-3)
        assert factor < found < 1.3 * factor


def test_mean_turns_are_bounded() -> None:
    assert LAW.mean_turns(100, 1e-5) == 1
    bound = SAMPLED.mean_turns(100, 1e-5)
    assert 2.8 < bound < 4
    assert binom.sf(round(bound * 100), 4000, 0.07) <= 1e-5
    unknown = ScoreLaw(sigma=1.0, rounds=40, rate=None, most=7)
    assert unknown.mean_turns(100, 1e-5) == 7


@pytest.mark.parametrize("weaker", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("law", [LAW, SAMPLED])
def test_expected_accuracy_is_that_of_simulated_guesses(law: ScoreLaw, weaker: float) -> None:
    generator = np.random.default_rng(10)
    scores, included = draw(law, generator, factor=1 / min(weaker, 1e6), size=40_000)
    order = np.argsort(scores)
    right = (included[order[-8000:]].sum() + (~included[order[:8000]]).sum()) / 16_000
    assert expected_accuracy(law, 0.4, weaker) == pytest.approx(right, abs=0.02)


@pytest.mark.parametrize("scores", [np.zeros(0), np.array([math.nan]), np.zeros((2, 2))])
def test_scores_that_cannot_be_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(AuditInputError):
        chi_square(scores, LAW)
    with pytest.raises(AuditInputError):
        kolmogorov_smirnov(scores, LAW)
    with pytest.raises(AuditInputError):
        one_shot_separation(scores, length=1.0, dimension=100, canaries=10, law=LAW)


def test_what_leaves_no_free_direction_has_no_one_shot_test() -> None:
    with pytest.raises(AuditInputError, match="5 dimensions hold no canary"):
        one_shot_separation(np.ones(10), length=1.0, dimension=25, canaries=20, law=LAW)
    with pytest.raises(AuditInputError, match="at least two finite"):
        one_shot_estimate(np.array([0.1]), dimension=4, delta=DELTA)


# -- the published estimate -----------------------------------------------------------------------


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
