"""Trade-off curves of claims, against closed forms and the best events of one sampled round."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy.optimize import brentq
from scipy.stats import norm

from fedsys.audit.tradeoff import GaussianTradeoff, ProfileTradeoff, tradeoff_of
from fedsys.privacy.accounting.exact_gaussian import gaussian_delta
from fedsys.privacy.accounting.pld import gaussian_pld_deltas
from fedsys.privacy.events import GaussianStep

LIKELY = np.concatenate([np.logspace(-8, -1, 15), np.linspace(0.1, 0.99, 20), [0.9999, 1.0]])


@pytest.mark.parametrize("mu", [0.1, 1.0, 3.0])
def test_a_gaussian_profile_lies_close_below_the_exact_curve(mu: float) -> None:
    exact, curve = GaussianTradeoff(mu), tradeoff_of({GaussianStep(multiplier=1 / mu): 1})
    assert curve is not None
    for likely in LIKELY.tolist():
        assert curve.least(likely) <= exact.least(likely) * (1 + 1e-9) + 1e-15
        assert curve.least(likely) >= exact.least(likely) - 2e-3 - (likely > 0.99) * 1e-2
    assert exact.least(0.0) == 0.0
    assert curve.least(0.0) == 0.0


def test_rounding_never_raises_the_promise_where_it_is_steep() -> None:
    """Towards certainty lines of slope e^eps cancel: the answer stays below the exact curve."""
    exact, curve = GaussianTradeoff(3.0), tradeoff_of({GaussianStep(multiplier=1 / 3): 1})
    assert curve is not None
    for rare in np.logspace(-15, -1, 200).tolist():
        assert curve.least(1 - rare) <= exact.least(1 - rare) + 1e-15


def test_several_unsampled_rounds_are_one_gaussian() -> None:
    many = tradeoff_of({GaussianStep(multiplier=2.0): 3, GaussianStep(multiplier=1.0): 1})
    one = tradeoff_of({GaussianStep(multiplier=1 / math.sqrt(1.75)): 1})
    assert many is not None
    assert one is not None
    for likely in LIKELY.tolist():
        assert many.least(likely) == pytest.approx(one.least(likely), rel=1e-9)


@pytest.mark.parametrize(("z", "q"), [(1.0, 0.1), (0.7, 0.5)])
def test_a_sampled_round_is_that_of_its_likeliest_events(z: float, q: float) -> None:
    """Half-lines are the best events of N(0, z) against (1-q) N(0, z) + q N(1, z), both ways."""
    curve = tradeoff_of({GaussianStep(multiplier=z, rate=q): 1})
    assert curve is not None

    def absent(x: float) -> float:
        return float(norm.sf(x / z))

    def present(x: float) -> float:
        return float((1 - q) * norm.sf(x / z) + q * norm.sf((x - 1) / z))

    for likely in (1e-4, 0.01, 0.3, 0.5, 0.9, 0.999):
        above = float(brentq(lambda x, y=likely: present(x) - y, -20, 20))
        below = float(brentq(lambda x, y=likely: 1 - absent(x) - y, -20, 20))
        exact = min(absent(above), 1 - present(below))
        assert curve.least(likely) <= exact * (1 + 1e-6)
        assert curve.least(likely) == pytest.approx(exact, rel=0.05, abs=3e-3)


def test_what_delta_pays_for_besides_weakens_the_promise() -> None:
    steps = {GaussianStep(multiplier=1.0): 1}
    curve, weaker = tradeoff_of(steps), tradeoff_of(steps, beside=1e-3)
    assert curve is not None
    assert weaker is not None
    assert all(weaker.least(y) <= curve.least(y) for y in LIKELY.tolist())
    assert weaker.least(1e-3) == 0.0


def test_without_noise_nothing_is_promised() -> None:
    assert tradeoff_of({GaussianStep(multiplier=0.0): 1}) is None
    assert tradeoff_of({}) is None
    nothing = ProfileTradeoff([0.0, 1.0], [1.0, 1.0])
    assert nothing.least(1.0) == 0.0


def test_replacement_under_sampling_counts_as_unamplified() -> None:
    replaced = tradeoff_of({GaussianStep(multiplier=1.0, rate=0.1, replaces=True): 1})
    plain = tradeoff_of({GaussianStep(multiplier=1.0): 1})
    assert replaced is not None
    assert plain is not None
    assert replaced.least(0.3) == plain.least(0.3)


def test_deltas_are_upper_bounds_close_to_finer_ones() -> None:
    epsilons = [0.0, 0.5, 1.0, 3.0, 8.0]
    exact = [gaussian_delta(epsilon, 0.5) for epsilon in epsilons]
    found = gaussian_pld_deltas({(0.5, 1.0): 1}, epsilons)
    assert all(ours >= at * (1 - 1e-6) - 1e-9 for ours, at in zip(found, exact, strict=True))
    np.testing.assert_allclose(found, exact, rtol=1e-2, atol=1e-8)
    single = privacy_loss_distribution.from_gaussian_mechanism(
        0.7, value_discretization_interval=1e-3, sampling_prob=0.07
    )
    theirs = [single.self_compose(40).get_delta_for_epsilon(epsilon) for epsilon in epsilons]
    ours = gaussian_pld_deltas({(0.7, 0.07): 40}, epsilons)
    np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=1e-8)
