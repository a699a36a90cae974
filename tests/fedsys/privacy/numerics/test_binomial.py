"""Binomial tails against SciPy's, which Boost computes."""

import math
import random

import pytest
from scipy.special import binom as choose
from scipy.stats import binom

from fedsys.privacy.numerics.binomial import above, below, log_choose, mass


def _cases(count: int) -> list[tuple[int, int, float]]:
    """(k, n, rate) up to 12 standard deviations from the mean, rates of every size."""
    rng = random.Random(1)
    found = []
    for _ in range(count):
        n = int(10 ** rng.uniform(0, 6.5))
        rate = 10 ** rng.uniform(-6, 0) if rng.random() < 0.5 else rng.random()
        deviation = math.sqrt(n * rate * (1 - rate)) + 1
        k = int(n * rate + rng.uniform(-12, 12) * deviation)
        found.append((max(-1, min(n, k)), n, rate))
    return found


def test_both_tails_and_the_mass_are_scipys() -> None:
    for k, n, rate in _cases(400):
        assert below(k, n, rate) == pytest.approx(binom.cdf(k, n, rate), rel=3e-12, abs=1e-300)
        assert above(k, n, rate) == pytest.approx(binom.sf(k, n, rate), rel=3e-12, abs=1e-300)
        assert mass(k, n, rate) == pytest.approx(binom.pmf(k, n, rate), rel=3e-12, abs=1e-300)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_ends(n: int, rate: float) -> None:
    assert [below(k, n, rate) for k in (-1, n)] == [0.0, 1.0]
    assert [above(k, n, rate) for k in (-1, n)] == [1.0, 0.0]
    masses = [mass(k, n, rate) for k in range(-1, n + 2)]
    assert masses[0] == masses[-1] == 0.0
    assert math.fsum(masses) == pytest.approx(1.0, abs=1e-14)


def test_binomial_coefficients_of_real_orders() -> None:
    j = list(range(6))
    found = [math.exp(each) for each in log_choose(5.5, j)]
    assert found == pytest.approx([float(choose(5.5, each)) for each in j], rel=1e-13)
